"""OTLP over gRPC: the service of traces, and what is said with which status.

The protocol is `grpc.aio`'s. Requests are taken as bytes: what is wrong in them is ours to judge, as over HTTP. gRPC
would decompress without a limit, so that it is told not to; and its own handlers would hold a place for clients that
call and never send, so that each call's message is read here, with a time limit.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

import grpc
import grpc.aio

from trifle_otel.otlp.spans import PROTOBUF
from trifle_otel.receiver.answers import BUSY, MALFORMED, STALLED, Reason, Refused, retry_info, status_of
from trifle_otel.receiver.bodies import RETRY_SOON, looks_compressed
from trifle_otel.receiver.over_http import Gate, Take

EXPORT: Final = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"

MOST_CALLS: Final = 100
"""At a time: gRPC gives a message whole, so that each may take as much memory as a body may have bytes."""

_CODES = {code.value[0]: code for code in grpc.StatusCode}
_OPTIONS = (
    ("grpc.per_message_decompression", 0),
    ("grpc.so_reuseport", 0),  # a second receiver on the same port is a mistake
    ("grpc.max_concurrent_streams", 100),  # of one connection
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),  # clients that look after their connection are welcome
    ("grpc.keepalive_permit_without_calls", 1),
)
"""Ours; the size of messages is added."""


class GRPCServer:
    """Serves `TraceService/Export` in the loop that starts it.

    Args:
        take: what is done with a body; its answer is protobuf.
        check: raises `Refused` where no body is taken now.
        refused: told of each refusal.
    """

    def __init__(self, take: Take, gate: Gate, check: Callable[[], None], refused: Callable[[Reason], None]) -> None:
        self._take = take
        self._gate = gate
        self._check = check
        self._refused = refused
        self._server: grpc.aio.Server | None = None
        self._calls = 0

    async def start(self, host: str, port: int, credentials: grpc.ServerCredentials | None) -> int:
        """Listen; gives the port. Raises `OSError`."""
        options = [*_OPTIONS, ("grpc.max_receive_message_length", self._gate.max_body)]
        self._server = server = grpc.aio.server(handlers=[_Handler(self._export)], options=options)
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            if credentials is None:
                bound = server.add_insecure_port(address)
            else:
                bound = server.add_secure_port(address, credentials)
        except RuntimeError as error:
            raise OSError(f"{address} cannot be listened at: {error}") from error
        await server.start()
        return bound

    async def stop(self, grace: float) -> None:
        """Take no new request; let those under way end, for at most `grace` seconds."""
        if self._server is not None:
            await self._server.stop(grace)

    async def _export(self, _: Any, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        try:
            return await self._answer(context)
        except Refused as refused:
            self._refused(refused.reason)
            await _abort(context, refused)
        return b""

    async def _answer(self, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        self._gate.admit(_authorization(context))
        self._check()
        if self._calls >= MOST_CALLS:
            raise Refused(BUSY, "too many requests come in at a time; send it again", RETRY_SOON)
        self._calls += 1
        try:
            return await self._one(context)
        finally:
            self._calls -= 1

    async def _one(self, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        try:
            body: Any = await asyncio.wait_for(context.read(), self._gate.read_timeout)
        except asyncio.TimeoutError:
            raise Refused(STALLED, "the request did not come in time", RETRY_SOON) from None
        if not isinstance(body, bytes):  # the end of the call: it was cancelled, or larger than gRPC was told to take
            raise Refused(MALFORMED, "no request came")
        self._gate.budget.take(len(body))
        try:
            return await self._take(body, PROTOBUF, looks_compressed(body))
        finally:
            self._gate.budget.give_back(len(body))


class _Handler(grpc.GenericRpcHandler):
    """Knows the one method that there is, and gives its messages as they are."""

    def __init__(self, export: Any) -> None:
        self._export: grpc.RpcMethodHandler[bytes, bytes] = grpc.stream_unary_rpc_method_handler(export)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes] | None:
        """See gRPC. None: there is no such method."""
        return self._export if handler_call_details.method == EXPORT else None


def _authorization(context: grpc.aio.ServicerContext[bytes, bytes]) -> str | bytes:
    for name, value in context.invocation_metadata() or ():
        if name == "authorization":
            return value
    return ""


async def _abort(context: grpc.aio.ServicerContext[bytes, bytes], refused: Refused) -> None:
    """Refuse, with when to come again: in gRPC's status details, and under the name that the SDK for Python reads."""
    details: list[tuple[str, str | bytes]] = [("grpc-status-details-bin", status_of(refused).SerializeToString())]
    if refused.retry_after is not None:
        details.append(("google.rpc.retryinfo-bin", retry_info(refused.retry_after).SerializeToString()))
    await context.abort(_CODES[refused.reason.grpc], str(refused), tuple(details))
