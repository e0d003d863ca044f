"""The keys file: text <-> who may do what. One file is the whole access policy.

    # key_id:api_key[:options]
    production:sk-prod-abc123def456
    alice-laptop:sk-alice-xyz789:rpm=60,priority=high,models=qwen-*|llama-3b
    batch:sha256$<64 hex>:priority=low,tokens_per_month=50000000,expires=2027-01-31

A line is split at its first two colons; the rest is options, in which model names may hold colons of
their own. Reading fails closed and line by line: a line that is not understood in full lets nobody in,
and the others still load. What is wrong is told by line number alone. No message repeats any part of a
line, because a key may stand in the wrong field. Only digests leave this module, never keys.

Editing works on the text, so that comments, order and spacing stay as their author left them. The
reader is the judge of every edit: what it would reject is not written.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from enum import StrEnum
from typing import Any, NamedTuple

from corral.formats.priority import Priority

FILE_BYTES_MAX = 4 * 1024 * 1024
LINES_MAX = 10_000
LINE_CHARS_MAX = 4096

KEY_CHARS_MIN = 8
KEY_CHARS_MAX = 128
# Below this a key of mixed letters and digits has fewer than about 95 bits.
KEY_CHARS_SAFE = 16
DIGEST_PREFIX = "sha256$"

# A limit for numbers without a natural one: far beyond need, far below trouble.
NUMBER_MAX = 10**15
# Each admitted request of the last minute costs a time stamp in memory.
REQUESTS_PER_MINUTE_MAX = 1_000_000

# The key of the environment and the caller without a key have these ids; no line may pose as them.
ENV_KEY_ID = "env"
ANONYMOUS_KEY_ID = "anonymous"

ALL_MODELS = ("*",)

_KEY_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._@+-]{0,63}")
_KEY = re.compile(rf"[A-Za-z0-9_-]{{{KEY_CHARS_MIN},{KEY_CHARS_MAX}}}")
_STORED_DIGEST = re.compile(r"sha256\$([0-9a-f]{64})")
# ASCII only: int() and date.fromisoformat() take more spellings than a policy should have.
_NUMBER = re.compile(r"[0-9]{1,16}")
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_MODEL_PATTERN = re.compile(r"[!-~]+")


class KeyFileError(Exception):
    """A text, a line or an edit that can't be accepted, and why, without a word of what it holds."""


class Role(StrEnum):
    USER = "user"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """One line: a key, known by its digest, and what it may do."""

    key_id: str
    digest: bytes = field(repr=False)  # sha256 of the key's bytes
    requests_per_minute: int | None = None  # None: the default; 0: unlimited
    priority: Priority | None = None  # None: normal, and free to ask for any
    models: tuple[str, ...] = ALL_MODELS  # patterns with * and ?
    max_parallel: int | None = None  # of its requests that run at once
    max_waiting: int | None = None  # of its requests that wait
    tokens_per_month: int | None = None
    expires: date | None = None  # the last day, in UTC, on which it holds
    role: Role = Role.USER


class Problem(NamedTuple):
    line_number: int  # from 1, as editors count
    message: str


class KeyFile(NamedTuple):
    keys: tuple[KeyRecord, ...]
    problems: tuple[Problem, ...]  # lines that were rejected
    warnings: tuple[Problem, ...]  # lines that were not, but should be looked at


def digest_of(key: str) -> bytes:
    """Plain SHA-256: keys are long and random, so a slow password hash would only slow down requests."""
    return hashlib.sha256(key.encode("ascii")).digest()


def hashed(key: str) -> str:
    """The form in which a file holds a key without giving it away."""
    return DIGEST_PREFIX + digest_of(key).hex()


def has_expired(expires: date | None, today: date) -> bool:
    """A key holds through its last day; without one it holds for ever."""
    return expires is not None and today > expires


# Reading ----------------------------------------------------------------------------------------


