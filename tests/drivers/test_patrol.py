from __future__ import annotations

import asyncio

import pytest

from corral.drivers.patrol import Patrol


class Watched:
    def __init__(self, patrol: Patrol, leave_after: int) -> None:
        self.patrol = patrol
        self.leave_after = leave_after
        self.seen: list[float] = []
        self.done = asyncio.Event()

    def check(self, now: float) -> None:
        self.seen.append(now)
        if len(self.seen) == self.leave_after:
            self.patrol.leave(self)
            self.done.set()


def test_members_are_looked_at_until_they_leave() -> None:
    async def main() -> None:
        patrol = Patrol(tick_s=0.001)
        short, long = Watched(patrol, 1), Watched(patrol, 4)
        patrol.join(short)
        patrol.join(long)
        await asyncio.wait_for(long.done.wait(), 5)
        assert len(short.seen) == 1
        assert long.seen == sorted(long.seen)
        assert len(patrol) == 0

    asyncio.run(main())


def test_a_patrol_that_came_to_rest_starts_again_with_its_next_member() -> None:
    async def main() -> None:
        patrol = Patrol(tick_s=0.001)
        for _ in range(2):
            member = Watched(patrol, 1)
            patrol.join(member)
            await asyncio.wait_for(member.done.wait(), 5)

    asyncio.run(main())


def test_a_member_that_fails_leaves_and_the_others_are_looked_at_as_before(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Faulty:
        def check(self, now: float) -> None:
            raise OSError("no such socket")

    async def main() -> None:
        patrol = Patrol(tick_s=0.001)
        patrol.join(Faulty())
        member = Watched(patrol, 3)
        patrol.join(member)
        await asyncio.wait_for(member.done.wait(), 5)
        assert len(patrol) == 0

    asyncio.run(main())
    assert caplog.text.count("could not be looked at") == 1
