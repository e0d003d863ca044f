#!/usr/bin/env python3
"""Make, list, rotate and remove API keys: the keys file without an editor.

A new key goes to standard output, alone and only once, so that a script can catch it; all that is for
people goes to standard error. The gateway notices a changed file by itself.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import NamedTuple

from corral import settings, welcome
from corral.drivers import clock, key_file_store, model_store
from corral.errors import SettingsError
from corral.formats import key_file, table
from corral.formats.key_file import KeyFileError, KeyRecord
from corral.settings import Settings

FIRST_KEY_ID = "first"
FIRST_OPTIONS = "role=admin"
# Enough of a digest to tell keys apart, and nothing to guess them by.
FINGERPRINT_CHARS = 8


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    try:
        chosen = settings.load()
    except SettingsError as error:
        print(f"keys.py: {error}", file=sys.stderr)
        return 1
    path = arguments.file if "file" in arguments else chosen.access.keys_file
    try:
        match arguments.command:
            case "generate":
                key = generate(path, arguments.name, arguments.options, in_clear=not arguments.hashed)
                _show(key, arguments.name, path, welcome.models_command(_base(chosen), key))
            case "rotate":
                key = rotate(path, arguments.name)
                _show(key, arguments.name, path, welcome.models_command(_base(chosen), key))
            case "ensure":
                _ensure(path, chosen, arguments.at)
            case "remove":
                key_file_store.edit(path, lambda text: key_file.remove_key(text, arguments.name))
            case "list":
                _list(path, clock.today())
    except KeyFileError as error:
        print(f"keys.py: {path}: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"keys.py: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    # Taken before the command and after it; suppressed, so that its absence in one place does not
    # undo its presence in the other.
    file = argparse.ArgumentParser(add_help=False)
    file_help = "the keys file (default: the one that the gateway reads)"
    file.add_argument("--file", type=Path, default=argparse.SUPPRESS, help=file_help)
    name = argparse.ArgumentParser(add_help=False)
    name.add_argument("name", metavar="NAME", help="the key_id by which logs and limits know the key")

    parser = argparse.ArgumentParser(prog="keys.py", description=__doc__, parents=[file])
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    new = commands.add_parser("generate", parents=[file, name], help="make a key and print it, this once")
    options_help = "limits and rights, such as rpm=60,models=qwen-*,role=admin (default: none)"
    new.add_argument("options", metavar="OPTIONS", nargs="?", default="", help=options_help)
    new.add_argument("--hashed", action="store_true", help="store only the key's SHA-256 in the file")
    commands.add_parser("list", parents=[file], help="show what every key may do, and no key")
    commands.add_parser("remove", parents=[file, name], help="take a key away")
    commands.add_parser("rotate", parents=[file, name], help="put a new key in the place of an old one")
    first = commands.add_parser(
        "ensure", parents=[file], help="make a first key, an admin's, if none is in force"
    )
    at_help = "where the gateway is reached, if that is not where it listens, and say how to ask it there"
    first.add_argument("--at", metavar="HOST:PORT", type=_address, help=at_help)
    return parser


class Address(NamedTuple):
    host: str
    port: int


def _address(text: str) -> Address:
    """As `docker compose port` tells of a port that it has published: 0.0.0.0:8000, and :::8000 for IPv6."""
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise argparse.ArgumentTypeError(f"it must read HOST:PORT, not {text!r}")
    return Address(host.strip("[]"), int(port))


def generate(path: Path, name: str, options: str, *, in_clear: bool) -> str:
    key = key_file_store.new_key()
    stored_key = key if in_clear else key_file.hashed(key)
    key_file_store.edit(path, lambda text: key_file.add_key(text, name, stored_key, options))
    return key


def rotate(path: Path, name: str) -> str:
    key = key_file_store.new_key()
    key_file_store.edit(path, lambda text: key_file.replace_key(text, name, key))
    return key


def ensure(path: Path, today: date) -> str | None:
    """The first key, if the file had none in force. Looked up and added under one lock."""
    key = key_file_store.new_key()

    def add_if_none(text: str) -> str:
        if any(not key_file.has_expired(record.expires, today) for record in key_file.parse(text).keys):
            return text
        return key_file.add_key(text, FIRST_KEY_ID, key, FIRST_OPTIONS)

    return key if key_file_store.edit(path, add_if_none) else None


def _ensure(path: Path, chosen: Settings, at: Address | None) -> None:
    """A gateway that is started next says itself how to ask it; one in a container knows only its inside."""
    access = chosen.access
    needed = access.enabled and access.env_key is None
    if needed and (first := ensure(path, clock.today())) is not None:
        _show(first, FIRST_KEY_ID, path, _first_question(chosen, _base(chosen, at), first))
    elif at is not None:
        invitation, key = welcome.INVITATION_WITHOUT_KEY, welcome.KEY_OF_YOURS
        if not access.enabled:
            invitation, key = welcome.INVITATION, ""
        print("\n".join([invitation, "", *_first_question(chosen, _base(chosen, at), key)]), file=sys.stderr)


def _show(key: str, name: str, path: Path, command: Sequence[str]) -> None:
    print(f"The key of {name}, in {path}. It is shown only now:", file=sys.stderr)
    # In the order that a terminal shows, although the two streams are buffered apart.
    print(key, flush=True)
    print("\n".join(command), file=sys.stderr)


def _base(chosen: Settings, at: Address | None = None) -> str:
    server = chosen.server
    host, port = (server.host, server.port) if at is None else at
    return welcome.base_url(chosen, host, port)


def _first_question(chosen: Settings, base: str, key: str) -> list[str]:
    """A chat, if there is somebody to talk to."""
    model = welcome.first_chat_model(model_store.catalogue(chosen))
    if model is None:
        return welcome.models_command(base, key)
    return welcome.chat_command(base, model.name, key)


def _list(path: Path, today: date) -> None:
    contents = key_file.parse(key_file_store.read_text(path))
    if contents.keys:
        header = ("KEY_ID", "SHA256", "ROLE", "STATE", "RPM", "PRIORITY", "TOKENS/MONTH", "EXPIRES", "MODELS")
        rows = [header, *(_row(record, today) for record in contents.keys)]
        print("\n".join(table.lines(rows)))
    else:
        print("No API keys found.")
    for line_number, message in contents.problems:
        print(f"{path}, line {line_number} rejected: {message}.", file=sys.stderr)


def _row(record: KeyRecord, today: date) -> tuple[str, ...]:
    rate = record.requests_per_minute
    return (
        record.key_id,
        record.digest.hex()[:FINGERPRINT_CHARS],
        record.role.value,
        "expired" if key_file.has_expired(record.expires, today) else "active",
        "default" if rate is None else str(rate or "unlimited"),
        "any" if record.priority is None else record.priority.name.lower(),
        "unlimited" if record.tokens_per_month is None else str(record.tokens_per_month),
        "never" if record.expires is None else record.expires.isoformat(),
        "|".join(record.models),
    )


if __name__ == "__main__":
    sys.exit(main())
