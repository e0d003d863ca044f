#!/usr/bin/env python3
"""Start the health server: `python3 scripts/health_server.py`.

The gateway starts it with all it needs to know. Started by a person, it asks the settings for what is
missing, and only then: reading them takes longer than everything else, and a probe may be waiting.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys

# The gateway starts us with -I, which leaves the folder of this file out of the path.
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from corral import health
from corral.drivers import status_file
from corral.errors import SettingsError


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description="Answers health probes from the gateway's status file.")
    parser.add_argument("--host", help="address to listen on (default: every interface)")
    parser.add_argument("--port", type=int, help="default: PORT_HEALTH")
    parser.add_argument("--status-file", help="default: status.json in RUNTIME_DIR")
    parser.add_argument("--path", help="one more path that answers as /ping does; default: HEALTH_CHECK_PATH")
    parser.add_argument("--gateway-pid", type=int, help="end when this process ends")
    options = parser.parse_args(arguments)
    try:
        if None in (options.port, options.status_file, options.path):
            complete(options)
        asyncio.run(
            health.serve(options.host, options.port, options.status_file, options.path, options.gateway_pid)
        )
    except SettingsError as error:
        print(f"health server: {error}", file=sys.stderr)
        return 1
    return 0


def complete(options: argparse.Namespace) -> None:
    """Fill in from the settings what was not given."""
    from corral import settings

    config = settings.load()
    options.host = config.server.host if options.host is None else options.host
    options.port = config.server.health_port if options.port is None else options.port
    options.status_file = options.status_file or str(config.paths.runtime / status_file.FILE_NAME)
    options.path = options.path or config.server.health_check_path


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
