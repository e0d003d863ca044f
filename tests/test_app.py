"""The gateway from start to stop, inside the test's own process: the order of things, and who learns what."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from corral import app as app_module
from corral import surroundings
from corral.app import App
from corral.drivers import clock
from corral.drivers.gpu_probe import GpuProbe
from corral.drivers.key_file_store import KeyFileStore
from corral.drivers.model_store import catalogue
from corral.errors import SettingsError
from corral.formats.status import ModelState, Phase
from corral.policy import lifecycle
from tests.drivers.serving import RawClient
from tests.handlers.gatehouse import CHAT, read_head, read_reply, request
from tests.in_a_loop import in_a_loop, turns
from tests.site import ALICE, BOB, Site, Slow, log_text, refused, site_with
from tests.waiting import eventually, is_running


@pytest.fixture
def site(tmp_path: Path, demo_files: Path) -> Iterator[Site]:
    with site_with(tmp_path, demo_files) as made:
        yield made


# Start -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slow_part", ["the models", "the cards", "what was learnt"])
@in_a_loop
async def test_probes_are_answered_and_others_wait_before_anything_slow(
    site: Site, monkeypatch: pytest.MonkeyPatch, slow_part: str
) -> None:
    places: dict[str, tuple[Any, str]] = {
        "the models": (surroundings, "catalogue"),
        "the cards": (GpuProbe, "open"),
        "what was learnt": (surroundings, "LearnedStore"),
    }
    owner, name = places[slow_part]
    slow = Slow(getattr(owner, name))
    monkeypatch.setattr(owner, name, slow)
    app = App(site.load())
    starting = asyncio.ensure_future(app.start())
    try:
        await eventually(site.health_pid, "the health process runs")
        status = site.status()
        assert (status["phase"], status["preload_settled"], status["models"]) == ("starting", False, {})
        assert status["pid"] == os.getpid()
        early = await RawClient.connect(site.port)
        early.send(request("/v1/models", key=ALICE))
        await eventually(lambda: not refused(site.health_port), "the health port listens")
        for port in (site.port, site.health_port):
            codes = [(await site.ask(path, port=port)).status for path in ("/ping", "/readyz", "/live")]
            assert codes == [204, 503, 200]
        await eventually(lambda: site.status()["written_at"] > status["written_at"], "it does not grow stale")
        assert not starting.done()
        slow.goes_on()
        await starting
        assert (await read_reply(early)).status == 200
        assert site.status()["phase"] == "serving"
        assert (await site.ask("/ping", port=site.health_port)).status == 200
    finally:
        slow.goes_on()
        await starting
        await app.close()
        await RawClient.close_all()
        app.reaper.stop()
    assert site.health_pid() is None


@pytest.mark.parametrize("wish", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP], ids=lambda wish: wish.name)
@in_a_loop
async def test_a_wish_to_stop_ends_the_start_however_long_it_would_take(
    site: Site, monkeypatch: pytest.MonkeyPatch, wish: signal.Signals
) -> None:
    hangs = Slow(catalogue)
    monkeypatch.setattr(surroundings, "catalogue", hangs)
    app = App(site.load({"system": {"preload_models": ["*"], "scan_models": True}}))
    starting = asyncio.ensure_future(app.start())
    try:
        await eventually(site.health_pid, "the health process runs")
        early = await RawClient.connect(site.port)
        early.send(request("/v1/models", key=ALICE))
        await eventually(lambda: app.server.busy, "somebody waits")
        if wish is signal.SIGHUP:  # which is no wish to stop
            os.kill(os.getpid(), wish)
            await turns()
            assert not starting.done()
        os.kill(os.getpid(), signal.SIGTERM if wish is signal.SIGHUP else wish)
        assert await starting is False
        await app.until_stopped()
        assert site.status()["phase"] == "draining"
        reply = await read_reply(early)
        assert (reply.status, reply.error["code"]) == (503, "shutting_down")
        assert site.health_pid() is None
        assert "stopping in the middle of the start" in log_text(site)
    finally:
        hangs.goes_on()
        await RawClient.close_all()
        app.reaper.stop()


@in_a_loop
async def test_one_port_for_both_needs_no_health_process(site: Site) -> None:
    async with site.run(PORT_HEALTH=str(site.port)):
        assert site.health_pid() is None
        assert (await site.ask("/ping")).status == 200


@in_a_loop
async def test_port_0_is_any_port_and_the_app_knows_which(site: Site) -> None:
    async with site.run(GATEWAY_PORT="0") as app:
        assert app.port > 0
        assert (await site.ask("/ping", port=app.port)).status == 200


@pytest.mark.parametrize(
    ("preload", "environ", "loaded", "warning"),
    [
        ([], {}, [], None),
        (["*"], {}, ["demo", "demo-embed"], None),
        (["demo", "tiny", "demo"], {}, ["demo"], None),
        (["gone", "demo"], {}, ["demo"], "preload_models names 'gone', and there is no such model"),
        ([], {"MODEL_PATH": "data/models/demo.gguf"}, ["demo"], None),
    ],
    ids=["none", "all", "twice and by an alias", "one that is not there", "single model"],
)
@in_a_loop
async def test_models_that_are_wished_for_are_there_from_the_start(
    site: Site, preload: list[str], environ: dict[str, str], loaded: list[str], warning: str | None
) -> None:
    config: dict[str, Any] = {
        "system": {"preload_models": preload, "scan_models": True},
        "models": {"demo": {"model_path": "demo.gguf", "aliases": ["tiny"]}},
    }
    async with site.run(config, **environ) as app:
        await eventually(lambda: app.fleet.preload_settled, "the preloads are settled")
        states = {name: status.state.value for name, status in app.fleet.statuses().items()}
        assert [name for name, state in states.items() if state == "ready"] == loaded
        assert (await site.ask("/ping")).status == 200
        app.logs.flush(5.0)
        assert ("there is no such model" in log_text(site)) is (warning is not None)
        assert warning is None or warning in log_text(site)


# While it runs -----------------------------------------------------------------------------------


@in_a_loop
async def test_the_status_file_is_written_anew_now_and_then(site: Site) -> None:
    async with site.run():
        first = site.status()
        assert first["models"]["demo"] == {"status": "off"}
        await eventually(lambda: site.status()["written_at"] > first["written_at"], "it is written anew")


@in_a_loop
async def test_the_status_file_follows_every_change(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app_module, "STATUS_EVERY_S", 3600.0)
    async with site.run() as app:
        assert (await site.ask("/v1/chat/completions", CHAT)).status == 200
        await eventually(lambda: site.status()["models"]["demo"]["status"] == "ready", "demo is ready")
        assert site.status()["models"]["demo"]["port"] == app.fleet.statuses()["demo"].port


@in_a_loop
async def test_a_status_file_that_cannot_be_written_is_logged_and_stops_nothing(site: Site) -> None:
    nowhere = "/proc/nowhere"  # where nobody may make a folder, whoever he is
    async with site.run(RUNTIME_DIR=nowhere):
        assert (await site.ask("/ping")).status == 200
        complaint = f"{nowhere}/{site.status_file.name} cannot be written"
        await eventually(lambda: complaint in log_text(site), "it is logged")
        await eventually(lambda: not refused(site.health_port), "the health port listens")
        assert (await site.ask("/ping", port=site.health_port)).status == 503, "it can't know"


@in_a_loop
async def test_what_is_done_now_and_then_goes_on_after_a_failure(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    load, looks = KeyFileStore.load, 0

    def stumble(store: KeyFileStore) -> bool:
        nonlocal looks
        looks += 1
        if looks == 2:
            raise ValueError("a bug")
        return load(store)

    monkeypatch.setattr(KeyFileStore, "load", stumble)
    async with site.run():
        await eventually(lambda: looks > 2, "the keys are looked at again")
        await eventually(lambda: "the keys: a turn failed" in log_text(site), "it is logged")


@in_a_loop
async def test_a_changed_keys_file_counts_without_being_asked(site: Site) -> None:
    async with site.run() as app:
        assert (await site.ask("/v1/models", key=BOB)).status == 401
        before = app.gate.keys
        site.write_keys(f"bob:{BOB}\n")
        await eventually(lambda: app.gate.keys is not before, "the keys are read anew")
        assert (await site.ask("/v1/models", key=BOB)).status == 200
        assert (await site.ask("/v1/models", key=ALICE)).status == 401


@in_a_loop
async def test_what_waits_already_hears_of_its_keys_new_limit(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[dict[str, int | None]] = []
    async with site.run() as app:
        monkeypatch.setattr(app.fleet, "limits_are", told.append)
        site.write_keys(f"alice:{ALICE}:max_parallel=7\n")
        await eventually(lambda: told, "the fleet is told")
        assert told[0]["alice"] == 7


@in_a_loop
async def test_sighup_reads_the_keys_at_once(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app_module, "KEYS_EVERY_S", 3600.0)
    async with site.run() as app:
        before = app.gate.keys
        site.write_keys(f"bob:{BOB}\n")
        os.kill(os.getpid(), signal.SIGHUP)
        await eventually(lambda: app.gate.keys is not before, "the keys are read anew")
        assert (await site.ask("/v1/models", key=BOB)).status == 200


@in_a_loop
async def test_a_keys_file_that_breaks_leaves_the_keys_in_force(site: Site) -> None:
    async with site.run() as app:
        site.keys_file.write_bytes(b"\xff\xfe")
        await eventually(lambda: "can't be read" in log_text(site), "it is logged")
        assert (await site.ask("/v1/models")).status == 200
        assert len(app.gate.keys) == 1


@in_a_loop
async def test_without_any_key_everybody_is_told_401_and_the_operator_what_to_do(site: Site) -> None:
    site.write_keys("# nobody yet\n")
    async with site.run():
        assert (await site.ask("/v1/models")).status == 401
        await eventually(lambda: "NO KEYS in" in log_text(site), "it is logged")
        assert "scripts/keys.py generate" in log_text(site)


# Stop --------------------------------------------------------------------------------------------

SLOW = CHAT | {"stream": True, "stand_in": {"tokens": 20, "token_delay_s": 0.05}}
ENDLESS = CHAT | {"stream": True, "stand_in": {"tokens": 10_000, "token_delay_s": 0.05}}


@in_a_loop
async def test_a_signal_refuses_what_is_new_lets_finish_what_runs_and_ends_the_herd(site: Site) -> None:
    async with site.run() as app:
        stopped = asyncio.ensure_future(app.until_stopped())
        running, idle = await RawClient.connect(site.port), await RawClient.connect(site.port)
        idle.send(request("/ping"))
        assert (await read_reply(idle)).status == 200
        running.send(request("/v1/chat/completions", SLOW, key=ALICE))
        assert (await read_head(running)).status == 200
        pid = app.fleet.statuses()["demo"].extra["pid"]
        os.kill(os.getpid(), signal.SIGTERM)
        await eventually(lambda: app.bulletin.phase is Phase.DRAINING, "the signal is heard")
        assert await idle.rest() == b""
        refusal = await site.ask("/v1/chat/completions", CHAT)
        assert (refusal.status, refusal.error["code"]) == (503, "shutting_down")
        assert refusal.header("connection") == "close"
        assert (await site.ask("/ping")).status == 503
        assert site.status()["phase"] == "draining"
        assert (await running.rest()).endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
        await stopped
        assert not is_running(int(str(pid)))
        assert site.health_pid() is None
    assert log_text(site).splitlines()[-1].endswith("INFO    stopped")


@in_a_loop
async def test_a_second_signal_hurries(site: Site) -> None:
    async with site.run() as app:
        stopped = asyncio.ensure_future(app.until_stopped())
        running = await RawClient.connect(site.port)
        running.send(request("/v1/chat/completions", ENDLESS, key=ALICE))
        assert (await read_head(running)).status == 200
        os.kill(os.getpid(), signal.SIGINT)
        await eventually(lambda: app.bulletin.phase is Phase.DRAINING, "the first signal is heard")
        assert not stopped.done()
        os.kill(os.getpid(), signal.SIGTERM)
        await stopped
        # What was cut says so.
        assert b'"code": "upstream_error"' in await running.rest()


@in_a_loop
async def test_the_wait_for_what_runs_has_an_end(site: Site) -> None:
    async with site.run(DRAIN_TIMEOUT_S="0.05") as app:
        running = await RawClient.connect(site.port)
        running.send(request("/v1/chat/completions", ENDLESS, key=ALICE))
        assert (await read_head(running)).status == 200
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(app.until_stopped(), 10.0)


# Ends of its own ----------------------------------------------------------------------------------


@in_a_loop
async def test_a_gateway_that_nobody_needs_ends_by_itself_if_it_is_told_to(site: Site) -> None:
    app = App(site.load(IDLE_EXIT_S="0.3"))
    await app.start()
    assert await app.until_stopped() == 0
    app.reaper.stop()
    assert log_text(site).count("no model was asked for within 0.3 s (IDLE_EXIT_S)") == 1


@in_a_loop
async def test_a_request_that_is_still_arriving_is_no_idleness(site: Site) -> None:
    async with site.run(IDLE_EXIT_S="0.3") as app:
        stopped = asyncio.ensure_future(app.until_stopped())
        whole = request("/v1/chat/completions", CHAT, key=ALICE)
        client = await RawClient.connect(site.port)
        client.send(whole[:-1])
        began = clock.monotonic()
        await eventually(lambda: stopped.done() or clock.monotonic() - began > 1.0, "time for an end to come")
        assert not stopped.done()
        client.send(whole[-1:])
        assert (await read_reply(client)).status == 200
        await stopped


@in_a_loop
async def test_a_load_that_takes_its_time_is_no_idleness(site: Site) -> None:
    slow = {"demo": {"model_path": "demo.gguf", "flags": ["--stand-in", '{"load_s": 1}']}}
    async with site.run({"models": slow}, API_KEY="sk-admin-0123456789", IDLE_EXIT_S="0.3") as app:
        loaded = await site.ask("/v1/models/load", {"model": "demo"}, key="sk-admin-0123456789")
        assert loaded.status == 200
        await app.until_stopped()
    text = log_text(site)
    assert text.index("demo is READY") < text.index("(IDLE_EXIT_S)")


@pytest.mark.parametrize("deaths_max", [1, 2], ids=["given up at once", "after a pause"])
@in_a_loop
async def test_idleness_is_no_good_end_for_one_whose_only_model_has_failed(
    site: Site, monkeypatch: pytest.MonkeyPatch, deaths_max: int
) -> None:
    monkeypatch.setattr(lifecycle, "DEATHS_MAX", deaths_max)
    dying = """--stand-in '{"exit_code": 3}'"""
    async with site.run(MODEL_PATH="data/models/demo.gguf", EXTRA_ARGS=dying, IDLE_EXIT_S="0.3") as app:
        assert await app.until_stopped() == 1
        assert app.fleet.state("demo") is ModelState.FAILED, "a pause before the next try is no idleness"
    assert "the one model there is has failed, and so the exit code is 1" in log_text(site)


@in_a_loop
async def test_a_start_that_fails_when_it_is_to_stop_is_no_surprise(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = App(site.load())

    def fails_in_that_turn(_act: object, _name: str) -> asyncio.Future[Any]:
        app._on_stop_signal()
        looking: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        looking.set_exception(OSError("gone"))
        return looking

    monkeypatch.setattr(app_module, "in_thread", fails_in_that_turn)
    assert await app.start() is False
    assert await app.until_stopped() == 0
    app.reaper.stop()
    assert "could not be found out: OSError('gone')" in log_text(site)


@in_a_loop
async def test_a_health_port_that_nobody_knows_is_refused(site: Site) -> None:
    app = App(site.load(PORT_HEALTH="0"))
    with pytest.raises(SettingsError, match=r"^PORT_HEALTH is 0"):
        await app.start()
    await app.close()
    app.reaper.stop()


@in_a_loop
async def test_the_one_model_must_be_there(site: Site) -> None:
    missing = site.root / "gone.gguf"
    app = App(site.load(MODEL_PATH=str(missing)))
    with pytest.raises(SettingsError, match=f"^FATAL: Model file not found: {missing}$"):
        await app.start()
    await app.close()
    app.reaper.stop()


@in_a_loop
async def test_a_gateway_whose_one_model_has_died_is_not_ready_yet(site: Site) -> None:
    dying = """--stand-in '{"exit_code": 3}'"""
    async with site.run(MODEL_PATH="data/models/demo.gguf", EXTRA_ARGS=dying) as app:
        await eventually(lambda: app.fleet.state("demo") is ModelState.BACKOFF, "it has died")
        await eventually(lambda: not refused(site.health_port), "the health port listens")
        written = site.status()["written_at"]
        await eventually(lambda: site.status()["written_at"] > written, "it is known to the health process")
        for port in (site.port, site.health_port):
            assert (await site.ask("/ping", port=port)).status == 204
    assert " READY after " not in log_text(site)


@in_a_loop
async def test_the_log_says_ready_once_when_it_is(site: Site) -> None:
    async with site.run({"system": {"preload_models": ["demo"]}}):
        await eventually(lambda: " READY after " in log_text(site), "it says so")
        assert (await site.ask("/ping")).status == 200
        written = site.status()["written_at"]
        await eventually(lambda: site.status()["written_at"] > written + 0.05, "the status is written again")
    assert log_text(site).count(" READY after ") == 1
