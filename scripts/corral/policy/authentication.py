"""Who is asking, and which models they may use.

A ring holds a principal for every key in force, by the key's digest. Requests bring a key; hashing it
and looking the digest up costs about a microsecond and gives nothing away by its timing: a caller would
learn something from the time of a comparison only if they could choose how many leading bytes agree, and
of a digest nobody can choose them. `hmac.compare_digest` has the last word all the same, so that this
does not rest on how a dict compares.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from functools import lru_cache

from corral.errors import InvalidApiKey
from corral.formats.key_file import (
    ALL_MODELS,
    ANONYMOUS_KEY_ID,
    ENV_KEY_ID,
    KEY_CHARS_MAX,
    KEY_CHARS_MIN,
    KeyRecord,
    Role,
    digest_of,
    has_expired,
)
from corral.formats.priority import Priority
from corral.formats.priority import read as read_priority

# RFC 9110, 11.6.1: a 401 must say by which scheme to come back.
_CHALLENGE = (("www-authenticate", "Bearer"),)


@dataclass(frozen=True, slots=True)
class Principal:
    """Whoever a request counts for. Several keys with one key_id are one to the limits and the log."""

    key_id: str
    role: Role
    requests_per_minute: int  # 0: unlimited
    by_address: bool = False  # the rate is limited per client address instead of per key_id
    priority: Priority | None = None  # None: normal, and free to ask for any
    models: tuple[str, ...] = ALL_MODELS
    max_parallel: int | None = None
    max_waiting: int | None = None
    tokens_per_month: int | None = None
    expires: date | None = None  # the last day, in UTC, on which the key holds


class KeyRing:
    """Every principal that a key can stand for. Never changed: new keys make a new ring."""

    __slots__ = ("_by_digest",)

    def __init__(
        self, records: Iterable[KeyRecord], *, requests_per_minute: int, env_key: str | None = None
    ) -> None:
        """`requests_per_minute` is for keys that have no rate of their own."""
        self._by_digest = {
            record.digest: (record.digest, _principal(record, requests_per_minute)) for record in records
        }
        if env_key is not None:
            # After the file's keys: the environment beats the file here as everywhere.
            digest = digest_of(env_key)
            self._by_digest[digest] = (digest, Principal(ENV_KEY_ID, Role.ADMIN, requests_per_minute))

    def __len__(self) -> int:
        return len(self._by_digest)

    def find(self, presented: str) -> Principal | None:
        """The principal of a key as a client sent it. The bounds come first: nobody makes us hash 8 KiB."""
        if not KEY_CHARS_MIN <= len(presented) <= KEY_CHARS_MAX or not presented.isascii():
            return None
        digest = digest_of(presented)
        entry = self._by_digest.get(digest)
        if entry is None or not hmac.compare_digest(entry[0], digest):
            return None
        return entry[1]

    def parallel_limits(self) -> dict[str, int | None]:
        """How many requests each key_id may run at a time; not for one whose lines say different things."""
        found: dict[str, set[int | None]] = {}
        for _digest, principal in self._by_digest.values():
            found.setdefault(principal.key_id, set()).add(principal.max_parallel)
        return {key_id: limits.pop() for key_id, limits in found.items() if len(limits) == 1}


def _principal(record: KeyRecord, requests_per_minute: int) -> Principal:
    own_rate = record.requests_per_minute
    return Principal(
        key_id=record.key_id,
        role=record.role,
        requests_per_minute=requests_per_minute if own_rate is None else own_rate,
        priority=record.priority,
        models=record.models,
        max_parallel=record.max_parallel,
        max_waiting=record.max_waiting,
        tokens_per_month=record.tokens_per_month,
        expires=record.expires,
    )


def anonymous(requests_per_minute: int, *, admin: bool) -> Principal:
    """Everybody, when authentication is off."""
    role = Role.ADMIN if admin else Role.USER
    return Principal(ANONYMOUS_KEY_ID, role, requests_per_minute, by_address=True)


def authenticate(ring: KeyRing, authorization: str | None, x_api_key: str | None, today: date) -> Principal:
    """The principal behind the two headers that can hold a key, or InvalidApiKey.

    One good key is enough: serverless platforms put a token of their own into Authorization, and then
    ours comes in X-API-Key, which is therefore looked at first. `today` is the day in UTC.
    """
    if not authorization and not x_api_key:
        raise InvalidApiKey("Missing Authorization header", headers=_CHALLENGE)
    expired_on: date | None = None
    for presented in (x_api_key, _credentials(authorization)):
        principal = ring.find(presented) if presented else None
        if principal is None:
            continue
        if not has_expired(principal.expires, today):
            return principal
        expired_on = principal.expires
    if expired_on is not None:
        # Only whoever holds the key gets here, so this tells strangers nothing.
        raise InvalidApiKey(f"API key expired on {expired_on.isoformat()}", headers=_CHALLENGE)
    raise InvalidApiKey("Invalid API key", headers=_CHALLENGE)


def _credentials(authorization: str | None) -> str | None:
    """The key in `Bearer k` (RFC 9110, 11.1: the scheme's case is free) or in a bare `k`."""
    if authorization is None:
        return None
    if authorization.startswith("Bearer "):  # as everybody writes it; outer white space is gone already
        return authorization[7:].strip()
    value = authorization.strip()
    return value[7:].strip() if value[:7].lower() == "bearer " else value


def priority_of(principal: Principal, asked: str | None) -> Priority:
    """The class that a request waits in. What a key was given is its default, and the best it can have."""
    wish = None if asked is None else read_priority(asked)
    if principal.priority is None:
        return Priority.NORMAL if wish is None else wish
    return principal.priority if wish is None else max(principal.priority, wish)


def permits(principal: Principal, model_name: str) -> bool:
    """Whether the principal may use the model of this canonical name."""
    models = principal.models
    return models is ALL_MODELS or _matcher(models).fullmatch(model_name) is not None


# Keys share few sets of patterns, and the same ones come with every request.
@lru_cache(maxsize=1024)
def _matcher(patterns: tuple[str, ...]) -> re.Pattern[str]:
    """One expression for all the patterns. Not fnmatch, to which [ ] mean something and case may not."""
    return re.compile("|".join(map(_expression, patterns)))


def _expression(pattern: str) -> str:
    head, *parts = (re.escape(part).replace(r"\?", ".") for part in re.sub(r"\*+", "*", pattern).split("*"))
    if not parts:
        return head
    # A part between two stars may settle for the first place where it fits, and need never move on. The
    # atomic groups say so; without them a*a*a*a*b takes a time that explodes with the number of stars.
    *middle, tail = parts
    return head + "".join(f"(?>.*?{part})" for part in middle) + ".*" + tail
