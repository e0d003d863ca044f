#!/usr/bin/env python3
"""Start the gateway: `python3 scripts/gateway.py [-c CONFIG]`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from corral import app

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="One OpenAI-compatible gate in front of llama-servers.")
    parser.add_argument("-c", "--config", type=Path, help="the config file (default: ./config.json)")
    # Some platforms start an image with an argument of their own, such as `serve`.
    arguments, _ignored = parser.parse_known_args()
    sys.exit(app.main(arguments.config))
