"""One receiver as a sender sees it: a connection, and which way pages take there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from headway.adapters.kv_grpc.outgoing import OutgoingTransfer, Route
from headway.adapters.kv_grpc.own_stream import OwnStream
from headway.adapters.kv_grpc.shared_link import SharedLink, SharedPush
from headway.rpc.server import open_channel


class Peer:
    """Everything runs on the loop, where nothing else is said."""

    def __init__(
        self, address: str, stall_timeout_s: float, on_link_ended: Callable[[], None]
    ) -> None:
        """Args: on_link_ended: called when a link was lost, as when the receiver has died."""
        self._stall_timeout_s = stall_timeout_s
        self._on_link_ended = on_link_ended
        self._channel = open_channel(address)
        # One transfer at a time asks, each with its own ticket, until one has got an answer.
        self._asking = asyncio.Lock()
        self._link: SharedLink | None = None
        self._shares_memory = True

    @property
    def has_link(self) -> bool:
        """Whether the receiver is known to be there, and memory is shared with it."""
        return self._link is not None and not self._link.ended

    @property
    def has_lost_link(self) -> bool:
        """Whether the receiver was there and may have gone."""
        return self._link is not None and self._link.ended

    def known_route(self, transfer: OutgoingTransfer) -> Route | None:
        """The way of a transfer if it is through shared memory, at once. Thread-safe."""
        link = self._link
        if link is None or link.ended:
            return None
        return SharedPush(link, transfer, self._stall_timeout_s)

    async def route(self, transfer: OutgoingTransfer) -> Route:
        """The way that a transfer takes.

        Raises:
            AioRpcError: the receiver cannot be reached, or refuses the transfer's ticket.
        """
        if self._shares_memory and not self.has_link:
            async with asyncio.timeout(self._stall_timeout_s), self._asking:
                await self._dial_link(transfer)
        route = self.known_route(transfer)
        return route or OwnStream(self._channel, transfer, self._stall_timeout_s)

    async def _dial_link(self, transfer: OutgoingTransfer) -> None:
        if self._shares_memory and not self.has_link:
            self._link = await SharedLink.dial(self._channel, transfer.target, self._on_link_ended)
            self._shares_memory = self._link is not None

    async def close(self) -> None:
        if self._link is not None:
            self._link.close()
        await self._channel.close()
