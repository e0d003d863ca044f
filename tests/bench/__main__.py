"""Measure everybody who is here, and say how it went: `python -m tests.bench [--quick] [--out FOLDER]`."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

import corral
from tests.bench import chart, kernel, measure, others, pages, programs
from tests.bench.contestants import (
    CORRAL,
    NGINX,
    NOBODY,
    Contestant,
    Ring,
    Target,
    await_listening,
    first_answer,
    nginx_binary,
)
from tests.bench.measure import Pace
from tests.bench.results import Results, added_latency, medians, to_json
from tests.bench.table import plain, table


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def rounds(ring: Ring, contestants: list[Contestant], pace: Pace) -> dict[str, dict[str, float]]:
    """All of them up at the same time, and measured in turn: what disturbs one disturbs the others."""
    found: dict[str, list[measure.Figures]] = {each.name: [] for each in contestants}
    with ExitStack() as stack:
        targets: list[tuple[Contestant, Target]] = []
        for each in contestants:
            target = stack.enter_context(each.start(ring))
            await_listening(target)
            first_answer(target)
            kernel.move(target.engines, ring.load_core)
            targets.append((each, target))
        for number in range(pace.rounds):
            for each, target in targets:
                if each is NOBODY and number:
                    continue  # it is there to show what the load takes, and is compared with nobody
                if number >= measure.pace_for(each, pace).rounds:
                    continue
                say(f"round {number + 1} of {pace.rounds}: {each.name}")
                found[each.name].append(measure.one_round(ring, each, target, pace))
        for each, target in targets:
            say(f"large bodies: {each.name}")
            found[each.name].append(measure.large_bodies(ring, each, target, pace))
    return added_latency({name: medians(each) for name, each in found.items()}, NOBODY.name)


def apart(ring: Ring, contestant: Contestant, pace: Pace) -> dict[str, float]:
    """What needs a process that has done nothing before."""
    if contestant is NOBODY:
        return {}
    say(f"start and memory: {contestant.name}")
    starts = medians(
        measure.start(ring, contestant) for _ in range(measure.pace_for(contestant, pace).starts)
    )
    return starts | measure.memory(ring, contestant)


def with_the_real_engine(engine: Path | None, pace: Pace) -> dict[str, float]:
    """What only Corral has: a herd that is started cold."""
    if engine is None:
        say("without a cold start: there is no llama-server here (`make engine`)")
        return {}
    say(f"cold start: {CORRAL.name} with the real engine")
    return measure.started_cold(engine, pace)


def versions(rivals: list[others.Rival], engine: Path | None) -> dict[str, str]:
    nginx = subprocess.run([nginx_binary() or "nginx", "-v"], capture_output=True, text=True).stderr
    found = {
        "Corral": corral.__version__,
        "Python": f"{programs.python_version()} ({programs.python()})",
        "nginx": nginx.rpartition("/")[2].split()[0],
    }
    for each in rivals:
        found |= each.versions()
    return found | (others.llama_server_versions() if engine is not None else {})


def run(pace: Pace, with_rivals: bool) -> Results:
    core, load_core = kernel.two_cores()
    rivals = others.installed(say) if with_rivals else []
    engine = others.llama_server()
    contestants = [NOBODY, NGINX, CORRAL, *(each.contestant for each in rivals)]
    with tempfile.TemporaryDirectory(prefix="corral-bench-") as directory:
        ring = Ring(programs.compiled(), core, load_core, Path(directory))
        by_name = rounds(ring, contestants, pace)
        for each in contestants:
            by_name[each.name] |= apart(ring, each, pace)
    by_name[CORRAL.name] |= with_the_real_engine(engine, pace)
    today = datetime.now(UTC).date().isoformat()
    return Results(kernel.machine(), versions(rivals, engine), pace.rounds, today, by_name)


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench", description="What Corral costs, beside nginx.")
    parser.add_argument("--quick", action="store_true", help="less than a minute; the figures vary more")
    parser.add_argument("--rivals", action="store_true", help="measure the other proxies that are installed")
    parser.add_argument("--publish", action="store_true", help="write docs/ and the README's table")
    parser.add_argument("--out", type=Path, default=programs.cache(), help="where JSON and chart go")
    arguments = parser.parse_args()
    results = run(measure.QUICK if arguments.quick else measure.FULL, arguments.rivals)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "performance.json").write_text(to_json(results), encoding="utf-8")
    (arguments.out / "performance.svg").write_text(chart.svg(results), encoding="utf-8")
    if arguments.publish:
        pages.publish(results)
    print(f"\n{plain(table(results))}\n{results.machine}")
    print(", ".join(f"{name} {version}" for name, version in results.versions.items()))
    print(f"The figures as JSON, and a chart: {arguments.out}")


if __name__ == "__main__":
    main()
