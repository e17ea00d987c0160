"""OTLP over HTTP/1.1: connections, time limits, and what is said with which status.

The protocol is `h11`'s, sockets and TLS are asyncio's. Nothing here blocks: what is done with a body runs elsewhere.
Every wait for a client has an end, those for the first byte of a request and for each of its parts too.
"""

from __future__ import annotations

import asyncio
import hmac
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus
from typing import Any, Final

import h11

from trifle_otel.otlp.spans import JSON, MalformedRequest, encoding_of
from trifle_otel.receiver.answers import (
    MALFORMED,
    NOT_FOUND,
    STALLED,
    UNAUTHENTICATED,
    UNSUPPORTED,
    WRONG_METHOD,
    Reason,
    Refused,
    encoded,
    status_of,
)
from trifle_otel.receiver.bodies import RETRY_SOON, Budget, is_compressed, too_large

TRACES: Final = "/v1/traces"
HEALTH: Final = "/health"

IDLE: Final = 75.0  # seconds that a connection may be kept without a request
BODY_READS: Final = 6  # how many times the time for one read a whole body may take
MOST_CONNECTIONS: Final = 1000
MAX_HEADERS: Final = 32 * 1024  # bytes
_CHUNK = 64 * 1024
_LINGER = 1.0  # seconds that a client may go on sending what is not read any more
_LINGER_BYTES = 4 << 20

Take = Callable[[bytes, str, bool], Awaitable[bytes]]
"""Given a body, its Content-Type and whether it is compressed: the answer, encoded. Raises `Refused`."""


@dataclass(frozen=True)
class Gate:
    """What all requests go by.

    Attributes:
        token: what senders have to give; None: nothing.
        max_body: bytes.
        read_timeout: seconds that a client may take for each part of a request.
        budget: of all bodies that come in.
    """

    token: str | None
    max_body: int
    read_timeout: float
    budget: Budget

    def admit(self, authorization: str | bytes) -> None:
        """Check an Authorization header. Raises `Refused`."""
        if self.token is None:
            return
        given = authorization.encode("latin-1", "replace") if isinstance(authorization, str) else authorization
        scheme, _, token = given.partition(b" ")
        if scheme.lower() != b"bearer" or not hmac.compare_digest(token.strip(), self.token.encode()):
            raise Refused(UNAUTHENTICATED, "a bearer token is needed, and the right one")


