"""The one screen that a start prints: what runs, where, with which models, and what to type next."""

from __future__ import annotations

import shlex
from datetime import date
from pathlib import Path

import corral
from corral.catalogue import Catalogue, Model
from corral.drivers import clock, key_file_store
from corral.drivers.listening import is_everywhere
from corral.formats import key_file
from corral.formats.size import amount
from corral.settings import Settings

NAMES_MAX = 12
INVITATION = "Try it:"
INVITATION_WITHOUT_KEY = "Try it, with a key of yours in CORRAL_KEY:"
KEY_OF_YOURS = "$CORRAL_KEY"


def screen(settings: Settings, catalogue: Catalogue, port: int, hardware: str) -> str:
    server = settings.server
    health = server.health_port if server.health_port != server.port else port
    host = in_url(server.host or "0.0.0.0")
    scheme = scheme_of(settings)
    rows = [
        ("gateway", f"{scheme}://{host}:{port}"),
        ("health", f"{scheme if health == port else 'http'}://{host}:{health}/ping"),
        ("models", models_line(catalogue, settings.paths.models)),
        ("hardware", hardware),
        ("engine", str(settings.paths.llama_server or "none found: run `make engine`")),
        ("keys", keys_line(settings)),
        ("logs", str(settings.logs.directory)),
    ]
    lines = [f"Corral {corral.__version__} is listening.", ""]
    lines += [f"  {name:<9} {value}" for name, value in rows]
    model = first_chat_model(catalogue)
    if model is not None:
        lines += ["", *try_it(settings, port, model.name)]
    return "\n" + "\n".join(lines) + "\n"


def scheme_of(settings: Settings) -> str:
    return "http" if settings.server.tls_cert_file is None else "https"


def in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def models_line(catalogue: Catalogue, folder: Path) -> str:
    models = list(catalogue.models.values())
    if not models:
        return f"none yet: copy a .gguf file into {folder} and start again"
    shown = ", ".join(f"{model.name} ({amount(model.size_bytes)})" for model in models[:NAMES_MAX])
    more = len(models) - NAMES_MAX
    return shown + (f" and {more} more" if more > 0 else "")


def keys_line(settings: Settings) -> str:
    if not settings.access.enabled:
        return "not needed: AUTH_ENABLED is off"
    return str(settings.access.keys_file)


def first_chat_model(catalogue: Catalogue) -> Model | None:
    return next((model for model in catalogue.models.values() if not model.embedding), None)


def base_url(settings: Settings, host: str | None, port: int) -> str:
    """How somebody on this machine reaches what listens there."""
    place = "localhost" if is_everywhere(host) else in_url(str(host))
    return f"{scheme_of(settings)}://{place}:{port}"


def try_it(settings: Settings, port: int, model: str) -> list[str]:
    """A command to paste. It reads the key from its file, so that no screen or scroll-back holds a secret."""
    invitation, key = INVITATION, ""
    if settings.access.enabled:
        file = settings.access.keys_file
        number = line_of_a_key(file, clock.today())
        key = f"$(sed -n {number}p {shlex.quote(str(file))} | cut -d: -f2 | tr -d '[:space:]')"
        if number is None:
            invitation, key = INVITATION_WITHOUT_KEY, KEY_OF_YOURS
    return [invitation, "", *chat_command(base_url(settings, settings.server.host, port), model, key)]


def chat_command(base: str, model: str, key: str) -> list[str]:
    """A first chat. `key` is what a shell makes the key of: empty, where none is needed."""
    auth = [f"  {authorization(key)} \\"] if key else []
    body = f'{{"model": "{model}", "stream": true, "messages": [{{"role": "user", "content": "Hello!"}}]}}'
    return [f"  curl -N {base}/v1/chat/completions \\", *auth, f"  -d '{body}'"]


def models_command(base: str, key: str) -> list[str]:
    """Which models there are for this key."""
    return [f"  curl {base}/v1/models" + (f" {authorization(key)}" if key else "")]


def authorization(key: str) -> str:
    return f'-H "Authorization: Bearer {key}"'


def line_of_a_key(file: Path, today: date) -> int | None:
    """The line of the first key that stands there in full, is in force, and may use any model."""
    try:
        text = key_file_store.read_text(file)
        rejected = {problem.line_number for problem in key_file.parse(text).problems}
    except (OSError, key_file.KeyFileError):
        return None
    for number, line in enumerate(text.split("\n"), start=1):
        for record in key_file.parse(line).keys:
            unusable = number in rejected or key_file.has_expired(record.expires, today)
            is_digest = line.split(":")[1].strip().startswith(key_file.DIGEST_PREFIX)
            if record.models == key_file.ALL_MODELS and not unusable and not is_digest:
                return number
    return None
