#!/bin/sh
# What a container runs, and what runs the same way from a checkout.
#
# It only finds the place and a Python, and then becomes the gateway: with `exec` there is no shell in
# between, so signals arrive, orphans are reaped by whoever is process 1, and the exit code is the truth.
# Everything else is decided by the gateway itself, which also writes the boot log: where the data lie
# (DATA_DIR; else ./data, or the volume that is mounted), which config file counts, which models there are.
# Some platforms start an image with a word of their own, such as `serve`: the gateway passes over it.
#
# A platform may also change its mind at once, and process 1 does not even notice a signal that it has no
# handler for. So this has one, and Python is started with these signals held back: they wait until the gateway
# has handlers of its own, 20 ms later (measured). What remains is a millisecond each in which this shell and
# `env` come up, and where `env` can't hold signals back (before coreutils 8.31) Python's own start.
set -eu
trap 'exit 0' TERM INT
trap '' HUP  # asks for keys to be read again; Python is started like that, and listens when it has keys

cd "$(dirname "$(readlink -f "$0")")"

# In the image PATH leads to the environment with the one package; in a checkout `make` has made one here.
python=python3
[ ! -x .venv/bin/python ] || python=.venv/bin/python

set -- "$python" scripts/gateway.py "$@"
held_back=--block-signal=TERM,INT
! env "$held_back" true 2>/dev/null || set -- env "$held_back" "$@"
exec "$@"
