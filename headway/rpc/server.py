"""gRPC servers and channels as every Headway process makes them."""

from __future__ import annotations

from collections.abc import Sequence

import grpc
from grpc_channelz.v1 import channelz, channelz_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from headway.errors import Unavailable

# Larger than any request we accept, small enough that a peer cannot make us allocate much.
MAX_MESSAGE_BYTES = 2 << 20

# A hung peer is found after http2.ping_timeout_ms; keepalive_timeout alone does not do it.
_KEEPALIVE = [
    ("grpc.keepalive_time_ms", 5000),
    ("grpc.keepalive_timeout_ms", 2000),
    ("grpc.http2.ping_timeout_ms", 2000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
]
CHANNEL_OPTIONS: list[tuple[str, int]] = [
    *_KEEPALIVE,
    # Two processes of one stack must not share a connection through grpc's global pool.
    ("grpc.use_local_subchannel_pool", 1),
]
SERVER_OPTIONS: list[tuple[str, int]] = [
    *_KEEPALIVE,
    ("grpc.http2.min_ping_interval_without_data_ms", 4000),
    # Pings that a busy machine held up arrive close together: no reason to hang up on a peer.
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.max_metadata_size", 8192),
    # Two servers on one port would each get half of the calls, silently.
    ("grpc.so_reuseport", 0),
]


class Server:
    """One listening gRPC server with health, reflection and channelz.

    Health starts as NOT_SERVING: the owner says when it serves.
    """

    def __init__(self, service_names: Sequence[str]) -> None:
        """Args: service_names: full names, for reflection, for example "headway.v1.KvService"."""
        self.grpc = grpc.aio.server(options=SERVER_OPTIONS)
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self.grpc)
        reflection.enable_server_reflection(
            [
                *service_names,
                health_pb2.DESCRIPTOR.services_by_name["Health"].full_name,
                channelz_pb2.DESCRIPTOR.services_by_name["Channelz"].full_name,
                reflection.SERVICE_NAME,
            ],
            self.grpc,
        )
        channelz.add_channelz_servicer(self.grpc)

    async def listen(self, address: str) -> str:
        """Start to serve on `host:port`, port 0 for a free one; returns the address in use.

        Raises:
            Unavailable: the address cannot be bound.
        """
        try:
            port = self.grpc.add_insecure_port(address)
        except RuntimeError as error:
            raise Unavailable(
                f"cannot listen on {address}: is another server running there?"
            ) from error
        await self._health.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
        await self.grpc.start()
        return f"{address.rpartition(':')[0]}:{port}"

    async def set_serving(self, serving: bool) -> None:
        status = health_pb2.HealthCheckResponse
        await self._health.set("", status.SERVING if serving else status.NOT_SERVING)

    async def stop_serving(self) -> None:
        """Be NOT_SERVING for good: what `set_serving` is told later changes nothing."""
        await self._health.enter_graceful_shutdown()

    async def stop(self, grace_s: float) -> None:
        """Tell health watchers, take no more calls, end running ones after `grace_s`."""
        await self.stop_serving()
        await self.grpc.stop(grace_s)


def open_channel(address: str) -> grpc.aio.Channel:
    """A channel to another Headway process."""
    return grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
