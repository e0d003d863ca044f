"""What must hold in every world, whatever happens in it. Whoever finds it broken says how.

    tickets    every request comes to one end; at the end nothing is held anywhere
    slots      no model runs more than it has slots, and nothing runs on one that is not ready; a free slot
               never stands beside somebody who could have it
    keys       no key runs more than it may
    classes    nobody is let through while somebody of a higher class waits
    fairness   between two keys that both have something waiting, the tokens served never drift apart by
               more than the requests in flight can account for
    patience   nobody waits longer than a bound that is computed from the world
    switching  no model in use makes way before its time
    memory     the rule of commitments, at every load

Classes and fairness are judged among requests that have not aged, of one model, whose keys run fewer than
they may. The oracles keep books of their own, from what the world tells them: they ask the scheduler
nothing but what an operator could see.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from corral.formats.status import ModelState
from corral.policy.lifecycle import RESIDENT
from corral.policy.scheduler import switching
from corral.policy.scheduler.pace import GENERATED_TOKENS_GUESS
from corral.policy.scheduler.ticket import cost
from tests.simulation.world import STOP_S, TICK_S, Job, Watch, World

# Rounding, and events of the same moment.
EPSILON_S = 1e-6


class Broken(AssertionError):
    """The policy has done something that it must never do."""


class Fairness:
    """Of one model and one class: how much each key was served, and since when each pair competes."""

    def __init__(self) -> None:
        self.served: dict[str, float] = defaultdict(float)
        self._head_start: dict[tuple[str, str], float] = {}

    def compete(self, keys: set[str]) -> None:
        """These keys, and no others, have something waiting now."""
        pairs = {(one, other) for one in keys for other in keys if one < other}
        self._head_start = {
            (one, other): self._head_start.get((one, other), self.served[one] - self.served[other])
            for one, other in pairs
        }

    def drift(self) -> float:
        """The most that any two have drifted apart since both compete."""
        return max(
            (
                abs(self.served[one] - self.served[other] - head_start)
                for (one, other), head_start in self._head_start.items()
            ),
            default=0.0,
        )


class Oracles(Watch):
    def begins(self, world: World) -> None:
        self.world = world
        self._waiting: dict[str, dict[Any, Job]] = {name: {} for name in world.specs}
        self._running: dict[str, set[Any]] = {name: set() for name in world.specs}
        self._by_key: dict[str, int] = defaultdict(int)
        self._ready_at: dict[str, float] = {}
        self._shares: dict[tuple[str, int], Fairness] = defaultdict(Fairness)
        self._over: set[Job] = set()
        arrivals = world._arrivals
        self._lines = 3 * len({arrival.key_id for arrival in arrivals})
        self._service_s = max((world.specs[each.model].service_s(each) for each in arrivals), default=0.0)
        # A request is charged what it costs, or what it was thought to before anything was known.
        lengths = (
            (each.prompt_tokens, max(each.generated_tokens, GENERATED_TOKENS_GUESS)) for each in arrivals
        )
        self._cost = max((cost(*each) for each in lengths), default=0.0)
        self._before: dict[Job, int] = {}

    def _demand(self, holds: bool, complaint: str) -> None:
        if not holds:
            raise Broken(f"at {self.world.now:.3f} s: {complaint}")

    # Requests ----------------------------------------------------------------------------------

    def arrived(self, job: Job) -> None:
        arrival = job.arrival
        waiting = self._waiting[arrival.model]
        waiting[job.ticket] = job
        same_line = (arrival.key_id, arrival.priority)
        self._before[job] = sum(
            (each.arrival.key_id, each.arrival.priority) == same_line for each in waiting.values()
        )

    def granted(self, job: Job) -> None:
        arrival, world = job.arrival, self.world
        model, ticket = arrival.model, job.ticket
        self._demand(world.lives[model].state is ModelState.READY, f"{model} serves and is not ready")
        self._demand(ticket in self._waiting[model], "somebody is let through twice, or never came")
        self._higher_class_first(job)
        self._service_is_fair(job)
        del self._waiting[model][ticket]
        self._running[model].add(ticket)
        self._by_key[arrival.key_id] += 1
        self._demand(len(self._running[model]) <= world.specs[model].slots, f"{model} has no free slot")
        limit = arrival.max_parallel
        self._demand(
            limit is None or self._by_key[arrival.key_id] <= limit, f"{arrival.key_id} runs too many"
        )
        timeout_s = world.terms.queue_timeout_s + 2 * TICK_S
        self._demand(job.wait_s <= timeout_s, "a request has waited beyond its deadline")
        if not any(world.troubles) and job.tries == 1:
            bound = self.bound_s(job)
            self._demand(job.wait_s <= bound, f"a request waited {job.wait_s:.1f} s, more than {bound:.1f} s")

    def departed(self, job: Job) -> None:
        model, ticket = job.arrival.model, job.ticket
        self._waiting[model].pop(ticket, None)
        if ticket in self._running[model]:
            self._running[model].remove(ticket)
            self._by_key[job.arrival.key_id] -= 1
        if job.outcome and job.over_at is not None:
            self._demand(job not in self._over, "a request has ended twice")
            self._over.add(job)

    # Order -------------------------------------------------------------------------------------

    def _is_free(self, job: Job) -> bool:
        """Whether its key may run one more."""
        limit = job.arrival.max_parallel
        return limit is None or self._by_key[job.arrival.key_id] < limit

    def _is_young(self, job: Job) -> bool:
        return self.world.now - job.arrival.at < self.world.terms.aging_s

    def _higher_class_first(self, job: Job) -> None:
        if not self._is_young(job):
            return
        for other in self._waiting[job.arrival.model].values():
            if other.arrival.priority < job.arrival.priority and self._is_free(other):
                self._demand(False, f"{job.arrival.priority.name} goes before {other.arrival.priority.name}")

    def _service_is_fair(self, job: Job) -> None:
        model = job.arrival.model
        self._note_who_competes(model)
        # Where it was served, not where it began: what has risen is charged among those it has risen to.
        share = self._shares[model, job.ticket.charged_to]
        share.served[job.arrival.key_id] += cost(job.arrival.prompt_tokens, job.arrival.generated_tokens)
        # Each key's charges differ from the truth by what runs and is only estimated, and one request
        # decides at a time: 2 (1 + slots) requests of the largest kind, for each of the two.
        most = 4 * (1 + self.world.specs[model].slots) * self._cost
        drift = share.drift()
        self._demand(
            drift <= most, f"two keys of {model} have drifted {drift:.0f} apart, more than {most:.0f}"
        )

    def _note_who_competes(self, model: str) -> None:
        jobs = self._waiting[model].values()
        for priority in (1, 2, 3):
            keys = {
                job.arrival.key_id
                for job in jobs
                if job.arrival.priority == priority and self._is_young(job) and self._is_free(job)
            }
            self._shares[model, priority].compete(keys)

    # Patience ----------------------------------------------------------------------------------

    def bound_s(self, job: Job) -> float:
        """How long this request may have to wait, whatever the others do.

        Its own key's requests before it go first, one by one. For each of them, and for it: it rises above
        every class; those that rose before it are served, no more than there are lines; and each time its
        model may have been sent away for each of the others.
        """
        world, terms = self.world, self.world.terms
        rise_s = terms.aging_s * int(job.arrival.priority)
        served_s = self._lines * self._service_s
        loads = sorted((spec.load_s for spec in world.specs.values()), reverse=True)
        price_s = sum(loads[:2])
        patience_s = min(switching.WORTH * price_s, switching.PATIENCE_SHARE * terms.queue_timeout_s)
        # While it is away: one of a lower class has to rise, and then somebody has to be patient.
        turn_s = 2 * terms.aging_s + patience_s + self._service_s + loads[0] + STOP_S + 2 * TICK_S
        others = len(world.specs) - 1
        at_once_s = loads[0] + STOP_S + 2 * TICK_S
        return at_once_s + self._before[job] * (rise_s + served_s + others * (turn_s + served_s))

    # Models ------------------------------------------------------------------------------------

    def loads(self, model: str) -> None:
        self.world.herd.check()
        resident = [name for name, life in self.world.lives.items() if life.state in RESIDENT]
        self._demand(model not in resident, f"{model} is loaded twice")
        self._demand(len(resident) < self.world.models_max, "too many models are loaded")

    def drained(self, model: str, reason: str) -> None:
        """A model in use makes way when its tenure is over and somebody has waited for long enough."""
        self._demand(reason == "eject" or not self.world.specs[model].pinned, f"{model} is pinned")
        waiting = [job for job in self._waiting[model].values() if self._is_free(job)]
        if reason != "room" or not waiting:
            return
        world = self.world
        highest = min(int(job.arrival.priority) for job in waiting)
        allowed = False
        for name, jobs in self._waiting.items():
            claiming = jobs.values()
            if name == model or world.lives[name].state is not ModelState.OFF or not claiming:
                continue
            patience_s = self._patience_s(
                model, name, min(job.arrival.priority for job in claiming) < highest
            )
            waited_s = world.now - min(job.arrival.at for job in claiming) + EPSILON_S
            stayed_s = world.now - world.lives[model].ready_at + EPSILON_S
            price_s = world.specs[model].load_s + world.specs[name].load_s
            longest_s = max(world.terms.min_residency_s, switching.TENURE_WORTH * price_s)
            tenure_s = min(patience_s, longest_s)
            allowed |= waited_s >= patience_s and stayed_s >= tenure_s
        self._demand(allowed, f"{model} makes way too early")

    def _patience_s(self, model: str, other: str, other_is_higher: bool) -> float:
        specs, terms = self.world.specs, self.world.terms
        worth = switching.WORTH_TO_HIGHER_CLASS if other_is_higher else switching.WORTH
        price_s = specs[model].load_s + specs[other].load_s
        return min(worth * price_s, switching.PATIENCE_SHARE * terms.queue_timeout_s)

    # Always ------------------------------------------------------------------------------------

    def happened(self) -> None:
        world = self.world
        for name, waiting in self._waiting.items():
            life = world.lives[name]
            self._demand(
                world.scheduler.depth(name) == len(waiting), f"{name}: somebody is lost in the queue"
            )
            running = len(self._running[name])
            self._demand(world.scheduler.running(name) == running, f"{name}: a slot is lost")
            if life.state is ModelState.READY and running < world.specs[name].slots:
                able = any(self._is_free(job) for job in waiting.values())
                self._demand(not able, f"{name} has a free slot, and somebody waits who could have it")

    def ends(self) -> None:
        world = self.world
        self._demand(all(job.outcome for job in world.jobs), "a request has come to no end")
        self._demand(not world.scheduler.anybody_waits, "somebody waits still")
        world.unload_everything()
        world.herd.check_empty()
