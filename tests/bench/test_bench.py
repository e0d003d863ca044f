"""The benchmark's own parts, by value: what is read of the kernel, medians and ratios, tables, the chart."""

from __future__ import annotations

import os
import threading
import time
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from tests.bench import chart, gate, kernel, pages, table
from tests.bench.contestants import chat, request
from tests.bench.results import Results, from_json, medians, ratio, to_json
from tests.bench.table import OURS, ROWS, YARDSTICK
from tests.waiting import wait_until

WORK_NS = 20_000_000


def results(**by_name: dict[str, float]) -> Results:
    names = {"nobody": "no proxy", "nginx": "nginx", "corral": "Corral"}
    return Results(
        "2 × Processor, 4 GiB, Linux 6",
        {"Corral": "1.0", "nginx": "1.2"},
        5,
        "2026-01-02",
        {names.get(name, name): figures for name, figures in by_name.items()},
    )


SOME = results(
    nobody={"requests_64.per_s": 80000.0},
    nginx={"requests_64.cpu_s": 20e-6, "streams_200.cpu_s": 16e-6, "start.resident_bytes": 3 * 2.0**20},
    corral={"requests_64.cpu_s": 50e-6, "streams_200.cpu_s": 20e-6, "stall.large_s": 0.012},
    FastAPI={"requests_64.cpu_s": 2200e-6},
)


# The kernel ---------------------------------------------------------------------------------------


def test_what_the_kernel_says_is_read() -> None:
    status = "Name:\tx\nVmHWM:\t   900 kB\nVmRSS:\t   512 kB\nThreads:\t2\n"
    assert kernel.status_bytes(status, "VmRSS") == 512 * 1024
    with pytest.raises(ValueError, match="no VmSwap"):
        kernel.status_bytes(status, "VmSwap")
    assert kernel.parent_in("12 (a (b) c) S 7 12 12 0 -1") == 7


def test_this_very_process_is_measured() -> None:
    me = os.getpid()
    assert kernel.family(me)[0] == me
    assert "python" in kernel.command_of(me)
    before = kernel.cpu_ns([me])
    wait_until(lambda: kernel.cpu_ns([me]) > before > 0, "the kernel has counted on")
    assert kernel.resident_bytes([me]) > 1 << 20
    assert "Linux" in kernel.machine()


def test_the_time_of_a_thread_that_has_ended_counts() -> None:
    def work() -> None:
        until_ns = time.thread_time_ns() + WORK_NS
        while time.thread_time_ns() < until_ns:
            pass

    before = kernel.cpu_ns([os.getpid()])
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert kernel.cpu_ns([os.getpid()]) - before >= WORK_NS


def test_what_is_started_on_a_core_is_there_and_we_are_where_we_were() -> None:
    before = os.sched_getaffinity(0)
    with kernel.on_core(min(before)):
        assert os.sched_getaffinity(0) == {min(before)}
    assert os.sched_getaffinity(0) == before


def test_a_request_says_how_long_it_is() -> None:
    sent = request(chat(stream=True))
    head, _, body = sent.partition(b"\r\n\r\n")
    assert b"Content-Length: %d" % len(body) in head
    assert b'"stream": true' in body


# Results ------------------------------------------------------------------------------------------


def test_a_figure_is_the_median_of_the_rounds_that_have_it() -> None:
    assert medians([{"a": 1.0}, {"a": 9.0, "b": 4.0}, {"a": 2.0}]) == {"a": 2.0, "b": 4.0}
    assert medians([]) == {}


def test_a_ratio_is_made_round_by_round() -> None:
    rounds = [({"a": 2.0}, {"a": 1.0}), ({"a": 30.0}, {"a": 10.0}), ({"a": 4.0}, {"a": 2.0})]
    assert ratio(rounds, "a") == 2.0


def test_results_come_back_from_json_as_they_were() -> None:
    assert from_json(to_json(SOME)) == SOME


# Tables and the chart -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "shown"), [(12345.6, "12,346"), (123.4, "123"), (12.34, "12.3"), (1.234, "1.23"), (0.0, "0.00")]
)
def test_three_figures_are_shown(value: float, shown: str) -> None:
    assert table.number(value) == shown