def decode(raw: bytes) -> str:
    """The text of a file. A byte order mark, as some editors write it, is no part of the first key_id."""
    if len(raw) > FILE_BYTES_MAX:
        raise KeyFileError(f"it is larger than {FILE_BYTES_MAX} bytes")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # The original error carries the bytes themselves; it ends here.
        raise KeyFileError(f"it is not UTF-8 text (at byte {error.start})") from None


def parse(text: str) -> KeyFile:
    """All lines that can be trusted, and what is wrong with the others."""
    lines = text.split("\n")
    if len(lines) > LINES_MAX:
        raise KeyFileError(f"it has more than {LINES_MAX} lines")
    keys: list[KeyRecord] = []
    problems: list[Problem] = []
    warnings: list[Problem] = []
    first_lines: dict[bytes, int] = {}
    for number, line in enumerate(lines, start=1):
        if not _is_entry(line):
            continue
        try:
            key_id, key, options = _fields(line)
            digest = _stored_digest(key)
            # Counted even if the line is rejected further on: a restriction with a slip in it must
            # not let a more generous line with the same key take its place.
            first_line = first_lines.setdefault(digest, number)
            if first_line != number:
                raise KeyFileError(f"the same key stands on line {first_line}")
            _check_key_id(key_id)
            keys.append(KeyRecord(key_id, digest, **_options(options)))
        except KeyFileError as error:
            problems.append(Problem(number, str(error)))
        else:
            if len(key) < KEY_CHARS_SAFE:
                message = f"the key has fewer than {KEY_CHARS_SAFE} characters: make a longer one"
                warnings.append(Problem(number, message))
    return KeyFile(tuple(keys), tuple(problems), tuple(warnings))


def _is_entry(line: str) -> bool:
    line = line.strip()
    return bool(line) and not line.startswith("#")


def _fields(line: str) -> tuple[str, str, str]:
    if len(line) > LINE_CHARS_MAX:
        raise KeyFileError(f"the line has more than {LINE_CHARS_MAX} characters")
    key_id, colon, rest = line.partition(":")
    if not colon:
        raise KeyFileError("a line must read key_id:api_key or key_id:api_key:options")
    key, _, options = rest.partition(":")
    return key_id.strip(), key.strip(), options.strip()


def _check_key_id(key_id: str) -> None:
    if not _KEY_ID.fullmatch(key_id):
        raise KeyFileError(
            "the key_id must be 1 to 64 characters of A-Z a-z 0-9 . _ @ + - "
            "and begin with a letter, a digit or _"
        )
    if key_id in (ENV_KEY_ID, ANONYMOUS_KEY_ID):
        raise KeyFileError(f"the key_ids {ENV_KEY_ID} and {ANONYMOUS_KEY_ID} are reserved")


def _stored_digest(key: str) -> bytes:
    if _KEY.fullmatch(key):
        return digest_of(key)
    if match := _STORED_DIGEST.fullmatch(key):
        return bytes.fromhex(match[1])
    raise KeyFileError(
        f"the key must be {KEY_CHARS_MIN} to {KEY_CHARS_MAX} characters of A-Z a-z 0-9 _ - "
        f"or {DIGEST_PREFIX} and 64 lower-case hexadecimal digits"
    )


# Options ----------------------------------------------------------------------------------------


def _whole_number(minimum: int, maximum: int) -> Callable[[str], int]:
    def read(value: str) -> int:
        if _NUMBER.fullmatch(value) and minimum <= (number := int(value)) <= maximum:
            return number
        raise KeyFileError(f"a whole number from {minimum} to {maximum}")

    return read


def _priority(value: str) -> Priority:
    for priority in Priority:
        if value == priority.name.lower():
            return priority
    raise KeyFileError("high, normal or low")


def _role(value: str) -> Role:
    try:
        return Role(value)
    except ValueError:
        raise KeyFileError("user or admin") from None


def _models(value: str) -> tuple[str, ...]:
    patterns = tuple(pattern.strip() for pattern in value.split("|"))
    if not all(map(_MODEL_PATTERN.fullmatch, patterns)):
        raise KeyFileError("model names, in which * and ? are wild, with | between them")
    return patterns


