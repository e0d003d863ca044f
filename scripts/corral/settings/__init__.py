"""The only reader of the environment, of `.env` and of the config file; every limit and default.

`load()` returns frozen values or raises one SettingsError of one line. The rest of Corral takes what it
needs from those values and never looks at the environment itself.

    declarations   the table: every name, kind, default and meaning
    kinds          what a value may be        names      what a model may be called
    sources        .env and JSON, read        places     where things lie when nobody says
    reading        a row's value, by precedence
    models, flags, devices                    loading    puts it all together
    values         the result                 children   what child processes inherit
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from corral.settings.declarations import (
    DECLARATIONS,
    UNSUPPORTED_KEYS,
    UNSUPPORTED_VARIABLES,
    Declaration,
)
from corral.settings.loading import load_from
from corral.settings.models import make_model
from corral.settings.names import MODEL_NAME_PATTERN, model_name_from_file, model_name_problem
from corral.settings.places import find_llama_server
from corral.settings.values import (
    Access,
    Allocation,
    Herd,
    LogFormat,
    Logs,
    ModelSettings,
    Paths,
    Server,
    Settings,
    SingleModel,
)

__all__ = [
    "DECLARATIONS",
    "MODEL_NAME_PATTERN",
    "UNSUPPORTED_KEYS",
    "UNSUPPORTED_VARIABLES",
    "Access",
    "Allocation",
    "Declaration",
    "Herd",
    "LogFormat",
    "Logs",
    "ModelSettings",
    "Paths",
    "Server",
    "Settings",
    "SingleModel",
    "children_environment",
    "find_llama_server",
    "load",
    "make_model",
    "model_name_from_file",
    "model_name_problem",
]


def load(
    environ: Mapping[str, str] | None = None,
    *,
    cwd: Path | None = None,
    config_path: Path | None = None,
) -> Settings:
    """Read everything anew. `environ` is this process's own unless given; `config_path` is -c/--config."""
    return load_from(
        dict(os.environ if environ is None else environ), (cwd or Path()).absolute(), config_path
    )


def children_environment(settings: Settings) -> dict[str, str]:
    """The environment to start a child process with: no secrets, and none of Corral's own variables."""
    return dict(settings.inherited_environment)