class HTTPServer:
    """Serves `POST /v1/traces` and `GET /health` in the loop that starts it.

    Args:
        take: what is done with a body.
        check: raises `Refused` where no body is taken now.
        is_alive: what `/health` tells.
        refused: told of each refusal.
    """

    def __init__(
        self,
        take: Take,
        gate: Gate,
        check: Callable[[], None],
        is_alive: Callable[[], bool],
        refused: Callable[[Reason], None],
    ) -> None:
        self._take = take
        self._gate = gate
        self._check = check
        self._is_alive = is_alive
        self._refused = refused
        self._server: asyncio.Server | None = None
        self._connections: dict[asyncio.Task[None], _Connection] = {}

    async def start(self, host: str, port: int, context: ssl.SSLContext | None) -> int:
        """Listen; gives the port. Raises `OSError`."""
        limit = {"ssl_handshake_timeout": self._gate.read_timeout} if context else {}
        self._server = await asyncio.start_server(self._serve, host, port, ssl=context, limit=_CHUNK, **limit)
        return int(self._server.sockets[0].getsockname()[1])

    async def stop(self, grace: float) -> None:
        """Take no new request; let those that came in whole be answered, for at most `grace` seconds."""
        if self._server is None:
            return
        self._server.close()
        for connection in self._connections.values():
            connection.end_soon()
        if self._connections:
            _, late = await asyncio.wait(self._connections, timeout=grace)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late, timeout=1.0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None or len(self._connections) >= MOST_CONNECTIONS:
            writer.close()  # a client that gets no answer comes again
            return
        connection = _Connection(reader, writer, self._gate.read_timeout)
        self._connections[task] = connection
        try:
            while await self._one(connection):
                connection.next()
        except (OSError, EOFError, asyncio.TimeoutError, h11.ProtocolError):
            pass  # the client went away, or does not read what it is told
        except asyncio.CancelledError:  # the end of the receiver
            pass
        finally:
            self._connections.pop(task, None)
            connection.abort()

    async def _one(self, connection: _Connection) -> bool:
        """Answer one request; whether the connection goes on. A refusal before the body was read ends it."""
        encoding = JSON
        try:
            request = await connection.request()
            if request is None:
                return False
            encoding = _answer_encoding(request)
            status, body, kind = await self._answer(connection, request)
            await connection.send(status, body, kind)
        except Refused as refused:
            self._refused(refused.reason)
            headers = {}
            if refused.retry_after is not None:
                headers["retry-after"] = str(refused.retry_after)
            if refused.reason is UNAUTHENTICATED:
                headers["www-authenticate"] = "Bearer"
            if refused.reason is WRONG_METHOD:
                headers["allow"] = "POST"
            await connection.send(refused.reason.http, encoded(status_of(refused), encoding), encoding, headers)
        return await connection.goes_on()

    async def _answer(self, connection: _Connection, request: h11.Request) -> tuple[int, bytes, str]:
        path = request.target.partition(b"?")[0].decode("latin-1")
        if path == HEALTH and request.method in (b"GET", b"HEAD"):
            alive = self._is_alive()
            return (200, b'{"status":"ok"}', JSON) if alive else (503, b'{"status":"ending"}', JSON)
        if path != TRACES:
            raise Refused(NOT_FOUND, f"there is {TRACES}, for traces, and {HEALTH}")
        if request.method != b"POST":
            raise Refused(WRONG_METHOD, f"{TRACES} takes POST")
        self._gate.admit(_header(request, b"authorization"))
        self._check()
        kind = _header(request, b"content-type").decode("latin-1")
        try:
            encoding = encoding_of(kind)
        except MalformedRequest as error:
            raise Refused(UNSUPPORTED, str(error)) from error
        compressed = is_compressed(_header(request, b"content-encoding").decode("latin-1"))
        with _Held(self._gate.budget) as held:
            body = await connection.body(request, self._gate.max_body, held.more)
            return 200, await self._take(body, kind, compressed), encoding


