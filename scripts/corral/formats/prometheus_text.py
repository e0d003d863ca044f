"""Prometheus text format 0.0.4: metric families to text and JSON, and a strict reader of the text.

A family comes in as a plain tuple: name, kind, help, and samples, each a tuple of label pairs and a
reading. A reading is a number or, for a histogram, its upper bounds, the count in each bucket (one more
than bounds, not added up) and the sum of what was observed. The text wants buckets added up, so that a
scraper may drop some; this is where that is done.

The reader takes what the format promises and refuses what a lenient scraper would guess at: it stands
between text that another program wrote and our own answer.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from itertools import accumulate, pairwise
from typing import NamedTuple

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# Far more than 10,000 series; nobody's metrics are that long.
TEXT_BYTES_MAX = 16 * 1024 * 1024

Labels = tuple[tuple[str, str], ...]
Distribution = tuple[tuple[float, ...], tuple[int, ...], float]
Reading = float | Distribution
Family = tuple[str, str, str, tuple[tuple[Labels, Reading], ...]]


class Sample(NamedTuple):
    """One line: a name, its labels, a number."""

    name: str
    labels: Labels
    value: float


class ParsedFamily(NamedTuple):
    """One name with all its lines, in their order."""

    name: str
    kind: str
    help: str
    samples: tuple[Sample, ...]


# Writing ----------------------------------------------------------------------------------------


def render(families: Iterable[Family]) -> bytes:
    lines: list[str] = []
    for name, kind, help, samples in families:
        lines.append(f"# HELP {name} {_escape_help(help)}")
        lines.append(f"# TYPE {name} {kind}")
        for labels, reading in samples:
            lines.extend(_line(sample) for sample in _samples(name, labels, reading))
    return "".join(f"{line}\n" for line in lines).encode()


def to_json(families: Iterable[Family]) -> dict[str, object]:
    """The same numbers for people who would rather not parse text."""
    return {
        name: {
            "type": kind,
            "help": help,
            "samples": [{"labels": dict(labels), **_json_reading(reading)} for labels, reading in samples],
        }
        for name, kind, help, samples in families
    }


def _samples(name: str, labels: Labels, reading: Reading) -> Iterator[Sample]:
    if not isinstance(reading, tuple):
        yield Sample(name, labels, reading)
        return
    count = 0
    for bound, count in _buckets(reading):
        yield Sample(f"{name}_bucket", (*labels, ("le", bound)), count)
    yield Sample(f"{name}_sum", labels, reading[2])
    yield Sample(f"{name}_count", labels, count)


def _buckets(distribution: Distribution) -> Iterator[tuple[str, int]]:
    bounds, counts, _ = distribution
    return zip([*map(_number, bounds), "+Inf"], accumulate(counts), strict=True)


def _json_reading(reading: Reading) -> dict[str, object]:
    if not isinstance(reading, tuple):
        # JSON has no infinity and no NaN.
        return {"value": reading if math.isfinite(reading) else None}
    return {"count": sum(reading[1]), "sum": reading[2], "buckets": dict(_buckets(reading))}


def _line(sample: Sample) -> str:
    labels = ",".join(f'{key}="{_escape_label(value)}"' for key, value in sample.labels)
    return (
        f"{sample.name}{{{labels}}} {_number(sample.value)}"
        if labels
        else f"{sample.name} {_number(sample.value)}"
    )


def _number(value: float) -> str:
    if value == math.inf:
        return "+Inf"
    if value == -math.inf:
        return "-Inf"
    if value != value:
        return "NaN"
    # Whole numbers without a fraction, as far as a float holds them exactly.
    return str(int(value)) if value == int(value) and abs(value) < 2**53 else repr(value)


def _escape_help(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n")


def _escape_label(text: str) -> str:
    return _escape_help(text).replace('"', r"\"")


# Reading ----------------------------------------------------------------------------------------

KINDS = frozenset({"counter", "gauge", "histogram", "summary", "untyped"})
_NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\["\\n])*)"(?:,|$)')
_HEADER = re.compile(rf"# (HELP|TYPE) ({_NAME}) (.*)")
_SAMPLE = re.compile(rf"({_NAME})(?:\{{(.*)\}})? +(\S+)(?: +-?[0-9]+)?")
_VALUE = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|[+-]Inf|NaN")
_ESCAPE = re.compile(r'\\["\\n]')
_ESCAPES = {r"\\": "\\", r"\"": '"', r"\n": "\n"}
_SUFFIXES = {"histogram": ("_bucket", "_sum", "_count"), "summary": ("", "_sum", "_count")}


def parse(text: bytes) -> tuple[ParsedFamily, ...]:
    """The families of a whole text. ValueError names the line and what is wrong with it."""
    if len(text) > TEXT_BYTES_MAX:
        raise ValueError(f"the metrics have more than {TEXT_BYTES_MAX} bytes")
    if text and not text.endswith(b"\n"):
        raise ValueError("the metrics' last line is not complete")
    reader = _Reader()
    for number, line in enumerate(text.decode().split("\n"), start=1):
        try:
            reader.take(line)
        except ValueError as error:
            raise ValueError(f"line {number} of the metrics: {error}") from None
    return reader.finish()


class _Reader:
    """Takes line after line; holds the families so far, the last of which is still open."""

    def __init__(self) -> None:
        self._drafts: dict[str, _Draft] = {}
        self._open: _Draft | None = None
        self._series: set[tuple[str, Labels]] = set()

    def take(self, line: str) -> None:
        if line.startswith(("# HELP ", "# TYPE ")):
            self._take_header(line)
        elif line and not line.startswith("#"):
            self._take_sample(_sample(line))

    def finish(self) -> tuple[ParsedFamily, ...]:
        return tuple(draft.close() for draft in self._drafts.values())

    def _take_header(self, line: str) -> None:
        match = _HEADER.fullmatch(line)
        if match is None:
            raise ValueError(f"not a HELP or TYPE line: {line!r:.80}")
        keyword, name, text = match.groups()
        draft = self._draft(name)
        if draft.samples:
            raise ValueError(f"{keyword} of {name} comes after its samples")
        if keyword == "HELP":
            draft.set_help(text)
        else:
            draft.set_kind(text)

    def _take_sample(self, sample: Sample) -> None:
        series = (sample.name, tuple(sorted(sample.labels)))
        if series in self._series:
            raise ValueError(f"{sample.name} is given twice with the same labels")
        self._series.add(series)
        draft = self._open
        if draft is None or sample.name not in draft.sample_names():
            draft = self._draft(sample.name)
        draft.samples.append(sample)

    def _draft(self, name: str) -> _Draft:
        if self._open is None or self._open.name != name:
            if name in self._drafts:
                raise ValueError(f"{name} comes back after other metrics")
            self._open = self._drafts[name] = _Draft(name)
        return self._open


class _Draft:
    """A family whose lines are still coming."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.samples: list[Sample] = []
        self._help: str | None = None
        self._kind: str | None = None

    def sample_names(self) -> list[str]:
        return [self.name + suffix for suffix in _SUFFIXES.get(self._kind or "", ("",))]

    def set_help(self, text: str) -> None:
        if self._help is not None:
            raise ValueError(f"{self.name} has two HELP lines")
        self._help = _unescape(text)

    def set_kind(self, kind: str) -> None:
        if self._kind is not None:
            raise ValueError(f"{self.name} has two TYPE lines")
        if kind not in KINDS:
            raise ValueError(f"{self.name} is of a kind that does not exist: {kind!r:.80}")
        self._kind = kind

    def close(self) -> ParsedFamily:
        if self._kind == "counter":
            for sample in self.samples:
                if not sample.value >= 0:
                    raise ValueError(f"{self.name} is a counter and can't be {sample.value}")
        elif self._kind == "histogram":
            _check_histogram(self.name, self.samples)
        return ParsedFamily(self.name, self._kind or "untyped", self._help or "", tuple(self.samples))


