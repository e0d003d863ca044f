"""The herd in people's own hands: load a model, eject it, forgive it its failures, and see how all are.

What is done to a model counts against the key's rate, as any request does; looking does not, because
dashboards look often and looking costs nothing. Whoever may not use a model does not see it here either.
"""

from __future__ import annotations

from corral import errors
from corral.catalogue import Model
from corral.drivers import clock, tasks
from corral.fleet import Onlooker
from corral.formats import openai, sse
from corral.formats.status import (
    HEARTBEAT_S,
    ServerState,
    View,
    full_status,
    model_entry,
    model_update,
    server_state,
    view_body,
)
from corral.handlers.call import Call
from corral.handlers.gate import Gate
from corral.handlers.models import name_in
from corral.handlers.orders import read_order
from corral.handlers.replies import send_json
from corral.policy.authentication import Principal, permits
from corral.policy.lifecycle import RESIDENT

ERROR_CHARS_MAX = 200


# To do something ---------------------------------------------------------------------------------


async def load(gate: Gate, call: Call) -> None:
    """Bring a model up, and answer when it is ready. The load goes on if the client does not wait."""
    model = await named_in_body(gate, call)
    address = await tasks.outcome(gate.fleet.load(model.name))
    send_json(call, {"status": "success", "model": model.name, "port": address.port})


async def eject(gate: Gate, call: Call) -> None:
    """Take a model off the machine, and answer when it is off."""
    try:
        model = await named_in_body(gate, call)
        with gate.fleet.watch() as onlooker:
            if not gate.fleet.eject(model.name):
                state = gate.fleet.state(model.name).value
                raise errors.NotFound(f"The model {model.name!r} does not run: it is {state}.", param="model")
            await until_gone(onlooker, model.name)
    except errors.NotFound as error:
        call.error_code = error.code
        send_json(call, {"status": "not_found", **openai.error_object(error)}, error.status)
        return
    message = f"{model.name} is unloaded."
    send_json(call, {"status": "success", "model_ejected": model.name, "message": message})


async def until_gone(onlooker: Onlooker, name: str) -> None:
    """Until a model has left the machine, be it for a moment: who waits for it brings it back at once."""
    while not any(name == model and status.state not in RESIDENT for model, status in onlooker.take()):
        await onlooker.news()


async def reset(gate: Gate, call: Call) -> None:
    """Forgive a model its failures, so that the next request tries it again."""
    principal = gate.authenticate(call)
    gate.admit(call, principal)
    model = named_in_path(gate, call, principal, "/reset")
    forgiven = gate.fleet.reset(model.name)
    if forgiven is None:
        state = gate.fleet.state(model.name).value
        answer = {"message": f"{model.name} had not failed: it is {state}.", "previous_error": None}
    else:
        count = forgiven.deaths.count
        had = f"Had {count} failed attempt{'' if count == 1 else 's'}."
        message = f"{model.name} is tried again when it is needed. {had}"
        answer = {"message": message, "previous_error": forgiven.last_words}
    send_json(call, {"status": "success", "model": model.name, **answer})


async def named_in_body(gate: Gate, call: Call) -> Model:
    principal, intent = await read_order(gate, call)
    model = gate.choose_model(intent.model, principal)
    call.model = model.name
    return model


def named_in_path(gate: Gate, call: Call, principal: Principal, action: str) -> Model:
    model = gate.choose_model(name_in(call.exchange.head.path, action), principal)
    call.model = model.name
    return model


# To look -----------------------------------------------------------------------------------------


async def failed(gate: Gate, call: Call) -> None:
    """The models that were given up, or wait for their next try."""
    principal = gate.authenticate(call)
    models = [
        {"model": each.name, "attempts": each.deaths.count, "error": each.last_words[:ERROR_CHARS_MAX]}
        for each in gate.fleet.failed()
        if permits(principal, each.name)
    ]
    send_json(call, {"failed_models": models} | ({} if models else {"message": "No model has failed."}))


async def model_status(gate: Gate, call: Call) -> None:
    model = named_in_path(gate, call, gate.authenticate(call), "/status")
    send_json(call, {"model": model.name, **model_entry(gate.fleet.statuses()[model.name])})


async def all_statuses(gate: Gate, call: Call) -> None:
    send_json(call, view_body(view(gate, gate.authenticate(call))))


def view(gate: Gate, principal: Principal) -> View:
    """The gate and its models, as far as this principal may know them."""
    document = gate.status()
    models = {name: status for name, status in document.models.items() if permits(principal, name)}
    return View(server_state(document), models)


async def status_stream(gate: Gate, call: Call) -> None:
    """Every state as it comes, from all of them now to the end of the gateway."""
    exchange = call.exchange
    gate.authenticate(call, key_in_query=True)
    exchange.start(200, sse.HEADERS, lines=call.lines)
    exchange.is_event_stream = True
    if exchange.head.method != "HEAD":
        with gate.fleet.watch() as onlooker:
            await report(gate, call, onlooker)
    exchange.finish()


async def report(gate: Gate, call: Call, onlooker: Onlooker) -> None:
    """Everything at once, then what is new, and last that the gateway stops."""
    exchange = call.exchange
    said: ServerState | None = None
    heartbeat_at = clock.monotonic() + HEARTBEAT_S
    while True:
        # Asked every time: a key that is taken away takes the streams along that it has opened.
        principal = gate.authenticate(call, key_in_query=True)
        for name, status in onlooker.take():
            if permits(principal, name):
                exchange.write(sse.event(*model_update(name, status)))
        now = view(gate, principal)
        if now.server is not said:
            exchange.write(sse.event(*full_status(now)))
            said = now.server
        if clock.monotonic() >= heartbeat_at:
            exchange.write(sse.event("heartbeat", {}))
            heartbeat_at = clock.monotonic() + HEARTBEAT_S
        await exchange.drain()
        if said is ServerState.DRAINING:
            return
        await onlooker.news(within_s=heartbeat_at - clock.monotonic())
