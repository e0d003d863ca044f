from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

import pytest

from corral.drivers.tasks import Bell, Repeat, Strand, every, outcome, spawn


def strand(coroutine: Coroutine[Any, None, None], ends: list[BaseException | None]) -> Strand:
    made = Strand(coroutine, ends.append)
    made.step()
    return made


def test_a_strand_runs_at_once_and_to_its_end() -> None:
    said: list[str] = []
    ends: list[BaseException | None] = []

    async def work() -> None:
        said.append("begun")

    made = strand(work(), ends)
    assert (said, ends, made.done) == (["begun"], [None], True)


def test_a_bell_wakes_its_waiter_inside_the_ringers_call() -> None:
    bell, said, ends = Bell(), list[str](), list[BaseException | None]()

    async def work() -> None:
        await bell
        said.append("woken")

    strand(work(), ends)
    assert (said, ends) == ([], [])
    bell.ring()
    assert (said, ends) == (["woken"], [None])


def test_a_bell_that_nobody_waits_for_is_not_remembered() -> None:
    bell, ends = Bell(), list[BaseException | None]()
    bell.ring()

    async def work() -> None:
        await bell

    strand(work(), ends)
    assert ends == []


def test_what_is_thrown_is_raised_where_the_strand_waits() -> None:
    bell, said, ends = Bell(), list[str](), list[BaseException | None]()

    async def work() -> None:
        try:
            await bell
        finally:
            said.append("cleaned up")

    error = ValueError("enough")
    strand(work(), ends).throw(error)
    assert (said, ends) == (["cleaned up"], [error])
    bell.ring()  # the waiter is gone: nothing happens


def test_what_is_thrown_at_a_running_strand_is_raised_at_its_next_wait() -> None:
    bell, said, ends = Bell(), list[str](), list[BaseException | None]()
    holder: list[Strand] = []

    async def work() -> None:
        await bell
        holder[0].throw(ValueError("later"))
        said.append("still running")
        await bell
        said.append("never")

    holder.append(strand(work(), ends))
    bell.ring()
    assert said == ["still running"]
    assert isinstance(ends[0], ValueError)


def test_a_strand_that_has_ended_takes_no_more_errors() -> None:
    ends: list[BaseException | None] = []

    async def work() -> None:
        pass

    strand(work(), ends).throw(ValueError("too late"))
    assert ends == [None]


def test_a_strand_may_survive_what_is_thrown_and_wait_again() -> None:
    first, second, said = Bell(), Bell(), list[str]()
    ends: list[BaseException | None] = []

    async def work() -> None:
        try:
            await first
        except ValueError:
            said.append("caught")
        await second
        said.append("through")

    strand(work(), ends).throw(ValueError("once"))
    second.ring()
    assert (said, ends) == (["caught", "through"], [None])


def test_a_strand_awaits_a_future_of_asyncios() -> None:
    async def main() -> str:
        future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(future.set_result, "here")

        async def work() -> str:
            return await future

        return await outcome(work())

    assert asyncio.run(main()) == "here"


def test_a_strand_may_let_the_others_have_a_turn() -> None:
    async def main() -> list[str]:
        said: list[str] = []

        async def work() -> None:
            said.append("before")
            await asyncio.sleep(0)
            said.append("after")

        done = outcome(work())
        said.append("between")
        await done
        return said

    assert asyncio.run(main()) == ["before", "between", "after"]


def test_throwing_calls_off_the_future_that_was_awaited() -> None:
    async def main() -> bool:
        future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        ends: list[BaseException | None] = []

        async def work() -> None:
            await future

        strand(work(), ends).throw(asyncio.CancelledError())
        return future.cancelled()

    assert asyncio.run(main())


