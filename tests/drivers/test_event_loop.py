"""Our event loop is asyncio's in all that asyncio promises, and calls whoever watches a socket directly."""

from __future__ import annotations

import asyncio
import os
import selectors
import signal
import socket
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, NamedTuple

import pytest

from corral.drivers import clock
from corral.drivers.event_loop import (
    READABLE,
    WRITABLE,
    AsyncioWatcher,
    EventLoop,
    Selector,
    new_event_loop,
    watcher_of,
)


def run(work: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=EventLoop) as runner:
        runner.run(asyncio.wait_for(work, 10))


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        yield ours, theirs


def test_this_system_gets_our_own() -> None:
    loop = new_event_loop()
    loop.close()
    assert isinstance(loop, EventLoop)


# As any loop --------------------------------------------------------------------------------------


def test_timers_come_in_their_order_and_not_early() -> None:
    async def work() -> None:
        loop = asyncio.get_running_loop()
        came: list[str] = []
        began_at = clock.monotonic()
        loop.call_later(0.03, came.append, "third")
        loop.call_later(0.01, came.append, "second")
        loop.call_soon(came.append, "first")
        await asyncio.sleep(0.05)
        assert came == ["first", "second", "third"]
        assert clock.monotonic() - began_at >= 0.05

    run(work())


def test_threads_signals_and_child_streams_are_heard() -> None:
    async def work() -> None:
        loop = asyncio.get_running_loop()
        heard = asyncio.Event()
        loop.add_signal_handler(signal.SIGUSR1, heard.set)
        os.kill(os.getpid(), signal.SIGUSR1)
        await heard.wait()
        loop.remove_signal_handler(signal.SIGUSR1)
        assert await asyncio.to_thread(threading.get_ident) != threading.get_ident()
        reader, writer = await asyncio.open_connection(sock=(both := socket.socketpair())[0])
        both[1].sendall(b"hello")
        assert await reader.readexactly(5) == b"hello"
        writer.close()
        await writer.wait_closed()
        both[1].close()

    run(work())


# Watching -----------------------------------------------------------------------------------------


