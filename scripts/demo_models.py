#!/usr/bin/env python3
"""Write two tiny models, so that there is something to ask before anything is downloaded.

`demo.gguf` recites a text and `demo-embed.gguf` embeds one; the real llama-server runs both. They are
written into the directory of models, or into the one that is named, and only if no model is there yet:
who has models of their own does not want these in the list.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from corral import settings
from corral.drivers import model_files
from corral.errors import SettingsError
from corral.formats import demo_models

MODELS = {"demo.gguf": demo_models.demo, "demo-embed.gguf": demo_models.demo_embed}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Write the demo models, if there are no models yet.")
    parser.add_argument("directory", type=Path, nargs="?", help="default: where the gateway looks for models")
    arguments = parser.parse_args(argv)
    try:
        directory = arguments.directory or settings.load().paths.models
        if model_files.find(directory, []):
            print(f"{directory} has models already: no demo models written")
            return 0
        directory.mkdir(parents=True, exist_ok=True)
        for name, make in MODELS.items():
            print(f"wrote {write(directory / name, make())}")
    except (SettingsError, OSError) as error:
        print(f"demo_models.py: {error}", file=sys.stderr)
        return 1
    return 0


def write(path: Path, data: bytes) -> str:
    """All of the file or none of it: a gateway may be looking at the directory."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    draft.write_bytes(data)
    draft.replace(path)
    return f"{path} ({len(data) // 1024} KiB)"


if __name__ == "__main__":
    sys.exit(main())
