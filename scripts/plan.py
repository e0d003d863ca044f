#!/usr/bin/env python3
"""Say what fits where, before anything is started: `python3 scripts/plan.py`.

Reads the settings, the headers of the models and the memory of this machine, and asks the guard that
the gateway would ask. No gateway need run, and none is disturbed. What is in use at the moment counts as
taken, a running gateway's models too; `--gpus` imagines empty cards instead.

Exit code 0: every model fits by itself. 1: one does not, or can't be used. 2: there is no answer.
"""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from corral import settings
from corral.catalogue import Catalogue, Model
from corral.drivers import model_store
from corral.drivers.gpu_probe import GpuProbe
from corral.drivers.learned_store import LearnedStore
from corral.errors import SettingsError
from corral.fleet.devices import read_gpus, read_host
from corral.fleet.engines import plain_command
from corral.fleet.footprints import measure_out
from corral.formats import size, table
from corral.policy.commitments import Account, Device
from corral.policy.footprint import AnyFootprint
from corral.policy.memory_report import account_document, plan_document
from corral.policy.placement import HOST
from corral.policy.plan import Company, EmptyMachine, Plan, Verdict
from corral.settings import Settings

WIDTH = 100
NAME_CHARS_MAX = 34
NOTHING = "–"
OTHER = "OTHER: a process without its model, on each GPU and in main memory; projectors; draft models."


class Machine(NamedTuple):
    devices: tuple[Device, ...]
    cards: Mapping[str, str]  # what each GPU is, by id


class Answer(NamedTuple):
    """All that there is to tell."""

    machine: Machine
    accounts: tuple[Account, ...]
    models: tuple[Model, ...]
    plans: Mapping[str, Plan]  # of the models that can be used
    companies: tuple[Company, ...]
    models_max: int
    folder: Path  # where models are looked for

    @property
    def misfits(self) -> list[Plan]:
        return [plan for plan in self.plans.values() if plan.verdict is not Verdict.LOAD]

    @property
    def broken(self) -> list[Model]:
        return [model for model in self.models if model.problem is not None]


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    try:
        config = settings.load()
        catalogue = model_store.catalogue(config)
        models = chosen(catalogue, arguments.model)
    except (SettingsError, LookupError) as error:
        print(f"plan.py: {error.args[0]}", file=sys.stderr)
        return 2
    for warning in (*config.warnings, *catalogue.warnings):
        print(f"plan.py: {warning}", file=sys.stderr)
    if arguments.context is not None:
        models = [with_context(model, arguments.context) for model in models]
    answer = answer_for(config, models, imagined(arguments.gpus) if arguments.gpus else real(config))
    print(json.dumps(document(answer), indent=2) if arguments.json else "\n".join(page(answer)))
    return 1 if answer.misfits or answer.broken else 0


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="plan.py",
        description="Say what fits where, before anything is started. What is in use now counts as taken.",
    )
    made.add_argument("--model", metavar="NAME", help="this model only")
    made.add_argument("--context", metavar="TOKENS", type=tokens, help="as if this were every model's")
    gpus_help = "as if these cards were here, and empty: 24GiB,24GiB"
    made.add_argument("--gpus", metavar="SIZES", type=sizes, help=gpus_help)
    made.add_argument("--json", action="store_true", help="the same for programs")
    return made


