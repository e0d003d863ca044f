#!/usr/bin/env bash
# Make a virtual environment with the one package that Corral uses at run time.
#
#   scripts/make_venv.sh .venv                    with the first Python in PATH that will do
#   PYTHON=python3.12 scripts/make_venv.sh .venv  with that one
#
# Python 3.11 or newer will do. An environment that is there already and still works is kept.
set -euo pipefail

venv=${1:?usage: scripts/make_venv.sh DIRECTORY}
requirements=$(dirname "$0")/../requirements.txt

say() { printf '\033[1m[python]\033[0m %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

# A name in PATH is no proof: version managers put names there that run nothing.
will_do() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

find_python() {
    local name
    for name in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
        if will_do "$name"; then
            echo "$name"
            return
        fi
    done
    if [ -n "${PYTHON:-}" ]; then
        die "PYTHON is $PYTHON, which is not a Python 3.11 or newer. Name another one, or leave PYTHON unset."
    fi
    die "no Python 3.11 or newer is in PATH. Install one (on Debian and Ubuntu: apt-get install python3 python3-venv), or name one: make run PYTHON=/path/to/python3"
}

if ! will_do "$venv/bin/python"; then
    python=$(find_python)
    "$python" -c 'import ensurepip, venv' 2>/dev/null \
        || die "$python cannot make virtual environments. On Debian and Ubuntu: apt-get install python3-venv"
    say "making $venv with $("$python" --version)"
    "$python" -m venv --clear "$venv"
fi
say "installing what $(basename "$requirements") lists"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$requirements" \
    || die "the installation failed: pip says why above. It needs a package registry, this once."