@pytest.mark.parametrize("waits_again", [False, True], ids=["and ends", "and waits again"])
def test_a_strand_that_was_thrown_at_is_not_woken_by_what_it_had_waited_for(waits_again: bool) -> None:
    async def main() -> None:
        future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        bell, ends, woken = Bell(), list[BaseException | None](), list[str]()
        error = ValueError("enough")

        async def work() -> None:
            try:
                await future
            finally:
                if waits_again:
                    await bell
                    woken.append("by the bell")

        waiting = strand(work(), ends)
        # From here on the event loop has the wake-up in its queue, and nobody can take it out again.
        future.set_result("just now")
        waiting.throw(error)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert woken == []
        assert ends == ([] if waits_again else [error])
        bell.ring()
        assert ends == [error]

    asyncio.run(main())


def test_ring_soon_wakes_from_a_fresh_stack() -> None:
    async def main() -> list[str]:
        bell, said, done = Bell(), list[str](), asyncio.Event()

        async def work() -> None:
            await bell
            said.append("woken")
            done.set()

        spawn(work(), "sleeper")
        bell.ring_soon()
        said.append("rung")
        await done.wait()
        return said

    assert asyncio.run(main()) == ["rung", "woken"]


def test_what_a_spawned_strand_raises_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def work() -> None:
        raise ValueError("nobody asked")

    async def main() -> None:
        spawn(work(), "the worker")

    with caplog.at_level(logging.ERROR):
        asyncio.run(main())
    assert "the worker failed: nobody asked" in caplog.text


def test_what_is_done_now_and_then_is_done_until_the_end_and_survives_a_failure(
    caplog: pytest.LogCaptureFixture,
) -> None:
    turns: list[int] = []

    def act() -> None:
        turns.append(len(turns))
        if len(turns) == 1:
            raise ValueError("a bug")

    asyncio.run(asyncio.wait_for(every(0.0, act, "the rounds", until=lambda: len(turns) == 3), 5))
    assert turns == [0, 1, 2]
    assert caplog.text.count("the rounds: a turn failed") == 1


def test_what_is_repeated_is_done_until_it_is_stopped_and_not_at_once() -> None:
    async def main() -> list[int]:
        done, turns = asyncio.Event(), list[int]()

        def act() -> None:
            turns.append(len(turns))
            if len(turns) == 3:
                repeat.stop()
                asyncio.get_running_loop().call_later(0.01, done.set)

        repeat = Repeat(0.001, act)
        assert turns == []
        await done.wait()
        return turns

    assert asyncio.run(asyncio.wait_for(main(), 5)) == [0, 1, 2]


def test_what_is_repeated_goes_on_after_a_failure_and_may_be_stopped_before_its_first_turn() -> None:
    async def main() -> int:
        failures: list[object] = []
        loop, again, turns = asyncio.get_running_loop(), asyncio.Event(), list[int]()
        loop.set_exception_handler(lambda _loop, context: failures.append(context["exception"]))

        def act() -> None:
            turns.append(1)
            if len(turns) == 1:
                raise ValueError("a bug")
            again.set()

        never = Repeat(0.0, lambda: turns.append(100))
        never.stop()
        repeat = Repeat(0.0, act)
        await again.wait()
        repeat.stop()
        return len(failures)

    assert asyncio.run(asyncio.wait_for(main(), 5)) == 1


def test_outcome_hands_on_results_errors_and_cancellations() -> None:
    async def fine() -> int:
        return 7

    async def broken() -> int:
        raise KeyError("x")

    async def cancelled() -> int:
        raise asyncio.CancelledError

    async def main() -> None:
        assert await outcome(fine()) == 7
        with pytest.raises(KeyError):
            await outcome(broken())
        with pytest.raises(asyncio.CancelledError):
            await outcome(cancelled())

    asyncio.run(main())


def test_a_thousand_hand_overs_do_not_make_a_deep_stack() -> None:
    async def main() -> int:
        count = 3000
        bells = [Bell() for _ in range(count)]
        woken: list[int] = []
        done = asyncio.Event()

        async def link(number: int) -> None:
            await bells[number]
            woken.append(number)
            if number + 1 < count:
                bells[number + 1].ring_soon()
            else:
                done.set()

        for number in range(count):
            spawn(link(number), f"link {number}")
        bells[0].ring_soon()
        await done.wait()
        return len(woken)

    assert asyncio.run(main()) == 3000