def tokens(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 1 << 24:
        raise argparse.ArgumentTypeError(f"{text} is no number of tokens from 1 to {1 << 24}")
    return int(text)


def sizes(text: str) -> list[int]:
    try:
        return [size.parse(word) for word in text.split(",")]
    except ValueError as error:
        problem = f"{error.args[0]!r} is no size: write 24GiB, or 24GiB,24GiB for two cards"
        raise argparse.ArgumentTypeError(problem) from None


# Asking -------------------------------------------------------------------------------------------


def chosen(catalogue: Catalogue, name: str | None) -> list[Model]:
    if name is None:
        return list(catalogue.models.values())
    model = catalogue.find(name)
    if model is None:
        raise LookupError(f"there is no model {name!r}. There is: {', '.join(catalogue.models) or 'none'}")
    return [model]


def with_context(model: Model, context: int) -> Model:
    """The model as if its settings said so; its own flags would win, so they are made to say it too."""
    flags = (*model.flags, "--ctx-size", str(context)) if "n_ctx" in model.in_flags else model.flags
    return replace(model, n_ctx=context, flags=flags)


def real(config: Settings) -> Machine:
    probe = GpuProbe.open() if config.herd.gpu_enabled else None
    cards = read_gpus(probe, config) if probe is not None else []
    gpus = [
        Device(card.uuid, number, card.total_bytes, card.used_bytes, {}) for number, card in enumerate(cards)
    ]
    return Machine((*gpus, read_host()), {card.uuid: card.name for card in cards})


def imagined(totals: Sequence[int]) -> Machine:
    gpus = [Device(f"imagined-{number}", number, total, 0, {}) for number, total in enumerate(totals)]
    return Machine((*gpus, read_host()), {gpu.id: "imagined" for gpu in gpus})


def answer_for(config: Settings, models: Sequence[Model], machine: Machine) -> Answer:
    herd = config.herd
    empty = EmptyMachine(machine.devices, herd.allocation_strategy, cpu_fallback=herd.cpu_fallback)
    footprints = measured_out(config, models, gpus=len(machine.devices) > 1)
    return Answer(
        machine=machine,
        accounts=empty.accounts,
        models=tuple(models),
        plans={name: empty.alone(name, footprint) for name, footprint in footprints.items()},
        companies=tuple(empty.together(footprints, herd.models_max)),
        models_max=herd.models_max,
        folder=config.paths.models,
    )


def measured_out(config: Settings, models: Sequence[Model], *, gpus: bool) -> dict[str, AnyFootprint]:
    """What each model takes that can be used; by what its loads have taken, where that is known."""
    file = config.paths.state / "corral.db"
    store = LearnedStore(file) if file.is_file() else None
    environment = settings.children_environment(config)
    try:
        return {
            model.name: measure_out(
                model,
                plain_command(model, config),
                environment,
                store.recall if store is not None else lambda _key: None,
                gpus=gpus,
                multiplier=config.herd.vram_multiplier,
            )
            for model in models
            if model.problem is None
        }
    finally:
        if store is not None:
            store.close()


# For programs -------------------------------------------------------------------------------------


def document(answer: Answer) -> dict[str, Any]:
    return {
        "devices": [
            {**account_document(account), "card": answer.machine.cards.get(account.id)}
            for account in answer.accounts
        ],
        "models": [
            {
                "model": model.name,
                "size_bytes": model.size_bytes,
                "problem": model.problem,
                **(plan_document(answer.plans[model.name]) if model.name in answer.plans else {}),
            }
            for model in answer.models
        ],
        "together": [
            {
                "models": list(company.placements),
                "devices": [account_document(account) for account in company.accounts],
            }
            for company in answer.companies
        ],
        "max_concurrent_models": answer.models_max,
        "all_fit": not answer.misfits and not answer.broken,
    }


# For people ---------------------------------------------------------------------------------------


def page(answer: Answer) -> Iterator[str]:
    """The lines of it."""
    yield from machine_table(answer)
    if not answer.models:
        yield from ("", *wrapped(f"There is no model yet: copy a .gguf file into {answer.folder}."))
    if answer.plans:
        yield from ("", "What each model takes, as predicted:", "", *needs_table(answer))
        yield from wrapped(OTHER)
        title = "Where each goes if it has the machine to itself, and what is set aside for it there:"
        yield from ("", title, "", *places_table(answer))
    if len(answer.plans) > 1:
        yield from together(answer)
    yield from remarks(answer)


def machine_table(answer: Answer) -> list[str]:
    rows: list[tuple[str, ...]] = [("DEVICE", "", "TOTAL", "IN USE", "MARGIN", "FREE")]
    for account in answer.accounts:
        card = answer.machine.cards.get(account.id, "")
        amounts = (account.total_bytes, account.used_bytes, account.margin_bytes, max(0, account.room_bytes))
        rows.append((account.name, card, *map(size.short, amounts)))
    return table.lines(rows, numbers=range(2, 6))


def needs_table(answer: Answer) -> list[str]:
    heads = ("MODEL", "FILE", "CONTEXT", "SLOTS", "WEIGHTS", "KV CACHE", "COMPUTE", "OTHER", "TOTAL")
    rows: list[tuple[str, ...]] = [heads]
    for model in answer.models:
        if (plan := answer.plans.get(model.name)) is not None:
            parts = plan.parts
            amounts: tuple[int, ...] = (parts.weights, parts.cache + parts.state, parts.compute)
            amounts += (parts.total - sum(amounts), parts.total)
            run = (f"{number:,}" if number else NOTHING for number in (plan.context_tokens, plan.slots))
            cells = (size.short(model.size_bytes), *run, *map(size.short, amounts))
            rows.append((short_name(model.name), *cells))
    return table.lines(rows, numbers=range(1, 9))


def places_table(answer: Answer) -> list[str]:
    devices = [account.id for account in answer.accounts]
    names = ["MEMORY" if account.id == HOST else account.name for account in answer.accounts]
    rows = [("MODEL", *names, "HOW", "BY")]
    for plan in answer.plans.values():
        taken = {share.device: size.short(share.bytes) for share in plan.shares}
        sources = dict.fromkeys(share.source.value for share in plan.shares)
        cells = [taken.get(device, NOTHING) for device in devices]
        rows.append((short_name(plan.model), *cells, how(plan), "/".join(sources)))
    return table.lines(rows, numbers=range(1, 1 + len(devices)))


def how(plan: Plan) -> str:
    placement = plan.placement
    if placement is None:
        return "does not fit"
    if not placement.gpus:
        return "on the CPU"
    if placement.layers < plan.layer_count:
        return f"{placement.layers} of {plan.layer_count} layers on GPUs"
    return "on one GPU" if len(placement.gpus) == 1 else f"on {len(placement.gpus)} GPUs"


def together(answer: Answer) -> Iterator[str]:
    """Sets of models, each with what it leaves."""
    limit = f"{answer.models_max} at a time (max_concurrent_models)"
    yield from ("", f"Which fit together, in this order and at most {limit}:", "")
    for number, company in enumerate(answer.companies, start=1):
        left = ", ".join(f"{each.name} {size.short(max(0, each.room_bytes))}" for each in company.accounts)
        yield from wrapped(f"{', '.join(company.placements)}. Free then: {left}.", f"{number}. ")


def remarks(answer: Answer) -> Iterator[str]:
    for model in answer.broken:
        yield from ("", *wrapped(f"{model.name} can't be used: {model.problem}."))
    for plan in answer.misfits:
        yield from ("", *wrapped(plan.message))
    for plan in answer.plans.values():
        if plan.placement is not None and plan.would_fit is not None and plan.would_fit.ways:
            yield from ("", *wrapped(f"{plan.model!r} is not all on GPUs. {plan.would_fit.text()}"))


def wrapped(text: str, bullet: str = "") -> list[str]:
    # Paths and flags stay whole, to be copied.
    wrapper = textwrap.TextWrapper(WIDTH, break_long_words=False, break_on_hyphens=False)
    wrapper.initial_indent, wrapper.subsequent_indent = bullet, " " * len(bullet)
    return wrapper.wrap(text)


def short_name(name: str) -> str:
    return name if len(name) <= NAME_CHARS_MAX else f"{name[: NAME_CHARS_MAX - 1]}…"


if __name__ == "__main__":
    sys.exit(main())
