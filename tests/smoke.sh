#!/usr/bin/env bash
# Is there smoke? Start everything as a newcomer would, with `make run`, in an empty data directory on
# free ports; ask from outside as a newcomer would, with curl; stop it; see that nothing is left.
set -euo pipefail
cd "$(dirname "$0")/.."

START_TIMEOUT_S=60
STOP_TIMEOUT_S=30

data=$(mktemp -d "${TMPDIR:-/tmp}/corral-smoke.XXXXXX")
log=$data/gateway.log
read -r GATEWAY_PORT PORT_HEALTH < <(.venv/bin/python - <<'PY'
import socket
listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
print(*(listener.getsockname()[1] for listener in listeners))
PY
)
export DATA_DIR=$data RUNTIME_DIR=$data/run GATEWAY_PORT PORT_HEALTH
gateway=http://127.0.0.1:$GATEWAY_PORT
health=http://127.0.0.1:$PORT_HEALTH
make_pid=

say() { printf '  \033[32m✓\033[0m %s\n' "$*"; }
die() { printf '  \033[31m✗\033[0m %s\n' "$*" >&2; [ ! -f "$log" ] || tail -n 30 "$log" >&2; exit 1; }

# Processes that our directory is named to, by pid. The words come from a pipe, so grep doesn't find itself.
left() { grep -alF -f <(printf %s "$data") /proc/[0-9]*/cmdline 2>/dev/null | cut -d/ -f3 | paste -sd' ' || true; }

clean_up() {
    [ -z "$make_pid" ] || kill -KILL -- "-$make_pid" 2>/dev/null || true
    rm -rf "$data"
}
trap clean_up EXIT

# Call a check until it holds, or give up.
wait_for() {
    local what=$1 deadline=$((SECONDS + $2))
    shift 2
    until "$@"; do
        [ "$SECONDS" -lt "$deadline" ] || die "$what: not within the time"
        sleep 0.05
    done
}
status() { curl -s -o /dev/null -m 5 -w '%{http_code}' "$1" || true; }
listening() { [ "$(status "$gateway/ping")" = 200 ] || { kill -0 "$make_pid" 2>/dev/null || die "it ended at once"; false; }; }
gone() { ! kill -0 "$make_pid" 2>/dev/null; }

# A process group of its own, so that Ctrl-C can be played: the terminal sends it to the whole group.
set -m
make --no-print-directory run >"$log" 2>&1 &
make_pid=$!
set +m
wait_for "the gateway listens" "$START_TIMEOUT_S" listening
say "the gateway listens on $gateway"

key=$(grep -m1 '^[^#]*:' "$data/api_keys.txt" | cut -d: -f2)
[ "$(status "$gateway/v1/models")" = 401 ] || die "/v1/models answered without a key"
say "nobody comes in without a key"

stream=$(curl -sN -m 30 "$gateway/v1/chat/completions" -H "Authorization: Bearer $key" \
    -d '{"model": "demo", "stream": true, "messages": [{"role": "user", "content": "Hello!"}]}')
[ "$(grep -c '^data: {' <<<"$stream")" -gt 10 ] || die "the chat came in few pieces, or none: $stream"
[ "$(grep '^data: ' <<<"$stream" | tail -n 1)" = 'data: [DONE]' ] || die "the chat has no end: $stream"
say "a chat is streamed, token by token, to its end"

embedding=$(curl -s -m 30 "$gateway/v1/embeddings" -H "Authorization: Bearer $key" \
    -d '{"model": "demo-embed", "input": "Hello!"}')
grep -q '"embedding":\[-\?[0-9]' <<<"${embedding//[[:space:]]/}" || die "no embedding came: $embedding"
say "a text is embedded"

[ "$(status "$health/ping")" = 200 ] || die "the health server says $(status "$health/ping")"
say "the health server says that all is well"

kill -INT -- "-$make_pid"
wait_for "everything stops" "$STOP_TIMEOUT_S" gone
# Make itself dies of Ctrl-C (128 + 2) whatever the gateway does, but a gateway that failed is told with ***.
code=0
wait "$make_pid" || code=$?
make_pid=
[ "$code" = 130 ] || die "Ctrl-C ended it with exit code $code"
! grep -qF '***' "$log" || die "the gateway did not end well"
[ -z "$(left)" ] || die "still running: $(left)"
[ "$(status "$health/ping")" = 000 ] || die "something still listens on the health port"
say "Ctrl-C stops it, and nothing is left"
