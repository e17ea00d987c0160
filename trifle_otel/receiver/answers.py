"""What an OTLP receiver says: that it has taken a request, which spans it has not, or why it refuses.

Refusals are the same over HTTP and gRPC; how each carries them is the servers' business.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from google.protobuf.json_format import MessageToJson
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, RetryInfo
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from trifle_otel.errors import TrifleError
from trifle_otel.otlp.spans import JSON


class Reason(NamedTuple):
    """A kind of refusal: HTTP's status, gRPC's, and a word for metrics."""

    http: int
    grpc: int
    word: str


MALFORMED: Final = Reason(400, 3, "malformed")
UNAUTHENTICATED: Final = Reason(401, 16, "unauthenticated")
NOT_FOUND: Final = Reason(404, 12, "not_found")
WRONG_METHOD: Final = Reason(405, 12, "wrong_method")
STALLED: Final = Reason(503, 4, "stalled")  # after a 408 OTLP's clients would drop what they have
TOO_LARGE: Final = Reason(413, 8, "too_large")
UNSUPPORTED: Final = Reason(415, 3, "unsupported")
BUSY: Final = Reason(429, 8, "busy")
FAULTY: Final = Reason(500, 13, "faulty")
UNAVAILABLE: Final = Reason(503, 14, "unavailable")


class Refused(TrifleError):
    """A request is not taken.

    Attributes:
        reason: why.
        retry_after: seconds after which it may be sent again; None where that would not help.
    """

    def __init__(self, reason: Reason, message: str, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.retry_after = retry_after


def accepted(rejected: int, message: str) -> ExportTraceServiceResponse:
    """The answer to a request that was taken, but for so many spans, with what is wrong with them."""
    answer = ExportTraceServiceResponse()
    if rejected:
        answer.partial_success.rejected_spans = rejected
        answer.partial_success.error_message = message
    return answer


def status_of(refused: Refused) -> Status:
    """A refusal as OTLP has it, with when to try again or what is wrong with the request."""
    status = Status(code=refused.reason.grpc, message=str(refused))
    if refused.retry_after is not None:
        status.details.add().Pack(retry_info(refused.retry_after))
    elif refused.reason is MALFORMED:
        detail = BadRequest()
        detail.field_violations.add(field="body", description=str(refused))
        status.details.add().Pack(detail)
    return status


def retry_info(seconds: int) -> RetryInfo:
    """When to try again."""
    info = RetryInfo()
    info.retry_delay.seconds = seconds
    return info


def encoded(message: Message, encoding: str) -> bytes:
    """An answer in the encoding of its request."""
    if encoding == JSON:
        return MessageToJson(message, indent=None).encode()
    return message.SerializeToString()