def _sample(line: str) -> Sample:
    match = _SAMPLE.fullmatch(line)
    if match is None:
        raise ValueError(f"not a sample: {line!r:.80}")
    return Sample(match[1], _labels(match[2] or ""), _value(match[3]))


def _value(text: str) -> float:
    if _VALUE.fullmatch(text) is None:
        raise ValueError(f"not a number: {text!r:.80}")
    return float(text)


def _labels(text: str) -> Labels:
    pairs: list[tuple[str, str]] = []
    position = 0
    while position < len(text):
        match = _LABEL.match(text, position)
        if match is None:
            raise ValueError(f"not a list of labels: {text!r:.80}")
        pairs.append((match[1], _unescape(match[2])))
        position = match.end()
    if len(dict(pairs)) < len(pairs):
        raise ValueError(f"a label is given twice: {text!r:.80}")
    return tuple(pairs)


def _unescape(text: str) -> str:
    return _ESCAPE.sub(lambda match: _ESCAPES.get(match[0], match[0]), text)


def _check_histogram(name: str, samples: list[Sample]) -> None:
    parts: dict[Labels, dict[str, list[tuple[str, float]]]] = {}
    for sample in samples:
        labels = dict(sample.labels)
        bound = labels.pop("le", "")
        series = tuple(sorted(labels.items()))
        part = parts.setdefault(series, {"_bucket": [], "_sum": [], "_count": []})
        part[sample.name.removeprefix(name)].append((bound, sample.value))
    for part in parts.values():
        if not part["_bucket"] or len(part["_sum"]) != 1 or len(part["_count"]) != 1:
            raise ValueError(f"{name} lacks buckets, a sum or a count")
        _check_buckets(name, part["_bucket"], part["_count"][0][1])


def _check_buckets(name: str, buckets: list[tuple[str, float]], count: float) -> None:
    bounds = [_value(bound) for bound, _ in buckets]
    counts = [value for _, value in buckets]
    if any(low >= high for low, high in pairwise(bounds)) or any(
        low > high for low, high in pairwise(counts)
    ):
        raise ValueError(f"the buckets of {name} do not rise")
    if bounds[-1] != math.inf or counts[-1] != count:
        raise ValueError(f"the last bucket of {name} is not +Inf with the count of all")
