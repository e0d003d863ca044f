"""The one screen that a start prints: what runs, where, with which models, and what to type next."""

from __future__ import annotations

from pathlib import Path

import corral
from corral.catalogue import Catalogue, Model
from corral.settings import Settings

NAMES_MAX = 12
GIB = 1024**3
MIB = 1024**2


def screen(settings: Settings, catalogue: Catalogue, port: int, hardware: str) -> str:
    server = settings.server
    health = server.health_port if server.health_port != server.port else port
    host = server.host or "0.0.0.0"
    rows = [
        ("gateway", f"http://{host}:{port}"),
        ("health", f"http://{host}:{health}/ping"),
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
        lines += ["", "Try it:", "", curl(settings, port, model.name)]
    return "\n" + "\n".join(lines) + "\n"


def models_line(catalogue: Catalogue, folder: Path) -> str:
    models = list(catalogue.models.values())
    if not models:
        return f"none yet: copy a .gguf file into {folder} and start again"
    shown = ", ".join(f"{model.name} ({size(model.size_bytes)})" for model in models[:NAMES_MAX])
    more = len(models) - NAMES_MAX
    return shown + (f" and {more} more" if more > 0 else "")


def size(size_bytes: int) -> str:
    return f"{size_bytes / GIB:.1f} GiB" if size_bytes >= GIB else f"{size_bytes / MIB:.1f} MiB"


def keys_line(settings: Settings) -> str:
    if not settings.access.enabled:
        return "not needed: AUTH_ENABLED is off"
    return str(settings.access.keys_file)


def first_chat_model(catalogue: Catalogue) -> Model | None:
    return next((model for model in catalogue.models.values() if not model.embedding), None)


def curl(settings: Settings, port: int, model: str) -> str:
    """A line to paste. It reads the key from its file, so that no screen or scroll-back holds a secret."""
    file = settings.access.keys_file
    key = f"$(grep -m1 '^[^#]*:' '{file}' | cut -d: -f2)"
    auth = f'  -H "Authorization: Bearer {key}" \\\n' if settings.access.enabled else ""
    body = f'{{"model": "{model}", "stream": true, "messages": [{{"role": "user", "content": "Hello!"}}]}}'
    return f"  curl -N http://localhost:{port}/v1/chat/completions \\\n{auth}  -d '{body}'"
