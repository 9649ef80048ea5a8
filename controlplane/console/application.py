"""The console over HTTP: its pages, calls of the API, and watches as server-sent events.

Calls are `POST /api/call/SERVICE/METHOD` and `POST /api/watch/SERVICE/METHOD` with the request as
JSON. A watch is `text/event-stream`, read with fetch: an EventSource could send neither the token
nor the header that protects against other sites. A failure within one is an event `failure`; its
end is an event `end`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from importlib import resources
from typing import Any, Final

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from controlplane.console import desk
from controlplane.console.calls import PACKAGE, Calls
from controlplane.console.failures import failure
from controlplane.console.inventory import Inventory
from stairlib.model.errors import InvalidRequestError, LimitError, UnavailableError
from stairlib.rpc import access
from stairlib.rpc.access import ANYBODY, Caller, Role
from stairlib.rpc.tokens import TokenBook

# Watches of all browsers together.
WATCHES_MAX: Final = 200
_KINDS: Final = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
_SEEN: Final = (
    "DiskService/ListDisks", "ReplacementService/ListReplacements", "FleetService/ListDownstairs",
)  # fmt: skip


class Console:
    """`tokens` None: nobody is asked who they are, as at the port of gRPC in plain text."""

    def __init__(self, calls: Calls, tokens: TokenBook | None) -> None:
        self._calls = calls
        self._tokens = tokens
        self._inventory = Inventory(calls, ANYBODY)
        self._watches = 0
        self._stopping = asyncio.Event()
        self.app = Starlette(
            routes=[
                Route("/api/me", self._answered(self._me), methods=["POST"]),
                Route("/api/call/{name:path}", self._answered(self._call), methods=["POST"]),
                Route("/api/vcr/check", self._answered(self._check), methods=["POST"]),
                Route("/api/vcr/compare", self._answered(self._compare), methods=["POST"]),
                Route("/api/watch/{name:path}", self._watch, methods=["POST"]),
                *_assets(),
            ]
        )

    async def stop(self) -> None:
        """Ends all watches, so that they do not hold up a stop."""
        self._stopping.set()
        await self._inventory.stop()

    def _caller(self, request: Request) -> Caller:
        if self._tokens is None:
            return ANYBODY
        return self._tokens.caller(request.headers.get("authorization"))

    def _answered(
        self, ask: Callable[[Caller, Request, object], Awaitable[dict[str, Any]]]
    ) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            try:
                # Who it is first: nothing is read of what strangers send.
                caller = self._caller(request)
                return JSONResponse(await ask(caller, request, await _body(request)))
            except Exception as error:  # noqa: BLE001 - told as the API tells it
                status, body = failure(error)
                return JSONResponse(body, status)

        return endpoint

    async def _me(self, caller: Caller, _request: Request, _body: object) -> dict[str, Any]:
        return {
            "name": caller.name,
            "asked": self._tokens is not None,
            "operator": Role.OPERATOR in caller.roles,
        }

    async def _call(self, caller: Caller, request: Request, body: object) -> dict[str, Any]:
        return await self._calls.answer(caller, request.path_params["name"], body)

    async def _check(self, caller: Caller, _request: Request, body: object) -> dict[str, Any]:
        return await desk.check(self._calls, caller, desk.text_of(body, "text"))

    async def _compare(self, caller: Caller, _request: Request, body: object) -> dict[str, Any]:
        texts = desk.text_of(body, "original"), desk.text_of(body, "replacement")
        return await desk.compare(self._calls, caller, *texts)

    async def _watch(self, request: Request) -> Response:
        try:
            caller = self._caller(request)
            body = await _body(request)
            messages = self._messages(caller, request.path_params["name"], body)
        except Exception as error:  # noqa: BLE001 - told as the API tells it
            status, told = failure(error)
            return JSONResponse(told, status)
        return StreamingResponse(self._events(messages), media_type="text/event-stream")

    def _messages(self, caller: Caller, name: str, body: object) -> AsyncIterator[dict[str, Any]]:
        if self._watches >= WATCHES_MAX:
            raise LimitError(
                f"{WATCHES_MAX} watches are open: close some pages of the console",
                reason="TOO_MANY_WATCHES",
            )
        if name != "overview":
            return self._calls.watch(caller, name, body)
        for seen in _SEEN:
            access.require(caller, f"/{PACKAGE}.{seen}")
        return self._inventory.watch()

    async def _events(self, messages: AsyncIterator[dict[str, Any]]) -> AsyncIterator[str]:
        self._watches += 1
        stopping = asyncio.create_task(self._stopping.wait())
        following: asyncio.Task[dict[str, Any]] | None = None
        try:
            while True:
                following = asyncio.ensure_future(anext(messages))
                await asyncio.wait((following, stopping), return_when=asyncio.FIRST_COMPLETED)
                if not following.done():
                    raise UnavailableError("the control plane is stopping", reason="STOPPING")  # noqa: TRY301
                yield _event("message", following.result())
        except StopAsyncIteration:
            yield _event("end", {})
        except Exception as error:  # noqa: BLE001 - told as the API tells it
            yield _event("failure", failure(error)[1])
        finally:
            self._watches -= 1
            stopping.cancel()
            if following is not None:
                following.cancel()
                await asyncio.gather(following, return_exceptions=True)
            close = getattr(messages, "aclose", None)
            if close is not None:
                await close()


def _event(kind: str, data: dict[str, Any]) -> str:
    return f"event: {kind}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n"


async def _body(request: Request) -> object:
    """The JSON of a request; InvalidRequestError when it is none."""
    if request.headers.get("content-type", "").partition(";")[0] != "application/json":
        raise InvalidRequestError("the body must be application/json", reason="NO_JSON")
    try:
        return json.loads(await request.body())
    except (ValueError, RecursionError):
        raise InvalidRequestError("the body is no JSON", reason="NO_JSON") from None


def _assets() -> list[Route]:
    """A route for each file; the page is at / too."""
    routes = []
    for file in (resources.files("controlplane") / "console" / "assets").iterdir():
        kind = _KINDS.get(file.name.rpartition(".")[2])
        if kind is None:
            continue
        endpoint = _asset(file.read_bytes(), kind)
        path = "/" if file.name == "index.html" else f"/{file.name}"
        routes.append(Route(path, endpoint, methods=["GET"]))
    return routes


def _asset(content: bytes, kind: str) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(_request: Request) -> Response:
        return Response(content, media_type=None, headers={"content-type": kind})

    return endpoint