def test_who_watches_is_called_while_there_is_something(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = ends

    async def work() -> None:
        watcher = watcher_of(asyncio.get_running_loop())
        came = asyncio.Event()
        seen: list[int] = []

        def on_ready(events: int) -> None:
            seen.append(events)
            ours.recv(100)
            came.set()

        watcher.watch(ours.fileno(), READABLE, on_ready)
        theirs.send(b"x")
        await came.wait()
        assert seen == [READABLE]
        watcher.watch(ours.fileno(), READABLE | WRITABLE, on_ready)
        theirs.send(b"x")
        came.clear()
        await came.wait()
        assert seen[1] & WRITABLE
        watcher.watch(ours.fileno(), 0, on_ready)
        watcher.watch(ours.fileno(), 0, on_ready)
        theirs.send(b"x")
        await asyncio.sleep(0.01)
        assert len(seen) == 2

    run(work())


def test_a_turn_that_is_asked_for_from_within_a_call_is_not_waited_for(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = ends

    async def work() -> None:
        loop = asyncio.get_running_loop()
        watcher = watcher_of(loop)

        def ask_for(turn: Callable[[asyncio.Event], object], done: asyncio.Event) -> None:
            def on_ready(_events: int) -> None:
                ours.recv(9)
                turn(done)

            watcher.watch(ours.fileno(), READABLE, on_ready)

        turns: list[Callable[[asyncio.Event], object]] = [
            lambda done: loop.call_soon(done.set),
            lambda done: loop.call_later(0.001, done.set),
        ]
        for turn in turns:
            done = asyncio.Event()
            ask_for(turn, done)
            theirs.send(b"x")
            await asyncio.wait_for(done.wait(), 5)
            watcher.watch(ours.fileno(), 0, lambda _events: None)

    run(work())


class Passer(NamedTuple):
    """A traveller that does as the test says."""

    take: Callable[[bytes], None]
    leave: Callable[[], None]


def test_all_that_is_ready_is_read_before_any_of_it_is_worked_on_and_sent_after_all_of_it() -> None:
    order: list[str] = []

    async def work() -> None:
        watcher = watcher_of(asyncio.get_running_loop())
        pairs = [socket.socketpair() for _ in range(2)]
        done = asyncio.Event()

        def watch(name: str, ours: socket.socket) -> None:
            def on_ready(_events: int) -> None:
                order.append(f"{name} is read")
                watcher.arrived.append((Passer(take, leave), ours.recv(9)))

            def take(data: bytes) -> None:
                assert watcher.gathers
                order.append(f"{name} takes {data.decode()}")
                watcher.leaving.append(Passer(take, leave))

            def leave() -> None:
                assert not watcher.gathers
                order.append(f"{name} leaves")
                if order.count("a leaves") == order.count("b leaves") == 1:
                    asyncio.get_running_loop().call_soon(done.set)

            watcher.watch(ours.fileno(), READABLE, on_ready)

        for name, (ours, theirs) in zip("ab", pairs, strict=True):
            watch(name, ours)
            theirs.send(b"it")
        await done.wait()
        for both in pairs:
            watcher.watch(both[0].fileno(), 0, lambda _events: None)
            for each in both:
                each.close()

    run(work())
    assert [line.partition(" ")[2] for line in order] == [
        *["is read"] * 2,
        *["takes it"] * 2,
        *["leaves"] * 2,
    ]


def test_who_fails_is_logged_and_costs_nobody_else_anything(caplog: pytest.LogCaptureFixture) -> None:
    async def work() -> None:
        watcher = watcher_of(asyncio.get_running_loop())
        pairs = [socket.socketpair() for _ in range(2)]
        ended: list[str] = []

        def fail(*_anything: object) -> None:
            raise ZeroDivisionError

        def take(_data: bytes) -> None:
            watcher.leaving.extend([Passer(fail, fail), Passer(fail, leave)])

        def leave() -> None:
            ended.append("left")
            asyncio.get_running_loop().call_soon(done.set)

        done = asyncio.Event()
        for ours, theirs in pairs:

            def on_ready(_events: int, ours: socket.socket = ours) -> None:
                ours.recv(9)
                failing, well = Passer(fail, fail), Passer(take, leave)
                watcher.arrived += [(failing, b""), (well, b"")]
                fail()

            watcher.watch(ours.fileno(), READABLE, on_ready)
            theirs.send(b"x")
        await done.wait()
        assert ended == ["left"] * 2
        for both in pairs:
            watcher.watch(both[0].fileno(), 0, fail)
            for each in both:
                each.close()

    run(work())
    assert len([record for record in caplog.records if record.exc_info]) == 6


def test_what_is_alone_in_its_turn_is_not_gathered(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends

    async def work() -> None:
        watcher = watcher_of(asyncio.get_running_loop())
        seen: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        watcher.watch(ours.fileno(), READABLE, lambda _events: seen.set_result(watcher.gathers))
        theirs.send(b"x")
        assert await seen is False
        watcher.watch(ours.fileno(), 0, lambda _events: None)

    run(work())


def test_any_other_loop_gives_the_same_by_its_own_means(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = ends

    async def work() -> None:
        watcher = watcher_of(asyncio.get_running_loop())
        assert isinstance(watcher, AsyncioWatcher)
        came = asyncio.Event()
        watcher.watch(ours.fileno(), READABLE | WRITABLE, lambda _events: came.set())
        await came.wait()
        ours.setblocking(True)
        watcher.watch(ours.fileno(), READABLE, lambda _events: came.set() if ours.recv(9) else None)
        came.clear()
        theirs.send(b"x")
        await came.wait()
        watcher.watch(ours.fileno(), 0, lambda _events: None)

    asyncio.run(asyncio.wait_for(work(), 10))


def test_a_watcher_of_another_loop_is_not_kept() -> None:
    first, second = asyncio.new_event_loop(), asyncio.new_event_loop()
    try:
        before = watcher_of(first)
        assert watcher_of(first) is before
        assert watcher_of(second) is not before
    finally:
        first.close()
        second.close()


# As any selector ----------------------------------------------------------------------------------


def test_the_selector_does_what_selectors_do(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    with Selector() as selector:
        key = selector.register(ours, selectors.EVENT_READ, "data")
        assert selector.get_key(ours) == key == selector.get_map()[ours.fileno()]
        with pytest.raises(KeyError, match="registered already"):
            selector.register(ours, selectors.EVENT_READ)
        assert selector.select(0) == []
        assert selector.select(0.001) == []
        theirs.send(b"x")
        assert selector.select(None) == [(key, selectors.EVENT_READ)]
        both = selector.modify(ours, selectors.EVENT_READ | selectors.EVENT_WRITE, "new")
        assert selector.select(1) == [(both, selectors.EVENT_READ | selectors.EVENT_WRITE)]
        selector.unregister(ours)
        with pytest.raises(KeyError, match="not registered"):
            selector.get_key(ours)
