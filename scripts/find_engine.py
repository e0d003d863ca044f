#!/usr/bin/env python3
"""Say which llama-server the gateway would run: its path, or exit code 3 if there is none to be found.

A setting that names a llama-server which isn't there is another matter: exit code 1, and why.
"""

from __future__ import annotations

import sys

from corral import settings
from corral.errors import SettingsError

NOT_FOUND_EXIT = 3


def main() -> int:
    try:
        engine = settings.load().paths.llama_server
    except SettingsError as error:
        print(f"find_engine.py: {error}", file=sys.stderr)
        return 1
    if engine is None:
        return NOT_FOUND_EXIT
    print(engine)
    return 0


if __name__ == "__main__":
    sys.exit(main())
