"""Prometheus text by value: what is written, that it can be read back, and what is refused."""

from __future__ import annotations

import json
import math

import pytest

from corral.formats import prometheus_text
from corral.formats.prometheus_text import Family, ParsedFamily, Sample, parse, render

COUNTER: Family = (
    "router_requests_total",
    "counter",
    "Total requests processed",
    (((("model", "m1"), ("status", "success")), 1), ((("model", "m2"), ("status", "error")), 2.5)),
)
HISTOGRAM: Family = (
    "wait_seconds",
    "histogram",
    "Time spent waiting",
    (((("model", "m1"),), ((0.01, 0.5, 10.0), (2, 0, 3, 1), 21.25)),),
)
HISTOGRAM_TEXT = b"""\
# HELP wait_seconds Time spent waiting
# TYPE wait_seconds histogram
wait_seconds_bucket{model="m1",le="0.01"} 2
wait_seconds_bucket{model="m1",le="0.5"} 2
wait_seconds_bucket{model="m1",le="10"} 5
wait_seconds_bucket{model="m1",le="+Inf"} 6
wait_seconds_sum{model="m1"} 21.25
wait_seconds_count{model="m1"} 6
"""


def test_a_counter_is_written_line_by_line() -> None:
    assert render([COUNTER]) == (
        b"# HELP router_requests_total Total requests processed\n"
        b"# TYPE router_requests_total counter\n"
        b'router_requests_total{model="m1",status="success"} 1\n'
        b'router_requests_total{model="m2",status="error"} 2.5\n'
    )


def test_a_histograms_buckets_are_added_up_and_closed_with_infinity() -> None:
    assert render([HISTOGRAM]) == HISTOGRAM_TEXT


def test_a_family_without_samples_still_says_what_it_is() -> None:
    assert render([("a", "gauge", "b", ())]) == b"# HELP a b\n# TYPE a gauge\n"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (3.0, "3"),
        (-2, "-2"),
        (0.1, "0.1"),
        (5e-05, "5e-05"),
        (1_800_000_000.25, "1800000000.25"),
        (2.0**53, "9007199254740992.0"),
        (1e300, "1e+300"),
        (math.inf, "+Inf"),
        (-math.inf, "-Inf"),
        (math.nan, "NaN"),
    ],
    ids=str,
)
def test_numbers_are_written_as_scrapers_read_them(value: float, text: str) -> None:
    line = render([("a", "gauge", "", (((), value),))]).splitlines()[-1]
    assert line.decode() == f"a {text}"


@pytest.mark.parametrize(
    "value",
    ['quote " in', "back \\ slash", "line\nbreak", "\\n", 'all \\" of\n it\\', "ünïcödé", "a,b}c{d", ""],
    ids=["quote", "backslash", "newline", "escaped-n", "mixture", "unicode", "punctuation", "empty"],
)
def test_any_label_value_and_help_survives_the_text(value: str) -> None:
    family: Family = ("a", "gauge", value, (((("x", value), ("y", "z")), 1),))
    assert parse(render([family])) == (
        ParsedFamily("a", "gauge", value, (Sample("a", (("x", value), ("y", "z")), 1.0),)),
    )


def test_several_families_are_read_back_in_their_order() -> None:
    families = parse(render([COUNTER, HISTOGRAM]))
    assert [(family.name, family.kind, len(family.samples)) for family in families] == [
        ("router_requests_total", "counter", 2),
        ("wait_seconds", "histogram", 6),
    ]
    assert families[1].samples[3] == Sample("wait_seconds_bucket", (("model", "m1"), ("le", "+Inf")), 6.0)


