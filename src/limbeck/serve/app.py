"""The API over HTTP, as an ASGI application."""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from limbeck.serve.bodies import ChatBody, CompletionBody, read_body
from limbeck.serve.errors import APIError, api_error
from limbeck.serve.sequence import Ended, Event
from limbeck.serve.service import Emit, PreparedRequest, Service

__all__ = ["application"]

Events = asyncio.Queue[tuple[int, Event]]


def application(service: Service) -> ASGIApp:
    """Return the application that answers for ``service``, whose engine works already."""
    app = Starlette(
        routes=[
            Route("/health", _health, methods=["GET"]),
            Route("/v1/models", _models, methods=["GET"]),
            Route("/v1/models/{name:path}", _model, methods=["GET"]),
            Route("/v1/completions", _completions, methods=["POST"]),
            Route("/v1/chat/completions", _chat, methods=["POST"]),
        ],
        exception_handlers={APIError: _refuse, HTTPException: _refuse_http, Exception: _refuse_unknown},
    )
    app.state.service = service
    return _Gate(app, service)


class _Gate:
    """Lets requests in that bring the key; without one, those that call the server by a name of this machine."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # what is no request of HTTP finds no route
        error = self._refusal(Request(scope)) if scope["type"] == "http" else None
        await (self._app if error is None else _json(error.body, error.status, error.headers))(scope, receive, send)

    def _refusal(self, request: Request) -> APIError | None:
        service = self._service
        if request.url.path == "/health":
            return None
        if service.key:
            kind, _, given = request.headers.get("authorization", "").partition(" ")
            if kind.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), service.key.encode()):
                return APIError(
                    401, "no key, or a wrong one: send it as 'Authorization: Bearer KEY'",
                    kind="authentication_error", code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"},
                )  # fmt: skip
        elif service.hosts and _host(request) not in service.hosts:
            return APIError(403, "this server answers to names of its own machine alone", code="wrong_host")
        return None


def _host(request: Request) -> str:
    host = request.headers.get("host", "").strip().lower()
    return host.rpartition("]")[0].lstrip("[") if host.startswith("[") else host.partition(":")[0]


async def _health(request: Request) -> Response:
    service = _service(request)
    active, waiting = service.engine.load
    told = {"status": "stopping" if service.stopping else "ok", "model": service.name}
    rows = {"active": active, "waiting": waiting, "rows": service.engine.pool.rows}
    return _json(told | rows, 503 if service.stopping else 200)


async def _models(request: Request) -> Response:
    return _json({"object": "list", "data": [_described(_service(request))]})


async def _model(request: Request) -> Response:
    service, name = _service(request), str(request.path_params["name"])
    if name != service.name:
        raise APIError(404, f"the model '{name[:100]}' does not exist here", param="model", code="model_not_found")
    return _json(_described(service))


def _described(service: Service) -> dict[str, Any]:
    told = {"id": service.name, "object": "model", "created": service.created, "owned_by": "limbeck"}
    return {**told, "max_model_len": service.engine.capacity}


async def _completions(request: Request) -> Response:
    service = _service(request)
    return await _answer(request, lambda raw, emit: _prepare(service.completion, CompletionBody, raw, emit))


async def _chat(request: Request) -> Response:
    service = _service(request)
    return await _answer(request, lambda raw, emit: _prepare(service.chat, ChatBody, raw, emit))


def _prepare(
    make: Callable[[Any, Emit], PreparedRequest], kind: Any, raw: bytes, emit: Emit
) -> tuple[PreparedRequest, bool]:
    body = read_body(kind, raw)
    return make(body, emit), bool(body.stream)


async def _answer(request: Request, prepare: Callable[[bytes, Emit], tuple[PreparedRequest, bool]]) -> Response:
    """Read the body, submit the request, and answer whole or by and by."""
    service, loop, events = _service(request), asyncio.get_running_loop(), Events()
    if service.stopping:
        raise APIError(
            503, "the server is stopping: ask again when it is back", kind="server_error", code="server_stopping",
            headers={"Retry-After": "1"},
        )  # fmt: skip

    def emit(index: int, event: Event) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(events.put_nowait, (index, event))

    raw = await _body(request, service)
    prepared, streamed = await asyncio.to_thread(prepare, raw, emit)  # long prompts take a while to encode
    service.submit(prepared)
    if streamed:
        return _EventStream(service, prepared, events)
    try:
        return await _whole(request, prepared, events)
    finally:
        service.engine.cancel(prepared.sequences)


async def _body(request: Request, service: Service) -> bytes:
    """Read the body.

    Raises:
        APIError: it is no JSON by its header, too large, or too slow.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # a browser asks before it sends JSON to another site's server
        raise APIError(415, "send the body as 'Content-Type: application/json'")
    most = service.body_bytes
    too_large = APIError(413, f"the body is larger than {most:,} bytes", code="body_too_large")
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > most:
        raise too_large
    got = bytearray()
    try:
        async with asyncio.timeout(service.body_seconds):
            async for piece in request.stream():
                got += piece
                if len(got) > most:
                    raise too_large
    except TimeoutError:
        raise APIError(408, f"the body did not arrive within {service.body_seconds:g} seconds") from None
    except ClientDisconnect:
        raise APIError(400, "the connection was closed before the whole body arrived") from None
    return bytes(got)


async def _whole(request: Request, prepared: PreparedRequest, events: Events) -> Response:
    """Wait for all answers, or for the client to go away."""
    answers = asyncio.ensure_future(_collected(prepared, events))
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({answers, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not answers.done():
            return Response(status_code=499)  # nobody reads it
        return _json(answers.result())
    finally:
        answers.cancel()
        gone.cancel()


async def _collected(prepared: PreparedRequest, events: Events) -> dict[str, Any]:
    left = len(prepared.sequences)
    while left:
        index, event = await events.get()
        if isinstance(event, Ended):
            left -= 1
            if event.error is not None:
                raise api_error(event.error)
        prepared.answers.take(index, event)
    return prepared.answers.whole()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class _EventStream(StreamingResponse):
    """Server-sent events of a request; when it ends, whyever, its rows are free."""

    def __init__(self, service: Service, prepared: PreparedRequest, events: Events) -> None:
        self._service, self._prepared, self._events = service, prepared, events
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(self._lines(), media_type="text/event-stream", headers=headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._service.engine.cancel(self._prepared.sequences)

    async def _lines(self) -> AsyncIterator[str]:
        answers, left = self._prepared.answers, len(self._prepared.sequences)
        for chunk in answers.first_chunks():
            yield _line(chunk)
        while left:
            index, event = await self._events.get()
            if isinstance(event, Ended):
                left -= 1
                if event.error is not None:
                    yield _line(api_error(event.error).body)
                    return
            answers.count_tokens(event)
            yield _line(answers.chunk(index, event))
        for chunk in answers.last_chunks():
            yield _line(chunk)
        yield "data: [DONE]\n\n"


def _line(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False, allow_nan=False)}\n\n"


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


def _json(value: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse(value, status, headers)


async def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, APIError)
    return _json(error.body, error.status, error.headers)


async def _refuse_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    told = {404: f"there is nothing at {request.url.path[:200]}", 405: f"{request.method} is not for this address"}
    said = APIError(error.status_code, told.get(error.status_code, str(error.detail)), headers=error.headers)
    return _json(said.body, said.status, said.headers)


async def _refuse_unknown(request: Request, error: Exception) -> Response:
    said = APIError(500, "the server failed at this request; its own output says why", kind="server_error")
    return _json(said.body, said.status)
