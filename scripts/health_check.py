#!/usr/bin/env python3
"""Ask how the gateway is, as a container engine does every few seconds: exit code 0 is healthy, 1 is not.

It looks where the settings say, and so finds what the gateway has found: variables, `.env`, the config file
(one that is named by CONFIG_PATH; what a gateway was told with -c, nobody else knows). Wherever it is called
from, these files are looked for where entrypoint.sh goes. The question is /ping on the health port, which
never counts as traffic, and 204, while models load, is healthy too.
"""

from __future__ import annotations

import http.client
import ssl
import sys
from pathlib import Path

from corral import settings
from corral.drivers.listening import is_everywhere
from corral.errors import SettingsError
from corral.settings import Server

# Who asks allows three seconds, and Python's own start is among them.
ANSWER_TIMEOUT_S = 1.5
PLACE = Path(__file__).absolute().parent.parent


def main() -> int:
    try:
        status = ask(settings.load(cwd=PLACE).server)
    except (SettingsError, OSError, http.client.HTTPException) as error:
        print(f"health check: {str(error).strip()}", file=sys.stderr)
        return 1
    if status >= 300:
        print(f"health check: /ping is answered {status}", file=sys.stderr)
        return 1
    return 0


def ask(server: Server) -> int:
    """The status of /ping."""
    host = "127.0.0.1" if is_everywhere(server.host) else str(server.host)
    connection = http.client.HTTPConnection(host, server.health_port, timeout=ANSWER_TIMEOUT_S)
    # Where both ports are one, the gateway itself answers there.
    if server.tls_cert_file is not None and server.health_port == server.port:
        connection = http.client.HTTPSConnection(
            host, server.health_port, timeout=ANSWER_TIMEOUT_S, context=any_certificate()
        )
    connection.request("GET", "/ping")
    return connection.getresponse().status


def any_certificate() -> ssl.SSLContext:
    """The certificate is for the names that clients use, and nothing secret is said here."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


if __name__ == "__main__":
    sys.exit(main())