def test_what_other_programs_may_write_is_read() -> None:
    text = (
        b"# a comment\n"
        b"\n"
        b"no_header 1 1700000000000\n"
        b"# TYPE llamacpp:prompt_tokens_total counter\n"
        b"# HELP llamacpp:prompt_tokens_total Number of \\\\ tokens\\nprocessed.\n"
        b"llamacpp:prompt_tokens_total 1.5e+3\n"
        b"# TYPE lag summary\n"
        b'lag{quantile="0.5",} .25\n'
        b"lag_sum 1\n"
        b"lag_count 4\n"
    )
    assert parse(text) == (
        ParsedFamily("no_header", "untyped", "", (Sample("no_header", (), 1.0),)),
        ParsedFamily(
            "llamacpp:prompt_tokens_total",
            "counter",
            "Number of \\ tokens\nprocessed.",
            (Sample("llamacpp:prompt_tokens_total", (), 1500.0),),
        ),
        ParsedFamily(
            "lag",
            "summary",
            "",
            (
                Sample("lag", (("quantile", "0.5"),), 0.25),
                Sample("lag_sum", (), 1.0),
                Sample("lag_count", (), 4.0),
            ),
        ),
    )
    assert parse(b"") == ()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        pytest.param(b"a 1", "not complete", id="last-line-cut"),
        pytest.param(b"\xff 1\n", "utf-8", id="not-utf-8"),
        pytest.param(b"a\n", "not a sample", id="no-value"),
        pytest.param(b"a one\n", "not a number", id="value-a-word"),
        pytest.param(b"a 1_000\n", "not a number", id="value-with-underscore"),
        pytest.param(b"a inf\n", "not a number", id="value-lower-case-infinity"),
        pytest.param(b"a 0x10\n", "not a number", id="value-hexadecimal"),
        pytest.param(b"a 1 soon\n", "not a sample", id="time-a-word"),
        pytest.param(b"a 1\r\n", "not a sample", id="carriage-return"),
        pytest.param(b" a 1\n", "not a sample", id="leading-space"),
        pytest.param(b"9a 1\n", "not a sample", id="name-begins-with-digit"),
        pytest.param(b"a-b 1\n", "not a sample", id="name-with-dash"),
        pytest.param(b'a{b="c" 1\n', "not a sample", id="labels-not-closed"),
        pytest.param(b"a{b=c} 1\n", "list of labels", id="label-without-quotes"),
        pytest.param(b'a{b="c"d="e"} 1\n', "list of labels", id="labels-without-comma"),
        pytest.param(b'a{b="\\t"} 1\n', "list of labels", id="unknown-escape"),
        pytest.param(b'a{b="c\\"} 1\n', "list of labels", id="escaped-closing-quote"),
        pytest.param(b'a{b:c="d"} 1\n', "list of labels", id="label-name-with-colon"),
        pytest.param(b'a{b="c",b="d"} 1\n', "given twice", id="label-twice"),
        pytest.param(b'a{b="c",d="e"} 1\na{d="e",b="c"} 2\n', "given twice", id="series-twice"),
        pytest.param(b'a 1\nb 1\na{c="d"} 2\n', "comes back", id="family-torn-apart"),
        pytest.param(b"# TYPE a gauge\n# TYPE b gauge\n# HELP a x\n", "comes back", id="header-torn-apart"),
        pytest.param(b"# TYPE a gauge\n# TYPE a gauge\n", "two TYPE", id="two-types"),
        pytest.param(b"# HELP a x\n# HELP a x\n", "two HELP", id="two-helps"),
        pytest.param(b"a 1\n# TYPE a gauge\n", "after its samples", id="type-after-samples"),
        pytest.param(b"# TYPE a number\n", "does not exist", id="unknown-kind"),
        pytest.param(b"# TYPE a\n", "not a HELP or TYPE", id="type-without-kind"),
        pytest.param(b"# HELP 9 x\n", "not a HELP or TYPE", id="help-of-no-name"),
        pytest.param(b"# TYPE a counter\na -1\n", "counter", id="counter-below-zero"),
        pytest.param(b"# TYPE a counter\na NaN\n", "counter", id="counter-not-a-number"),
    ],
)
def test_bad_text_is_refused(text: bytes, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        parse(text)


def test_a_refusal_names_the_line() -> None:
    with pytest.raises(ValueError, match="line 3 of the metrics"):
        parse(b"a 1\nb 2\nc\n")


def test_endless_text_is_refused() -> None:
    with pytest.raises(ValueError, match="more than"):
        parse(b"\n" * (prometheus_text.TEXT_BYTES_MAX + 1))


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        pytest.param(b'le="10"} 5', b'le="10"} 1', "do not rise", id="counts-fall"),
        pytest.param(b'le="0.5"', b'le="0.001"', "do not rise", id="bounds-fall"),
        pytest.param(b'wait_seconds_bucket{model="m1",le="+Inf"} 6\n', b"", "last bucket", id="no-infinity"),
        pytest.param(b'le="+Inf"} 6', b'le="+Inf"} 7', "last bucket", id="infinity-is-not-the-count"),
        pytest.param(b'wait_seconds_sum{model="m1"} 21.25\n', b"", "lacks", id="no-sum"),
        pytest.param(b'wait_seconds_count{model="m1"} 6\n', b"", "lacks", id="no-count"),
        pytest.param(b'_count{model="m1"}', b'_count{model="m2"}', "lacks", id="count-of-another-series"),
        pytest.param(b',le="10"', b"", "not a number", id="bucket-without-bound"),
        pytest.param(b'le="10"', b'le="ten"', "not a number", id="bound-a-word"),
    ],
)
def test_an_inconsistent_histogram_is_refused(old: bytes, new: bytes, says: str) -> None:
    parse(HISTOGRAM_TEXT)
    assert HISTOGRAM_TEXT.count(old) == 1
    with pytest.raises(ValueError, match=says):
        parse(HISTOGRAM_TEXT.replace(old, new))


def test_every_cut_of_a_text_within_a_line_is_refused() -> None:
    text = render([COUNTER])
    for length in range(1, len(text)):
        if text[length - 1 : length] != b"\n":
            with pytest.raises(ValueError, match="not complete"):
                parse(text[:length])


def test_json_holds_the_same_numbers() -> None:
    document = prometheus_text.to_json([COUNTER, HISTOGRAM, ("g", "gauge", "G", (((), math.inf),))])
    assert json.loads(json.dumps(document, allow_nan=False)) == {
        "router_requests_total": {
            "type": "counter",
            "help": "Total requests processed",
            "samples": [
                {"labels": {"model": "m1", "status": "success"}, "value": 1},
                {"labels": {"model": "m2", "status": "error"}, "value": 2.5},
            ],
        },
        "wait_seconds": {
            "type": "histogram",
            "help": "Time spent waiting",
            "samples": [
                {
                    "labels": {"model": "m1"},
                    "count": 6,
                    "sum": 21.25,
                    "buckets": {"0.01": 2, "0.5": 2, "10": 5, "+Inf": 6},
                }
            ],
        },
        "g": {"type": "gauge", "help": "G", "samples": [{"labels": {}, "value": None}]},
    }
