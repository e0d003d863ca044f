#!/usr/bin/env bash
# Build llama-server once, from a pinned and hash-checked source, into the user's cache.
#
# The source is the PyPI source distribution of llama-cpp-python, because it vendors llama.cpp with
# its server and because pip checks its hash before a byte of it is used. The result is one static
# binary, kept under a name made of that hash: a new pin builds anew, an old one is found again.
#
#   scripts/build_engine.sh            build for the CPU
#   CUDA=1 scripts/build_engine.sh     build for NVIDIA GPUs (needs nvcc)
#
# The last line on stdout is the path of the binary; everything else goes to stderr.
set -euo pipefail

VERSION=0.3.36
SHA256=832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e
PYTHON=${PYTHON:-python3}

say() { printf '\033[1m[engine]\033[0m %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

flavour=cpu
if [ "${CUDA:-0}" = 1 ]; then
    command -v nvcc >/dev/null || die "CUDA=1 asks for a GPU build, but nvcc is not in PATH. Install the CUDA toolkit, or leave CUDA unset."
    flavour=cuda
fi
cache=${XDG_CACHE_HOME:-$HOME/.cache}/corral
home=$cache/engine-${SHA256:0:12}-$flavour
binary=$home/llama-server
if [ -x "$binary" ]; then
    say "already built: $binary"
    echo "$binary"
    exit 0
fi

command -v c++ >/dev/null || command -v g++ >/dev/null || command -v clang++ >/dev/null \
    || die "a C++ compiler is needed (on Debian: apt-get install g++), or set LLAMA_SERVER_PATH to a llama-server you have"

mkdir -p "$cache"
work=$(mktemp -d "$cache/build.XXXXXX")
trap 'rm -rf "$work"' EXIT
say "llama-server is not here yet. Building it once (about 4 minutes on 2 cores) into $home"

"$PYTHON" -m venv "$work/venv"
missing=()
command -v cmake >/dev/null || missing+=(cmake)
command -v ninja >/dev/null || missing+=(ninja)
if [ ${#missing[@]} -gt 0 ]; then
    say "installing the build tools that are missing: ${missing[*]}"
    "$work/venv/bin/pip" install --quiet --disable-pip-version-check "${missing[@]}" >&2
    export PATH="$work/venv/bin:$PATH"
fi

say "1/4 downloading the source, version $VERSION"
echo "llama-cpp-python==$VERSION --hash=sha256:$SHA256" >"$work/pin.txt"
"$work/venv/bin/pip" download --quiet --disable-pip-version-check --no-deps \
    --no-binary llama-cpp-python --require-hashes -r "$work/pin.txt" -d "$work/sdist" >&2 \
    || die "the download failed: pip says why above"

say "2/4 unpacking"
tar -xzf "$work/sdist/llama_cpp_python-$VERSION.tar.gz" -C "$work" --wildcards '*/vendor/llama.cpp/*'
source_dir=$(echo "$work"/*/vendor/llama.cpp)

say "3/4 configuring ($flavour)"
options=(-DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=OFF -DGGML_NATIVE=OFF -DLLAMA_OPENSSL=OFF
    -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_APP=OFF
    -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF)
[ "$flavour" = cuda ] && options+=(-DGGML_CUDA=ON)
if ! cmake -S "$source_dir" -B "$work/build" -G Ninja "${options[@]}" >"$work/configure.log" 2>&1; then
    tail -n 30 "$work/configure.log" >&2
    die "cmake refused the configuration: its last lines are above"
fi

say "4/4 compiling"
targets=(llama-server)
# The memory planner comes with newer sources only; where it exists it makes predictions exact.
# (No pipe into grep -q: it stops reading at the first match, and the writer's SIGPIPE would fail the pipe.)
known_targets=$(ninja -C "$work/build" -t targets all)
if grep -q '^llama-fit-params:' <<<"$known_targets"; then
    targets+=(llama-fit-params)
fi
NINJA_STATUS="[engine %p %es] " ninja -C "$work/build" "${targets[@]}" >&2

# Moved into place by one rename, so that a build that was interrupted never looks like a finished one.
mkdir "$work/done"
for target in "${targets[@]}"; do
    strip -o "$work/done/$target" "$work/build/bin/$target"
done
"$work/done/llama-server" --version >&2
rm -rf "$home"
mv "$work/done" "$home"
say "done: $binary"
echo "$binary"