def test_a_table_has_a_row_for_each_figure_and_a_ratio_to_nginx() -> None:
    lines = table.table(SOME).splitlines()
    assert lines[0] == "|  | unit | no proxy | nginx | Corral | FastAPI | budget |"
    assert lines[2] == (
        "| processor time of a request, 64 connections | µs | – | 20.0 | 50.0 (2.50 ×) "
        "| 2,200 (110 ×) | ≤ 2.5 × |"
    )
    assert "| longest wait of a chunk while bodies of 10 MB come | ms | – | – | 12.0 | – | ≤ 20 ms |" in lines
    assert all(line.count("|") == lines[0].count("|") for line in lines)


def test_a_table_may_be_of_some_figures_and_some_names() -> None:
    short = table.table(SOME, [YARDSTICK, OURS], {"streams_200.cpu_s"})
    assert short.splitlines()[2:] == [
        "| processor time of a chunk, 200 streams | µs | 16.0 | 20.0 (1.25 ×) | ≤ 1.0 × |"
    ]


def test_a_terminal_gets_columns_of_one_width() -> None:
    lines = table.plain(table.table(SOME)).splitlines()
    assert "---" not in "".join(lines)
    assert len({line.index("µs") for line in lines if "µs" in line}) == 1


def test_every_figure_of_the_readme_is_one_of_the_table() -> None:
    assert {row.figure for row in ROWS} >= pages.SHORT | {panel.figure for panel in chart.PANELS}
    assert {row.figure for row in ROWS} >= gate.HELD.keys() == gate.NAMES.keys()


def test_the_chart_is_a_drawing_with_a_bar_for_each_name() -> None:
    drawing = ET.fromstring(chart.svg(SOME))
    space = "{http://www.w3.org/2000/svg}"
    texts = [each.text for each in drawing.iter(f"{space}text")]
    assert texts.count("nginx") == texts.count("Corral") == 2
    assert texts.count("FastAPI") == 1
    assert "no proxy" not in texts
    bars = [(each.get("class"), float(each.get("width", "0"))) for each in drawing.iter(f"{space}rect")]
    assert [kind for kind, _ in bars] == ["bar", "bar ours", "bar", "bar", "bar ours"]
    assert bars[0][1] < bars[1][1] < bars[2][1] <= chart.WIDTH - chart.LABEL_WIDTH


def test_a_name_is_written_so_that_it_breaks_no_drawing() -> None:
    odd = results(**{"<a&b>": {"requests_64.cpu_s": 1e-6}})
    assert "&lt;a&amp;b&gt;" in chart.svg(odd)


# The gate -----------------------------------------------------------------------------------------

GOOD = {name: held * gate.TOLERANCE - 0.01 for name, held in gate.HELD.items()}
SLOW_REQUEST = GOOD | {"requests_64.cpu_s": 99.0}
SLOW_CHUNK = GOOD | {"streams_200.cpu_s": 99.0}


@pytest.mark.parametrize(
    ("attempts", "holds"),
    [
        ([GOOD], True),
        ([SLOW_REQUEST, GOOD], True),
        ([SLOW_REQUEST, SLOW_REQUEST], False),
        ([SLOW_CHUNK, SLOW_CHUNK], False),
        ([SLOW_REQUEST, SLOW_CHUNK], True),
        ([SLOW_REQUEST | SLOW_CHUNK, SLOW_CHUNK], False),
    ],
)
def test_only_a_figure_that_misses_twice_fails(attempts: list[dict[str, float]], holds: bool) -> None:
    said: list[str] = []
    waiting = list(attempts)
    assert gate.holds(lambda: waiting.pop(0), said.append) is holds
    assert waiting == []
    assert len(said) == len(attempts) * len(gate.HELD)
    assert ("99.00 × nginx" in " ".join(said)) is (attempts[0] is not GOOD)


# The pages ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", [pages.PAGE, pages.README], ids=["performance.md", "README.md"])
def test_the_figures_of_a_page_are_the_published_ones(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert "<!-- figures:" in text
    assert pages.with_figures(text, pages.published()) == text, "run `make bench PUBLISH=1`"


def test_the_chart_is_that_of_the_published_figures() -> None:
    assert pages.CHART.read_text(encoding="utf-8") == chart.svg(pages.published())
