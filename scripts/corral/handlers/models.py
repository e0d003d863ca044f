"""What models there are, as OpenAI's clients ask for it. Looking at them never loads one."""

from __future__ import annotations

from urllib.parse import unquote

from corral.catalogue import Model
from corral.formats import openai
from corral.handlers.call import Call
from corral.handlers.gate import Gate
from corral.handlers.replies import send_json

PREFIX = "/v1/models/"


async def list_models(gate: Gate, call: Call) -> None:
    principal = gate.authenticate(call)
    gate.admit(call, principal)
    models = gate.permitted(principal)
    default = gate.settings.default_model
    # A key does not even learn the name of a model that it may not use.
    known = default if any(model.name == default for model in models) else None
    send_json(call, openai.model_list([card(gate, model) for model in models], known))


async def show_model(gate: Gate, call: Call) -> None:
    principal = gate.authenticate(call)
    gate.admit(call, principal)
    name = name_in(call.exchange.head.path)
    send_json(call, openai.model_object(card(gate, gate.choose_model(name, principal))))


def name_in(path: str, action: str = "") -> str:
    """The model that a path names, before what is to be done with it. Percent-decoded once."""
    return unquote(path.partition("/models/")[2].removesuffix(action))


def card(gate: Gate, model: Model) -> openai.ModelCard:
    return openai.ModelCard(
        name=model.name,
        created=model.modified_at,
        n_ctx=model.n_ctx,
        state=gate.fleet.state(model.name).value,
        aliases=model.aliases,
        embedding=model.embedding,
    )