class _Held:
    """What a request has taken of the budget, given back at its end."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._size = 0

    def more(self, size: int) -> None:
        self._budget.take(size)
        self._size += size

    def __enter__(self) -> _Held:
        return self

    def __exit__(self, *_: object) -> None:
        self._budget.give_back(self._size)


class _Connection:
    """One client's connection. Raises `OSError`, `EOFError` and `TimeoutError` where it breaks."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, read_timeout: float) -> None:
        self._reader = reader
        self._writer = writer
        self._read_timeout = read_timeout
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEADERS)
        self._idle: asyncio.Task[Any] | None = None
        self._ending = False
        self._is_head = False

    def next(self) -> None:
        """The next request may come."""
        self._http.start_next_cycle()

    def end_soon(self) -> None:
        """Answer what has begun, and take nothing more."""
        self._ending = True
        if self._idle is not None:
            self._idle.cancel()

    def abort(self) -> None:
        """Close it, whatever is under way."""
        self._writer.close()

    async def request(self) -> h11.Request | None:
        """The head of the next request; None where no more come. Raises `Refused` for what is no HTTP."""
        if self._ending:
            return None
        if self._http.trailing_data == (b"", False) and not await self._first_bytes():
            return None
        deadline = asyncio.get_running_loop().time() + self._read_timeout
        event = await self._event(deadline)
        if not isinstance(event, h11.Request):
            return None
        self._is_head = event.method == b"HEAD"
        return event

    async def body(self, request: h11.Request, limit: int, count: Callable[[int], None]) -> bytes:
        """The body of a request. `count` is told of each part's size, and may raise. Raises `Refused`."""
        length = _header(request, b"content-length")
        if length and int(length) > limit:
            raise too_large(limit)
        if self._http.they_are_waiting_for_100_continue:
            go_on = h11.InformationalResponse(status_code=100, headers=[], reason="Continue")
            await self._write(self._http.send(go_on))
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._read_timeout * BODY_READS
        parts: list[bytes] = []
        size = 0
        while True:
            event = await self._event(min(deadline, loop.time() + self._read_timeout))
            if not isinstance(event, h11.Data):
                return b"".join(parts)
            size += len(event.data)
            if size > limit:
                raise too_large(limit)
            count(len(event.data))
            parts.append(bytes(event.data))

    async def send(self, status: int, body: bytes, kind: str, more: dict[str, str] | None = None) -> None:
        """Answer. A client whose request was not read to its end is told that the connection ends."""
        self._read_what_is_here()
        now = formatdate(usegmt=True)
        headers = {"date": now, "content-type": kind, "content-length": str(len(body)), **(more or {})}
        if self._ending or self._http.their_state is not h11.DONE:
            headers["connection"] = "close"
        reason = HTTPStatus(status).phrase
        response = h11.Response(status_code=status, headers=list(headers.items()), reason=reason)
        data = self._http.send(response) or b""
        if not self._is_head:
            data += self._http.send(h11.Data(data=body)) or b""
        data += self._http.send(h11.EndOfMessage()) or b""
        await self._write(data)

    async def goes_on(self) -> bool:
        """Whether another request may come. If not, wait a little until the client has read the answer."""
        states = self._http.our_state, self._http.their_state
        if states == (h11.DONE, h11.DONE) and not self._ending:
            return True
        if self._http.their_state in (h11.SEND_BODY, h11.ERROR):
            await self._linger()
        return False

    def _read_what_is_here(self) -> None:
        """Take the end of a request that came with its beginning, so that the connection can go on."""
        try:
            while self._http.their_state is h11.SEND_BODY and self._http.next_event() is not h11.NEED_DATA:
                pass
        except h11.RemoteProtocolError:
            pass

    async def _linger(self) -> None:
        """Read on for a moment: where unread bytes meet a closed socket, the client never sees the answer."""
        if self._writer.can_write_eof():
            self._writer.write_eof()
        loop = asyncio.get_running_loop()
        deadline, left = loop.time() + _LINGER, _LINGER_BYTES
        while left > 0 and loop.time() < deadline:
            data = await asyncio.wait_for(self._reader.read(_CHUNK), deadline - loop.time())
            if not data:
                return
            left -= len(data)

    async def _first_bytes(self) -> bool:
        """Wait for a request to begin."""
        self._idle = asyncio.ensure_future(self._reader.read(_CHUNK))
        try:
            data = await asyncio.wait_for(self._idle, IDLE)
        except asyncio.CancelledError:
            if self._ending:
                return False
            raise
        finally:
            self._idle = None
        self._http.receive_data(data)
        return bool(data)

    async def _event(self, deadline: float) -> Any:
        """The next thing that the client says. Raises `Refused` where it is no HTTP, or comes too late."""
        while True:
            try:
                event = self._http.next_event()
            except h11.RemoteProtocolError as error:
                status = error.error_status_hint
                reason = MALFORMED if status == 400 else Reason(status, MALFORMED.grpc, MALFORMED.word)
                raise Refused(reason, f"this is no HTTP request: {error}") from error
            if event is not h11.NEED_DATA:
                return event
            left = deadline - asyncio.get_running_loop().time()
            try:
                data = await asyncio.wait_for(self._reader.read(_CHUNK), max(left, 0.001))
            except asyncio.TimeoutError:
                raise Refused(STALLED, "the request did not come in time", RETRY_SOON) from None
            self._http.receive_data(data)

    async def _write(self, data: bytes | None) -> None:
        if data:
            self._writer.write(data)
            await asyncio.wait_for(self._writer.drain(), self._read_timeout)


def _header(request: h11.Request, name: bytes) -> bytes:
    return next((value for key, value in request.headers if key == name), b"")


def _answer_encoding(request: h11.Request) -> str:
    """In what a refusal is told: as the request came, and in JSON where that is none of OTLP's."""
    try:
        return encoding_of(_header(request, b"content-type").decode("latin-1"))
    except MalformedRequest:
        return JSON
