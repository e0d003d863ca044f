"""A rival: the streaming proxy that one writes with FastAPI and httpx. `fastapi_httpx.py PORT BACKEND_PORT`.

Without arguments it only sees whether what it needs is installed.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse
from starlette.background import BackgroundTask

HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "host"}


def passed_on(headers: object) -> dict[str, str]:
    return {name: value for name, value in dict(headers).items() if name.lower() not in HOP_BY_HOP}  # type: ignore[call-overload]


def application(backend_port: int) -> FastAPI:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        base = f"http://127.0.0.1:{backend_port}"
        async with httpx.AsyncClient(base_url=base, limits=limits, timeout=None) as client:
            app.state.client = client
            yield

    app = FastAPI(lifespan=lifespan)

    async def proxy(path: str, request: Request) -> Response:
        client: httpx.AsyncClient = request.app.state.client
        asked = client.build_request(
            request.method, f"/{path}", headers=passed_on(request.headers), content=await request.body()
        )
        answer = await client.send(asked, stream=True)
        headers = passed_on(answer.headers)
        if answer.headers.get("transfer-encoding") != "chunked":
            body = await answer.aread()
            await answer.aclose()
            return Response(body, answer.status_code, headers)
        return StreamingResponse(
            answer.aiter_raw(), answer.status_code, headers, background=BackgroundTask(answer.aclose)
        )

    app.add_api_route("/{path:path}", proxy, methods=["GET", "POST"])
    return app


if __name__ == "__main__" and len(sys.argv) == 3:
    uvicorn.run(
        application(int(sys.argv[2])), host="127.0.0.1", port=int(sys.argv[1]), access_log=False, backlog=4096
    )
