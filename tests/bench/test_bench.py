"""The benchmark's own parts, by value: what is read of the kernel, medians and ratios, tables, the chart."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import urllib.request
import xml.etree.ElementTree as ET
from contextlib import AbstractContextManager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from tests import cold_start
from tests.bench import __main__ as bench
from tests.bench import chart, gate, install, kernel, measure, others, pages, programs, table
from tests.bench.contestants import (
    ALL,
    LENGTHS,
    MODEL,
    Contestant,
    Part,
    Ring,
    Target,
    chat,
    request,
    requests_of_many_lengths,
)
from tests.bench.results import Results, added_latency, from_json, medians, ratio, to_json
from tests.bench.table import OURS, ROWS, YARDSTICK
from tests.support import KEY
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


def test_a_process_is_moved_to_a_core() -> None:
    core = min(os.sched_getaffinity(0))
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        kernel.move([process.pid], core)
        assert os.sched_getaffinity(process.pid) == {core}
    assert process.returncode == 0


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


# Contestants --------------------------------------------------------------------------------------


def nothing(ring: Ring) -> AbstractContextManager[Target]:
    raise AssertionError("nobody is started by these tests")


def test_a_proxy_and_the_engine_that_it_has_started_are_told_apart(tmp_path: Path) -> None:
    engine = tmp_path / "engine"
    engine.symlink_to(sys.executable)
    starts_it = "import subprocess, sys; subprocess.run(sys.argv[1:])"
    command = [sys.executable, "-c", starts_it, str(engine), "-c", "input()", "--port", "1234"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        target = Target(1, process.pid, 0.0, engine)
        wait_until(lambda: target.engines, "the engine runs")
        assert target.pids == [process.pid]
        assert process.pid not in target.engines
        assert measure.engine_of(target).port == 1234


def test_what_is_slow_gets_less_to_do() -> None:
    slow = measure.pace_for(Contestant("slow", nothing, slow=True), measure.FULL)
    assert slow.rounds < measure.FULL.rounds
    assert slow.chunks_per_s < measure.FULL.chunks_per_s
    assert measure.pace_for(Contestant("quick", nothing), measure.FULL) == measure.FULL


def test_of_several_takes_the_quietest_counts_with_all_its_figures(tmp_path: Path) -> None:
    takes = iter([(2.0, 5.0), (1.0, 7.0), (3.0, 6.0), (0.5, 1.0)])

    def measured(_ring: Ring, _target: Target, _pace: measure.Pace) -> measure.Figures:
        cpu_s, p50_s = next(takes)
        return {"requests_64.cpu_s": cpu_s, "requests_64.p50_s": p50_s}

    ring = Ring(programs.Programs(tmp_path, tmp_path), 0, 0, tmp_path)
    found = measure.quietest(measured, ring, Target(1, None, 0.0), measure.FULL)
    assert found == {"requests_64.cpu_s": 1.0, "requests_64.p50_s": 7.0}


def test_only_the_parts_that_can_be_measured_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def measured(ring: Ring, target: Target, pace: measure.Pace, name: str) -> measure.Figures:
        return {name: 1.0}

    for part in measure.IN_TURN:
        monkeypatch.setitem(measure.IN_TURN, part, partial(measured, name=part.name))
    ring = Ring(programs.Programs(tmp_path, tmp_path), 0, 0, tmp_path)
    target = Target(0, None, 0.0)
    for parts in (ALL, ALL - {Part.MANY_STREAMS}, frozenset({Part.REAL_ENGINE})):
        figures = measure.one_round(ring, Contestant("it", nothing, parts), target, measure.QUICK)
        assert figures.keys() == {part.name for part in parts & measure.IN_TURN.keys()}
    only = Contestant("it", nothing, frozenset({Part.REAL_ENGINE}))
    assert measure.memory(ring, only) == {}
    assert measure.large_bodies(ring, only, target, measure.QUICK) == {}


def test_a_cold_start_is_what_its_own_command_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[object, ...]] = []

    def median(engine: Path, rounds: int, *, preload: bool) -> cold_start.Figures:
        asked.append((engine, rounds, preload))
        return cold_start.Figures(health_port=300.0, listening=200.0, first_token=400.0)

    monkeypatch.setattr(cold_start, "median", median)
    figures = bench.with_the_real_engine(Path("engine"), measure.QUICK)
    assert asked == [(Path("engine"), measure.QUICK.starts, False)]
    assert figures == {
        "cold_start.health_port_s": 0.3,
        "cold_start.listening_s": 0.2,
        "cold_start.first_token_s": 0.4,
    }
    shown = table.table(results(nginx={}, corral=figures), figures=set(figures)).splitlines()[2:]
    assert [line.split(" | ")[-2].strip() for line in shown] == ["300", "200", "400"]


def test_without_an_engine_there_is_no_cold_start(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.with_the_real_engine(None, measure.QUICK) == {}
    assert "make engine" in capsys.readouterr().err


# The programs -------------------------------------------------------------------------------------


class Closes(BaseHTTPRequestHandler):
    """Answers, and closes the connection."""

    protocol_version = "HTTP/1.1"
    bodies: ClassVar[set[bytes]] = set()

    def do_POST(self) -> None:
        self.bodies.add(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *_: object) -> None:
        pass


def test_the_load_goes_on_when_a_server_closes_after_each_answer() -> None:
    core = min(os.sched_getaffinity(0))
    with ThreadingHTTPServer(("127.0.0.1", 0), Closes) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            load = programs.Load("requests", server.server_port, requests_of_many_lengths(), 2, 0.1, 0.3)
            result = programs.run_load(programs.compiled(), core, load)
        finally:
            server.shutdown()
            thread.join()
    assert result["count"] > 2
    assert result["errors"] == 0
    assert len({len(body) for body in Closes.bodies}) == LENGTHS


@pytest.mark.parametrize("separators", [(", ", ": "), (",", ":")], ids=["spaced", "compact"])
def test_the_stand_in_reads_json_with_and_without_spaces(separators: tuple[str, str]) -> None:
    body = json.dumps(chat(stream=True, n_predict=3, interval_us=100), separators=separators)
    with programs.stand_in(programs.compiled(), min(os.sched_getaffinity(0))) as port:
        asked = urllib.request.Request(f"http://127.0.0.1:{port}/v1/chat/completions", body.encode())
        with urllib.request.urlopen(asked) as answer:
            events = answer.read().split(b"\n\n")
    assert len([event for event in events if b"@" in event]) == 3


def test_the_stand_ins_answers_have_many_lengths() -> None:
    asked = json.dumps(chat()).encode()
    with programs.stand_in(programs.compiled(), min(os.sched_getaffinity(0))) as port:
        url = f"http://127.0.0.1:{port}/v1/chat/completions"
        answers = [urllib.request.urlopen(url, asked).read() for _ in range(20)]
    assert len({len(answer) for answer in answers}) == 16
    assert all(json.loads(answer)["usage"]["total_tokens"] == 56 for answer in answers)


# Rivals -------------------------------------------------------------------------------------------


def rival(name: str, *, is_here: bool) -> others.Rival:
    return others.Rival(Contestant(name, nothing), lambda: is_here, lambda: {name: "1.0"})


def test_who_is_not_installed_is_named_and_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    here, missing = rival("here", is_here=True), rival("missing", is_here=False)
    monkeypatch.setattr(others, "EVERYBODY", (missing, here))
    said: list[str] = []
    assert others.installed(said.append) == [here]
    assert said == ["without missing: it is not installed"]


def test_names_of_rivals_are_their_own_and_their_environments_have_lists() -> None:
    names = [each.contestant.name for each in others.EVERYBODY]
    assert len({*names, "no proxy", YARDSTICK, OURS}) == len(names) + 3
    assert all(path.is_file() for path in install.REQUIREMENTS.values())


def test_litellm_is_told_of_one_model_and_the_key() -> None:
    config = json.loads(others.litellm_config(1234))
    (model,) = config["model_list"]
    assert model["model_name"] == MODEL
    assert model["litellm_params"]["api_base"] == "http://127.0.0.1:1234/v1"
    assert config["general_settings"]["master_key"] == KEY


def test_llama_swap_is_told_what_to_start(tmp_path: Path) -> None:
    config = json.loads(others.llama_swap_config(tmp_path / "llama-server"))
    assert config["models"][MODEL]["cmd"] == f"{tmp_path}/llama-server --port ${{PORT}} --alias {MODEL}"
    assert config["models"][MODEL]["concurrencyLimit"] >= measure.MANY_STREAMS
    assert config["apiKeys"] == [KEY]


@pytest.fixture
def go(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where a `go` would be found, and a cache of one's own."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "go"


def test_without_go_there_is_no_llama_swap(
    go: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(go.parent))
    install.install_llama_swap()
    assert capsys.readouterr().err == "not built: llama-swap, for there is no Go here\n"


def test_a_go_that_fails_is_one_line(go: Path, capsys: pytest.CaptureFixture[str]) -> None:
    go.write_text("#!/bin/sh\nprintf 'go: no such\\n\\tmodule\\n' >&2\nexit 1\n")
    go.chmod(0o755)
    install.install_llama_swap()
    assert capsys.readouterr().err == "not built: llama-swap (go: no such module)\n"


def test_go_builds_llama_swap_into_the_cache_and_says_which(go: Path) -> None:
    go.write_text(
        '#!/bin/sh\ncase $1 in install) mkdir -p "$GOBIN"; echo "$@" >"$GOBIN/llama-swap";;\n'
        f"version) printf '%s: go1.26\\n\\tmod\\t{install.LLAMA_SWAP}\\tv1.2.3\\t\\n' $3;; esac\n"
    )
    go.chmod(0o755)
    install.install_llama_swap()
    assert install.llama_swap().read_text() == f"install {install.LLAMA_SWAP}@latest\n"
    assert others.llama_swap_versions() == {"llama-swap": "v1.2.3"}


# Results ------------------------------------------------------------------------------------------


def test_a_figure_is_the_median_of_the_rounds_that_have_it() -> None:
    assert medians([{"a": 1.0}, {"a": 9.0, "b": 4.0}, {"a": 2.0}]) == {"a": 2.0, "b": 4.0}
    assert medians([]) == {}


def test_a_ratio_is_made_round_by_round() -> None:
    rounds = [({"a": 2.0}, {"a": 1.0}), ({"a": 30.0}, {"a": 10.0}), ({"a": 4.0}, {"a": 2.0})]
    assert ratio(rounds, "a") == 2.0


def test_the_latency_added_is_that_over_no_proxy_unless_it_was_measured_itself() -> None:
    by_name = {
        "no proxy": {"requests_1.p50_s": 1.0},
        "nginx": {"requests_1.p50_s": 4.0},
        "router": {"requests_1.added_p50_s": 2.0},
    }
    added = added_latency(by_name, "no proxy")
    assert added["nginx"] == {"requests_1.p50_s": 4.0, "requests_1.added_p50_s": 3.0}
    assert {name: added[name] for name in ("no proxy", "router")} == {
        name: by_name[name] for name in ("no proxy", "router")
    }


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
