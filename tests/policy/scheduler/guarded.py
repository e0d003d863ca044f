"""What tests of the scheduler share: a guard that says what the test says, and short names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from corral import errors
from corral.formats.status import ModelState
from corral.policy.guard import Decision, Impossible, Place
from corral.policy.placement import Kind, Placement
from corral.policy.scheduler import Action, ModelLimits, Scheduler, Terms, Ticket, Wish

SOMEWHERE = Placement(Kind.CPU, 0, (), (), 1)
ONE_SLOT = ModelLimits(slots=1, pinned=False, queue_max=10)
TERMS = Terms(aging_s=30.0, min_residency_s=20.0, queue_timeout_s=300.0)


class Guarded:
    """A guard that says what the test says; without a word it has room for everything."""

    def __init__(self) -> None:
        self.says: dict[str, Decision] = {}
        self.asked: list[tuple[str, list[str], list[str]]] = []
        self.reserved: list[str] = []
        self.told_to_go: list[str] = []
        self.had_gone_by_then: list[str] = []  # when it was asked last
        self.to_go: tuple[str, ...] = ()

    def decide(self, model: str, idle: Sequence[str], busy: Sequence[str]) -> Decision:
        self.asked.append((model, list(idle), list(busy)))
        self.had_gone_by_then = list(self.told_to_go)
        return self.says.get(model, Place(SOMEWHERE))

    def reserve(self, model: str, placement: Placement) -> None:
        assert placement is SOMEWHERE
        self.reserved.append(model)

    def stopping(self, model: str) -> None:
        self.told_to_go.append(model)

    def relieve(self, idle: Sequence[str]) -> Sequence[str]:
        return [name for name in idle if name in self.to_go]

    def refusal(self, impossible: Impossible) -> errors.CorralError:
        return errors.InsufficientVram(f"no room for {impossible.model}")


def guarded(guard: Guarded, models_max: int = 9, terms: Terms = TERMS) -> Scheduler:
    return Scheduler({"a": ONE_SLOT, "b": ONE_SLOT, "c": ONE_SLOT}, models_max, guard, terms, now=0.0)


def scheduler(models_max: int = 2, **models: ModelLimits) -> Scheduler:
    models = models or {"a": ONE_SLOT, "b": ONE_SLOT, "c": ONE_SLOT}
    return Scheduler(models, models_max, Guarded(), TERMS, now=0.0)


def ready(herd: Scheduler, model: str, now: float = 0.0) -> list[Action]:
    return herd.model_is(model, ModelState.READY, now)


def a_ticket(model: str, now: float, **wishes: Any) -> Ticket:
    wish = Wish(model, f"{model}@{now}", **wishes)
    return Ticket(wish, now, now + wish.patience_s(TERMS.queue_timeout_s))


def arrive(herd: Scheduler, model: str, now: float, **wishes: Any) -> tuple[Ticket, list[Action]]:
    ticket = a_ticket(model, now, **wishes)
    return ticket, herd.arrive(ticket, now)
