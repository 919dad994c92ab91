"""Floor 1: OpenTelemetry itself, with the extra `otel`: only `service.tracing` knows it, and only where it is on."""

import logging
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final, Literal

from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import NonRecordingSpan, Span, SpanContext, SpanKind, Status, StatusCode, TraceFlags
from opentelemetry.util.types import AttributeValue

FLUSH_S: Final = 3.0
Kind = Literal["internal", "server", "client", "consumer"]
Attributes = Mapping[str, AttributeValue]

_KINDS: Final[Mapping[Kind, SpanKind]] = {
    "internal": SpanKind.INTERNAL,
    "server": SpanKind.SERVER,
    "client": SpanKind.CLIENT,
    "consumer": SpanKind.CONSUMER,
}


class Otel:
    """One exporter a process: spans are sent in batches by a thread of its own; what it cannot send it drops.

    The sampler, the batches and the exporter's headers are OpenTelemetry's own variables (`OTEL_TRACES_SAMPLER`,
    `OTEL_BSP_…`, `OTEL_EXPORTER_OTLP_HEADERS`).
    """

    def __init__(self, endpoint: str, *, process: str, version: str) -> None:
        about = {
            "service.name": os.environ.get("OTEL_SERVICE_NAME") or "hitl",
            "service.version": version,
            "process.role": process,
        }
        logging.getLogger("opentelemetry").setLevel(logging.ERROR)  # a line for each batch lost, not for each try
        self._provider = TracerProvider(resource=Resource.create(about), shutdown_on_exit=False)
        exporter = OTLPSpanExporter(endpoint=endpoint.rstrip("/") + "/v1/traces")
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("hitl", version)

    @contextmanager
    def span(self, name: str, kind: Kind, parent: str | None, attributes: Attributes) -> Iterator[None]:
        """A span for the block, under `parent` or under the current one. Of an exception only the class is kept: its
        text may quote what it was working on."""
        above = trace.set_span_in_context(NonRecordingSpan(parsed(parent))) if parent else None
        with self._tracer.start_as_current_span(
            name, above, _KINDS[kind], attributes, record_exception=False, set_status_on_exception=False
        ) as span:
            try:
                yield
            except BaseException as error:
                span.set_attribute("error.type", type(error).__name__)
                if isinstance(error, Exception) and getattr(error, "status", 500) >= 500:  # else it is a refusal
                    span.set_status(Status(StatusCode.ERROR))
                raise

    def close(self) -> None:
        """Send what is left, for `FLUSH_S` at most. Blocks."""
        flushing = threading.Thread(target=self._provider.shutdown, name="otel-flush", daemon=True)
        flushing.start()
        flushing.join(FLUSH_S)


@contextmanager
def under(traceparent: str) -> Iterator[None]:
    """Spans of the block are children of this one, which is somebody else's."""
    token = contexts.attach(trace.set_span_in_context(NonRecordingSpan(parsed(traceparent))))
    try:
        yield
    finally:
        contexts.detach(token)


def current() -> Span:
    return trace.get_current_span()


def link(span: Span, traceparent: str) -> None:
    span.add_link(parsed(traceparent))


def failed(span: Span) -> None:
    span.set_status(Status(StatusCode.ERROR))


def traceparent(span: Span) -> str | None:
    """Its W3C form; None where no span is."""
    about = span.get_span_context()
    if not about.is_valid:
        return None
    return f"00-{about.trace_id:032x}-{about.span_id:016x}-{int(about.trace_flags) & 1:02x}"


def parsed(traceparent: str) -> SpanContext:
    """Of a well-formed one: who takes it from outside has looked at it."""
    _, trace_id, span_id, flags = traceparent.split("-")[:4]
    return SpanContext(int(trace_id, 16), int(span_id, 16), is_remote=True, trace_flags=TraceFlags(int(flags, 16) & 1))
