"""What surrounds every RPC that a worker serves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc

from headway.errors import HeadwayError
from headway.ports.telemetry import Span, Telemetry
from headway.rpc.errors import abort_with


@asynccontextmanager
async def worker_call(
    context: grpc.aio.ServicerContext[Any, Any], name: str, telemetry: Telemetry
) -> AsyncIterator[Span]:
    """A SERVER span under the caller's context; a HeadwayError becomes the RPC's status."""
    metadata = dict(context.invocation_metadata() or ())
    parent = str(metadata.get("traceparent", ""))
    span = telemetry.start_span(name, parent=parent, kind="SERVER")
    outcome = "INTERNAL"
    try:
        yield span
        outcome = ""
    except HeadwayError as error:
        outcome = error.reason
        await abort_with(context, error)
    except asyncio.CancelledError:
        outcome = "CANCELLED"
        raise
    finally:
        span.end(outcome)