def _date(value: str) -> date:
    try:
        if _DATE.fullmatch(value):
            return date.fromisoformat(value)
    except ValueError:
        pass
    raise KeyFileError("a date such as 2027-01-31")


# name: (field of KeyRecord, how its value is read). A reader that refuses says what would be right.
_OPTIONS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "rpm": ("requests_per_minute", _whole_number(0, REQUESTS_PER_MINUTE_MAX)),
    "priority": ("priority", _priority),
    "models": ("models", _models),
    "max_parallel": ("max_parallel", _whole_number(1, NUMBER_MAX)),
    "max_waiting": ("max_waiting", _whole_number(0, NUMBER_MAX)),
    "tokens_per_month": ("tokens_per_month", _whole_number(1, NUMBER_MAX)),
    "expires": ("expires", _date),
    "role": ("role", _role),
}


def _options(text: str) -> dict[str, Any]:
    """The fields that the options set. Nothing at all after the second colon means no options."""
    fields: dict[str, Any] = {}
    if not text:
        return fields
    for position, option in enumerate(text.split(","), start=1):
        name, equals, value = (part.strip() for part in option.partition("="))
        if not equals and _NUMBER.fullmatch(name):
            name, value = "rpm", name
        if name not in _OPTIONS:
            raise KeyFileError(f"option {position} is none of {', '.join(_OPTIONS)}")
        field_name, read = _OPTIONS[name]
        if field_name in fields:
            raise KeyFileError(f"the option {name} is given twice")
        try:
            fields[field_name] = read(value)
        except KeyFileError as expected:
            raise KeyFileError(f"the option {name} must be {expected}") from None
    return fields


# Editing ----------------------------------------------------------------------------------------


def add_key(text: str, key_id: str, stored_key: str, options: str = "") -> str:
    """The text with one more line. A key_id that stands there already has to be rotated or removed."""
    _check_key_id(key_id)
    _stored_digest(stored_key)
    if "\n" in options:
        raise KeyFileError("options stand on one line")
    if _lines_of(text, key_id):
        raise KeyFileError(f"{key_id} is there already: rotate it, remove it, or choose another name")
    line = ":".join((key_id, stored_key, options) if options else (key_id, stored_key))
    before = text if not text or text.endswith("\n") else text + "\n"
    return _approved(before + line + "\n", before.count("\n") + 1)


def remove_key(text: str, key_id: str) -> str:
    """The text without any line of this key_id, whether the line was in force or rejected."""
    doomed = _lines_of(text, key_id)
    if not doomed:
        raise KeyFileError(f"there is no key_id {key_id}")
    return "\n".join(line for index, line in enumerate(text.split("\n")) if index not in doomed)


def replace_key(text: str, key_id: str, key: str) -> str:
    """The text with a new key on the line of this key_id, stored as the old one was: plain or as a digest."""
    found = _lines_of(text, key_id)
    if len(found) != 1:
        count = "on more than one line: remove the surplus by hand" if found else "nowhere"
        raise KeyFileError(f"the key_id {key_id} stands {count}")
    lines = text.split("\n")
    name, _, rest = lines[found[0]].partition(":")
    old, colon, options = rest.partition(":")
    stored_key = hashed(key) if old.strip().startswith(DIGEST_PREFIX) else key
    new = old.replace(old.strip(), stored_key) if old.strip() else stored_key
    lines[found[0]] = f"{name}:{new}{colon}{options}"
    return _approved("\n".join(lines), found[0] + 1)


def _lines_of(text: str, key_id: str) -> list[int]:
    return [
        index
        for index, line in enumerate(text.split("\n"))
        if _is_entry(line) and line.partition(":")[0].strip() == key_id
    ]


def _approved(text: str, line_number: int) -> str:
    """The edited text, if it still can be read and its edited line is in force."""
    if len(text.encode("utf-8")) > FILE_BYTES_MAX:
        raise KeyFileError(f"the file would be larger than {FILE_BYTES_MAX} bytes")
    for problem in parse(text).problems:
        if problem.line_number == line_number:
            raise KeyFileError(problem.message)
    return text
