"""What a setting's value may be, and how it is read from text or from JSON.

An environment variable is always text, while a config file has types of its own: there "8000" in
quotes is a mistake and is told as one. Both ways lead through the same limits. A value that does not
fit raises `Misfit`, which knows nothing but that; who asked adds the key, the value and `expects`.
"""

from __future__ import annotations

import enum
import math
import os
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

# Half of what Linux allows for one argument of a command line.
TEXT_MAX_CHARS = 65_536
ITEMS_MAX = 1000

ANYTHING = re.compile(r".*", re.DOTALL)
ONE_LINE = re.compile(r"[^\x00-\x1f\x7f-\x9f\u2028\u2029]+")

# ASCII only: int() would also take other alphabets' digits and underscores.
_WHOLE = re.compile(r"[+-]?[0-9]{1,18}")
_DECIMAL = re.compile(r"[+-]?([0-9]{1,18}(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{1,3})?")
_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"0", "false", "no", "off"})


class Misfit(Exception):
    """The value is not of the kind."""


class Kind(Protocol):
    """One kind of value. `expects` completes the sentence "it must be …"."""

    @property
    def expects(self) -> str: ...

    def from_text(self, text: str) -> Any: ...

    def from_json(self, value: object) -> Any: ...


def matching(pattern: re.Pattern[str], value: object) -> str:
    """Bounded text that matches, and that can be a path or an argument: no NUL, no lone surrogates."""
    if not isinstance(value, str) or len(value) > TEXT_MAX_CHARS or "\0" in value:
        raise Misfit
    try:
        os.fsencode(value)
    except UnicodeEncodeError:
        raise Misfit from None
    if not pattern.fullmatch(value):
        raise Misfit
    return value


@dataclass(frozen=True)
class Boolean:
    expects: str = "true or false"

    def from_text(self, text: str) -> bool:
        word = text.lower()
        if word in _TRUE or word in _FALSE:
            return word in _TRUE
        raise Misfit

    def from_json(self, value: object) -> bool:
        if isinstance(value, bool):
            return value
        raise Misfit


@dataclass(frozen=True)
class Whole:
    """A whole number within bounds, both of which are allowed."""

    low: int
    high: int

    @property
    def expects(self) -> str:
        return f"a whole number from {self.low} to {self.high}"

    def from_text(self, text: str) -> int:
        if not _WHOLE.fullmatch(text):
            raise Misfit
        return self.from_json(int(text))

    def from_json(self, value: object) -> int:
        # bool is a kind of int to Python, but `true` is no number to a person.
        if isinstance(value, bool) or not isinstance(value, int) or not self.low <= value <= self.high:
            raise Misfit
        return value


@dataclass(frozen=True)
class Number:
    """A finite number above `above` and up to `high`."""

    above: float
    high: float
    unit: str = ""

    @property
    def expects(self) -> str:
        return f"a number{self.unit} above {self.above:g} and up to {self.high:g}"

    def from_text(self, text: str) -> float:
        if not _DECIMAL.fullmatch(text):
            raise Misfit
        return self.from_json(float(text))

    def from_json(self, value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise Misfit
        # Compared before it is converted: a huge JSON integer does not fit a float.
        if not self.above < value <= self.high or not math.isfinite(value):
            raise Misfit
        return float(value)


@dataclass(frozen=True)
class Choice:
    """One of a few words; with an enum, its member."""

    options: type[enum.Enum] | tuple[str, ...]

    @property
    def words(self) -> tuple[str, ...]:
        if isinstance(self.options, tuple):
            return self.options
        return tuple(str(member.value) for member in self.options)

    @property
    def expects(self) -> str:
        return "one of " + ", ".join(self.words)

    def from_text(self, text: str) -> Any:
        return self.from_json(text.lower())

    def from_json(self, value: object) -> Any:
        if not isinstance(value, str) or value not in self.words:
            raise Misfit
        return value if isinstance(self.options, tuple) else self.options(value)


@dataclass(frozen=True)
class Text:
    """Text of which all matches `pattern`."""

    pattern: re.Pattern[str]
    expects: str

    def from_text(self, text: str) -> str:
        return self.from_json(text)

    def from_json(self, value: object) -> str:
        return matching(self.pattern, value)


@dataclass(frozen=True)
class Location:
    """A path in the file system. Whether anything is there is not asked here."""

    expects: str = "a path"

    def from_text(self, text: str) -> Path:
        return self.from_json(text)

    def from_json(self, value: object) -> Path:
        return Path(matching(ONE_LINE, value))


def by_comma(text: str) -> list[str]:
    return [part for part in (part.strip() for part in text.split(",")) if part]


def by_shell(text: str) -> list[str]:
    return shlex.split(text)


@dataclass(frozen=True)
class Items:
    """A list of one kind: an array in JSON, and in text whatever `split` cuts into parts."""

    item: Kind
    expects: str
    split: Callable[[str], Sequence[str]] = by_comma

    def from_text(self, text: str) -> tuple[Any, ...]:
        try:
            parts = self.split(text)
        except ValueError:  # shlex: a quote that is never closed
            raise Misfit from None
        return self._all(self.item.from_text, parts)

    def from_json(self, value: object) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise Misfit
        return self._all(self.item.from_json, value)

    def _all(self, read: Callable[[Any], Any], parts: Sequence[Any]) -> tuple[Any, ...]:
        if len(parts) > ITEMS_MAX:
            raise Misfit
        return tuple(read(part) for part in parts)
