"""A rival: the streaming proxy that one writes with aiohttp. `python aiohttp_proxy.py PORT BACKEND_PORT`.

Without arguments it only sees whether what it needs is installed.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator

from aiohttp import ClientSession, ClientTimeout, TCPConnector, web

HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "host"}
BACKEND = web.AppKey("backend", str)
SESSION = web.AppKey("session", ClientSession)


def passed_on(headers: object) -> dict[str, str]:
    return {name: value for name, value in dict(headers).items() if name.lower() not in HOP_BY_HOP}  # type: ignore[call-overload]


async def proxy(request: web.Request) -> web.StreamResponse:
    app = request.app
    url = app[BACKEND] + str(request.rel_url)
    body = await request.read()
    async with app[SESSION].request(
        request.method, url, headers=passed_on(request.headers), data=body
    ) as answer:
        if answer.headers.get("Transfer-Encoding") != "chunked":
            return web.Response(
                status=answer.status, headers=passed_on(answer.headers), body=await answer.read()
            )
        response = web.StreamResponse(status=answer.status, headers=passed_on(answer.headers))
        await response.prepare(request)
        async for chunk in answer.content.iter_any():
            await response.write(chunk)
        await response.write_eof()
        return response


async def session(app: web.Application) -> AsyncIterator[None]:
    limits = TCPConnector(limit=0)
    async with ClientSession(
        connector=limits, timeout=ClientTimeout(total=None), auto_decompress=False
    ) as own:
        app[SESSION] = own
        yield


def main(port: int, backend_port: int) -> None:
    app = web.Application(client_max_size=16 * 2**20)
    app[BACKEND] = f"http://127.0.0.1:{backend_port}"
    app.cleanup_ctx.append(session)
    app.router.add_route("*", "/{path:.*}", proxy)
    web.run_app(app, host="127.0.0.1", port=port, access_log=None, print=None, backlog=4096)


if __name__ == "__main__" and len(sys.argv) == 3:
    main(int(sys.argv[1]), int(sys.argv[2]))
