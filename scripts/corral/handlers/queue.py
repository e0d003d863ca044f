"""How the queues stand: for operators in figures, and for a client where its own requests are.

Whoever may not use a model does not see it here either, and the requests of others only an admin sees.
"""

from __future__ import annotations

from typing import Any

from corral.fleet import Waiter
from corral.formats.key_file import Role
from corral.handlers.call import Call
from corral.handlers.gate import Gate
from corral.handlers.replies import send_json
from corral.handlers.wishes import queue_key
from corral.policy.scheduler import QueueStats, Ticket


async def stats(gate: Gate, call: Call) -> None:
    principal = gate.authenticate(call)
    own_key, sees_all = queue_key(call, principal), principal.role is Role.ADMIN

    def may_see(ticket: Ticket) -> bool:
        return sees_all or ticket.key_id == own_key

    queue = gate.fleet.queue
    names = [model.name for model in gate.permitted(principal)]
    figures = {name: queue.stats(name) for name in names}
    waiters = [waiter for name in names for waiter in queue.waiters(name, may_see)]
    summary = {
        "total_queued": sum(each.waiting for each in figures.values()),
        "total_processing": sum(each.running for each in figures.values()),
        "total_processed": sum(each.served for each in figures.values()),
        "total_rejected": sum(each.refused for each in figures.values()),
    }
    per_model = {name: of_model(each) for name, each in figures.items()}
    waiting = [of_waiter(waiter) for waiter in waiters]
    send_json(call, {"summary": summary, "per_model": per_model, "waiting": waiting})


def of_model(queue: QueueStats) -> dict[str, Any]:
    return {
        "queue_length": queue.waiting,
        "total_requests": queue.arrived,
        "total_processed": queue.served,
        "total_rejected": queue.refused,
        "current_processing": queue.running,
        "processing": queue.running > 0,
        "slots": queue.slots,
        "oldest_wait_s": round(queue.oldest_wait_s, 3),
        "estimated_wait_s": round(queue.next_wait_s, 3),
    }


def of_waiter(waiter: Waiter) -> dict[str, Any]:
    ticket = waiter.ticket
    return {
        "request_id": ticket.wish.request_id,
        "model": ticket.model,
        "key_id": ticket.key_id,
        "priority": ticket.priority.name.lower(),
        "position": waiter.position,
        "waited_s": round(waiter.waited_s, 3),
        "estimated_wait_s": round(waiter.still_s, 3),
    }
