"""Questions about memory: what a load would come to, and how everything stands. Nothing is changed here."""

from __future__ import annotations

from typing import Any

from corral.handlers.call import Call
from corral.handlers.gate import Gate
from corral.handlers.orders import read_order
from corral.handlers.replies import send_json
from corral.policy.memory_report import plan_document, vram_document
from corral.policy.plan import Plan


async def plan(gate: Gate, call: Call) -> None:
    """A dry run of a load: of the model that the body names, or of all that the key may use."""
    principal, intent = await read_order(gate, call, if_empty=b"{}")
    if intent.model is None:
        plans = await gate.fleet.plan([model.name for model in gate.permitted(principal)])
        send_json(call, {"plans": [_document(gate, each) for each in plans]})
    else:
        call.model = gate.choose_model(intent.model, principal).name
        [only] = await gate.fleet.plan([call.model])
        send_json(call, _document(gate, only))


def _document(gate: Gate, plan: Plan) -> dict[str, Any]:
    """The plan, the model's state, and what is wrong with its file."""
    state = gate.fleet.state(plan.model).value
    problem = gate.catalogue.models[plan.model].problem
    return {**plan_document(plan), "status": state, "problem": problem}


async def vram(gate: Gate, call: Call) -> None:
    """How the memory stands, for a monitor: it costs nothing against the key's rate, and wakes nobody."""
    principal = gate.authenticate(call)
    states = {model.name: gate.fleet.state(model.name).value for model in gate.permitted(principal)}
    send_json(call, vram_document(gate.fleet.memory.report(), states))
