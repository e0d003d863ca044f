#!/bin/sh
# What a container runs, and what runs the same way from a checkout.
#
# It only finds the place and a Python, and then becomes the gateway: with `exec` there is no shell in
# between, so signals arrive, orphans are reaped by whoever is process 1, and the exit code is the truth.
# Everything else is decided by the gateway itself, which also writes the boot log: where the data lie
# (DATA_DIR; else ./data, or the volume that is mounted), which config file counts, which models there are.
# Some platforms start an image with a word of their own, such as `serve`: the gateway passes over it.
set -eu

cd "$(dirname "$(readlink -f "$0")")"

# In the image PATH leads to the environment with the one package; in a checkout `make` has made one here.
python=python3
[ ! -x .venv/bin/python ] || python=.venv/bin/python

exec "$python" scripts/gateway.py "$@"
