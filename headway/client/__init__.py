"""The Python client: needs no knowledge of gRPC or protobuf. Errors are those of headway.errors."""

from headway.client.aio import AsyncClient
from headway.client.events import (
    Admission,
    Capacity,
    Event,
    Finished,
    KvTransfer,
    Tier,
    Timings,
    Tokens,
    Usage,
    WorkerCapacity,
)
from headway.client.meter import RequestMeter
from headway.client.sync import Client

__all__ = [
    "Admission",
    "AsyncClient",
    "Capacity",
    "Client",
    "Event",
    "Finished",
    "KvTransfer",
    "RequestMeter",
    "Tier",
    "Timings",
    "Tokens",
    "Usage",
    "WorkerCapacity",
]
