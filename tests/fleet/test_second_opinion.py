"""Second opinions: asked for one by one, out of everybody's way, remembered, and never a hindrance.

The planner is played by the test; the lender lends when it is told to. That the real llama-fit-params
can be run and understood is tested elsewhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

import pytest

from corral.catalogue import Catalogue
from corral.drivers import tasks
from corral.drivers.fit_params import NoAnswer
from corral.drivers.reaper import Reaper
from corral.fleet import SecondOpinions, keeper
from corral.fleet import second_opinion as second_opinion_module
from corral.fleet.second_opinion import BORROWER, HOST_BYTES
from corral.formats.learned import Learned, LearnedKey
from corral.policy.footprint import PredictedFootprint, UnknownFootprint
from corral.policy.memory import CONTEXT_BYTES, Layout, predict, read_options
from corral.policy.placement import Kind, Placement
from tests.fleet.herd import FakeMemory
from tests.models import a_model
from tests.policy.memory.files import MIB, transformer
from tests.waiting import eventually

PREDICTION = predict([transformer().value()], read_options(["-c", "4096", "-np", "1"], {}))
ALL_LAYERS = PREDICTION.layers + 1
PREDICTED = PREDICTION.total_device_bytes(Layout(ALL_LAYERS, (1.0,)))
LESS = "CUDA0 1 1 1\nHost 1 0 0\n"
MORE = "CUDA0 500 4 4\nHost 1 0 0\n"
ON_A_GPU = Placement(Kind.SINGLE, 1, ("GPU-a",), (CONTEXT_BYTES,), 0)


class Planner:
    """A llama-fit-params that says what the test wants, when it wants."""

    started: list[Planner]

    def __init__(self, argv: Sequence[str], env: Mapping[str, str], reaper: Reaper) -> None:
        self.argv, self.env = list(argv), env
        self.pid = 1000 + len(self.started)
        self.alive = True
        self.called_off = False
        self.is_stubborn = False
        self._bell = tasks.Bell()
        self._text: str | None = None
        self.started.append(self)

    async def answer(self) -> str:
        if self.alive and not self.is_stubborn:
            await self._bell
        if self._text is None:
            raise NoAnswer("called off" if self.called_off else "exit code 1")
        return self._text

    async def gone(self) -> None:
        assert not self.alive

    def call_off(self) -> None:
        self.called_off = True
        self.ends(None)

    def ends(self, text: str | None) -> None:
        self.alive, self._text = False, text
        self._bell.ring_soon()


class Memory(FakeMemory):
    """Lends when there is room, and remembers whom it may call back."""

    def __init__(self, gpus: bool, known: dict[LearnedKey, Learned]) -> None:
        super().__init__()
        self.has_room = True
        self.asked_for: list[tuple[int, bool]] = []
        self.refused = 0
        self.stuck = False
        self.call_back: Callable[[], None] = lambda: None
        self._gpus = gpus
        self._known = known

    def measure_out(self, name: str) -> PredictedFootprint | UnknownFootprint:
        if name.startswith("torn"):
            return UnknownFootprint(1, gpus=self._gpus)
        return PredictedFootprint(
            PREDICTION, name, self._known.get, gpus=self._gpus, layers_fixed=False, multiplier=1.1
        )

    def lend(
        self, borrower: str, size_bytes: int, *, on_gpu: bool, call_back: Callable[[], None]
    ) -> Placement | None:
        self.asked_for.append((size_bytes, on_gpu))
        if not self.has_room:
            self.refused += 1
            return None
        self.reserve(borrower, ON_A_GPU)
        self.call_back = call_back
        return ON_A_GPU

    def gone(self, model: str, *, reaped: bool) -> None:
        super().gone(model, reaped=reaped)
        self.stuck |= not reaped


class Stage:
    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        *names: str,
        gpus: bool = True,
        known: dict[LearnedKey, Learned] | None = None,
        program: Path | None = Path("/engine/llama-fit-params"),
    ) -> None:
        monkeypatch.setattr(second_opinion_module, "PAUSE_S", 0.001)
        monkeypatch.setattr(second_opinion_module, "PAUSE_S_MAX", 0.001)
        monkeypatch.setattr(second_opinion_module, "FitParams", Planner)
        self.started: list[Planner] = []
        Planner.started = self.started
        self.known = known if known is not None else {}
        self.memory = Memory(gpus, self.known)
        self.opinions = SecondOpinions(
            program,
            Catalogue({name: a_model(name) for name in names}, {}, ()),
            self.memory,
            self,
            lambda placement: {"CUDA_VISIBLE_DEVICES": ",".join(placement.gpus)},
            Reaper(),
        )

    def remember(self, key: LearnedKey, learned: Learned) -> None:
        self.known[key] = learned

    def play(self, scenario: Callable[[asyncio.Future[None]], Awaitable[None]]) -> Stage:
        async def main() -> None:
            ran = tasks.outcome(self.opinions.run())
            await asyncio.wait_for(scenario(ran), 10)

        asyncio.run(main())
        return self

    async def planner(self, count: int = 1) -> Planner:
        """The newest, when so many have been started."""
        await eventually(lambda: len(self.started) >= count, f"{count} planners have been started")
        return self.started[-1]

    @property
    def opinions_known(self) -> dict[str, Learned]:
        return {key.fingerprint: learned for key, learned in self.known.items()}


def test_each_model_is_asked_about_once_and_the_answers_are_remembered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stage = Stage(monkeypatch, "a", "b")

    async def scenario(ran: asyncio.Future[None]) -> None:
        first = await stage.planner()
        assert stage.memory.held == {BORROWER}
        first.ends(MORE)
        (await stage.planner(2)).ends(LESS)
        await ran

    stage.play(scenario)
    assert len(stage.started) == 2
    assert stage.opinions_known["a"].predicted_bytes == PREDICTED
    assert stage.opinions_known["a"].measured_bytes > PREDICTED + 400 * MIB
    assert stage.opinions_known["b"] == Learned(PREDICTED, PREDICTED)
    assert not stage.memory.held


def test_the_footprint_of_the_model_grows_by_what_was_said(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(monkeypatch, "a")
    before = sum(stage.memory.measure_out("a").spread((1,), ALL_LAYERS))

    async def scenario(ran: asyncio.Future[None]) -> None:
        (await stage.planner()).ends(MORE)
        await ran

    stage.play(scenario)
    learned = stage.opinions_known["a"]
    after = sum(stage.memory.measure_out("a").spread((1,), ALL_LAYERS))
    assert after == pytest.approx(before * learned.measured_bytes / PREDICTED, rel=1e-6)


@pytest.mark.parametrize(("gpus", "size"), [(True, CONTEXT_BYTES), (False, HOST_BYTES)])
def test_it_is_asked_with_all_layers_where_they_are_meant_to_be(
    monkeypatch: pytest.MonkeyPatch, gpus: bool, size: int
) -> None:
    stage = Stage(monkeypatch, "a", gpus=gpus)

    async def scenario(ran: asyncio.Future[None]) -> None:
        planner = await stage.planner()
        assert planner.argv[:5] == ["/engine/llama-fit-params", "--fit-print", "on", "-m", "/models/a.gguf"]
        assert planner.argv[5:7] == ["-ngl", str(ALL_LAYERS if gpus else 0)]
        assert planner.env == {"CUDA_VISIBLE_DEVICES": "GPU-a"}
        planner.ends(LESS)
        await ran

    assert stage.play(scenario).memory.asked_for == [(size, gpus)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "no second opinion on a: exit code 1"),
        ("garbage", "no second opinion on a: there is no table"),
        ("Host 1 2 3\n", "no second opinion on a: it was given one GPU and sees 0"),
        ("CUDA0 90000 4 4\nHost 1 0 0\n", "no second opinion on a: it says 90008 MiB"),
    ],
    ids=["a failure", "garbage", "no GPU", "nonsense"],
)
def test_without_a_sound_answer_the_prediction_stands_and_the_next_model_is_asked_about(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, text: str | None, words: str
) -> None:
    caplog.set_level("INFO")
    stage = Stage(monkeypatch, "a", "b")

    async def scenario(ran: asyncio.Future[None]) -> None:
        (await stage.planner()).ends(text)
        (await stage.planner(2)).ends(LESS)
        await ran

    stage.play(scenario)
    assert list(stage.opinions_known) == ["b"]
    assert caplog.text.count(words) == 1
    assert not stage.memory.held


def test_a_mistake_with_an_answer_does_not_keep_what_was_lent(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(monkeypatch, "a")

    def fail(*_arguments: object) -> Learned:
        raise ZeroDivisionError

    monkeypatch.setattr("corral.policy.memory.second_opinion.judge", fail)

    async def scenario(ran: asyncio.Future[None]) -> None:
        (await stage.planner()).ends(LESS)
        with pytest.raises(ZeroDivisionError):
            await ran

    stage.play(scenario)
    assert not stage.memory.held


def test_a_process_that_cannot_be_had_gives_its_memory_back(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    stage = Stage(monkeypatch, "a")

    def refuse(*_arguments: object) -> Planner:
        raise OSError("no more processes")

    monkeypatch.setattr(second_opinion_module, "FitParams", refuse)

    async def scenario(ran: asyncio.Future[None]) -> None:
        await ran

    stage.play(scenario)
    assert not stage.memory.held
    assert "no second opinion on a: no process could be had: no more processes" in caplog.text


def test_a_model_that_is_wanted_comes_first_and_the_question_is_put_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    stage = Stage(monkeypatch, "a")

    async def scenario(ran: asyncio.Future[None]) -> None:
        first = await stage.planner()
        stage.memory.has_room = False
        stage.memory.call_back()
        assert first.called_off
        await eventually(lambda: stage.memory.refused > 2, "it is asked for room again and again")
        assert not stage.memory.held
        assert len(stage.started) == 1
        stage.memory.has_room = True
        (await stage.planner(2)).ends(MORE)
        await ran

    assert list(stage.play(scenario).opinions_known) == ["a"]
    assert "no second opinion" not in caplog.text


def test_a_call_that_comes_too_late_hurts_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(monkeypatch, "a")

    async def scenario(ran: asyncio.Future[None]) -> None:
        planner = await stage.planner()
        planner.ends(LESS)
        await ran
        stage.memory.call_back()
        assert not planner.called_off

    stage.play(scenario)


def test_what_was_asked_before_or_was_measured_is_not_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    blank = Memory(True, {})
    known, measured = blank.measure_out("known"), blank.measure_out("measured")
    assert isinstance(known, PredictedFootprint)
    assert isinstance(measured, PredictedFootprint)
    before = {
        known.opinion_key: Learned(2, 1),
        measured.gpu_key(ALL_LAYERS): Learned(1, 1),
    }
    stage = Stage(monkeypatch, "known", "measured", "torn", known=dict(before))

    async def scenario(ran: asyncio.Future[None]) -> None:
        await ran

    stage.play(scenario)
    assert not stage.started
    assert stage.known == before


def test_a_measurement_that_comes_while_it_waits_for_room_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(monkeypatch, "a")
    stage.memory.has_room = False

    async def scenario(ran: asyncio.Future[None]) -> None:
        await eventually(lambda: stage.memory.refused > 0, "it waits for room")
        footprint = stage.memory.measure_out("a")
        assert isinstance(footprint, PredictedFootprint)
        stage.known[footprint.gpu_key(ALL_LAYERS)] = Learned(1, 1)
        await ran

    assert not stage.play(scenario).started


def test_without_the_program_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(monkeypatch, "a", program=None)

    async def scenario(ran: asyncio.Future[None]) -> None:
        await ran
        await stage.opinions.stop()

    assert not stage.play(scenario).memory.asked_for


def test_a_stop_ends_what_runs_and_nothing_new_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(monkeypatch, "a", "b")

    async def scenario(ran: asyncio.Future[None]) -> None:
        planner = await stage.planner()
        await stage.opinions.stop()
        assert planner.called_off
        assert not planner.alive
        await ran

    stage.play(scenario)
    assert len(stage.started) == 1
    assert not stage.known


def test_a_stop_while_it_waits_for_room_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(monkeypatch, "a")
    stage.memory.has_room = False

    async def scenario(ran: asyncio.Future[None]) -> None:
        await eventually(lambda: stage.memory.refused > 0, "it waits for room")
        await stage.opinions.stop()
        await ran

    assert not stage.play(scenario).started


def test_one_that_cannot_be_ended_keeps_what_it_holds_and_is_the_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stage = Stage(monkeypatch, "a", "b")

    async def scenario(ran: asyncio.Future[None]) -> None:
        planner = await stage.planner()
        planner.is_stubborn = True
        planner._bell.ring()
        await ran

    stage.play(scenario)
    assert stage.memory.stuck
    assert stage.memory.held == {BORROWER}
    assert len(stage.started) == 1


def test_the_next_is_not_asked_about_before_the_memory_has_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "RELEASE_POLL_S", 0.001)
    stage = Stage(monkeypatch, "a", "b")
    looks = 0

    def look() -> tuple[str, ...]:
        nonlocal looks
        looks += 1
        if looks == 3:
            stage.memory.held.clear()
        assert len(stage.started) == 1
        return ()

    async def scenario(ran: asyncio.Future[None]) -> None:
        planner = await stage.planner()
        stage.memory.gone = lambda model, *, reaped: None  # type: ignore[method-assign]
        stage.memory.look = look  # type: ignore[method-assign]
        planner.ends(LESS)
        await eventually(lambda: looks == 3, "it is looked whether the memory is back")
        del stage.memory.gone, stage.memory.look
        (await stage.planner(2)).ends(LESS)
        await ran

    stage.play(scenario)
