"""Sends the KV pages of prompts while they are still being computed."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

from headway.adapters.kv_grpc.frames import GatheredFrame, PageRange, cut
from headway.adapters.kv_grpc.layout import PageLayout, PageStore, StagedPageCounters
from headway.adapters.kv_grpc.loop_thread import LoopThread
from headway.adapters.kv_grpc.outgoing import OutgoingTransfer, Route
from headway.adapters.kv_grpc.peer import Peer
from headway.ports.engine import KvTarget

_LOG = logging.getLogger(__name__)

# Pages are pushed in the engine's step, which computes nothing for anybody meanwhile.
_MAX_ENGINE_WAIT_S = 1.0

# Handed to the loop together: to wake it takes time from the engine.
_FRAMES_AT_ONCE = 4


class KvSender:
    """The sending side; lives in the prefill engine's process.

    Public methods are thread-safe and never wait, except `push_pages` for memory. A transfer
    that fails is logged and dropped: the decode worker, which sees it too, reports it. From
    then on its id is unknown, and calls with unknown ids do nothing.
    """

    def __init__(
        self,
        layout: PageLayout,
        store: PageStore,
        *,
        max_staged_bytes: int = 512 << 20,
        stall_timeout_s: float = 10.0,
    ) -> None:
        """Start the thread.

        Args:
            layout: of our pages.
            store: where the pages come from; read in the threads that push.
            max_staged_bytes: copied pages that may wait for the network, over all transfers.
            stall_timeout_s: a transfer fails when its receiver takes nothing for so long, or
                when so long, but at most 1 s, no memory is free for its pages. Before that,
                the transfer that holds most without having been accepted is given up.
        """
        self._layout = layout
        self._store = store
        self._max_staged_bytes = max_staged_bytes
        self._stall_timeout_s = stall_timeout_s
        # Guards everything that engine threads see; notified when pages are released and
        # when a transfer ends.
        # Reentrant: a transfer is given up while it is held.
        self._changed = threading.Condition(threading.RLock())
        self._transfers: dict[str, OutgoingTransfer] = {}
        self._num_created = 0
        self._num_released = 0
        self._closed = False
        # By address; changed on the loop only.
        self._peers: dict[str, Peer] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._thread = LoopThread("kv-sender")

    def open(self, target: KvTarget, num_blocks: int, traceparent: str) -> None:
        """Announce a transfer of `num_blocks` blocks; dials in the background.

        The id of the transfer is `target.transfer_id`.
        """
        transfer = OutgoingTransfer(
            target,
            num_blocks,
            traceparent,
            self._layout,
            stall_timeout_s=self._stall_timeout_s,
            on_released=self._release,
        )
        with self._changed:
            assert target.transfer_id not in self._transfers, "a transfer is opened once"
            if self._closed:
                return
            if peer := self._peers.get(target.address):
                transfer.route = peer.known_route(transfer)
            self._transfers[target.transfer_id] = transfer
        self._thread.call_soon(self._start, transfer)

    def push_pages(self, transfer_id: str, first_block: int, block_ids: Sequence[int]) -> None:
        """Copy pages out of the engine now, and send them in the background.

        Afterwards the engine may overwrite them. Calls of one transfer come from one thread, in
        the order of blocks from block 0 on. Blocks that the receiver has already are not read.

        Args:
            transfer_id: of an open transfer.
            first_block: index within the request of `block_ids[0]`.
            block_ids: the engine's own ids.
        """
        with self._changed:
            transfer = self._transfers.get(transfer_id)
        if transfer is None:
            return
        num_known = max(0, transfer.first_block_wanted - first_block)
        wanted_ids = block_ids[num_known:]
        first_wanted = first_block + num_known
        gathered: list[GatheredFrame] = []
        for pages in cut(self._layout, first_wanted, len(wanted_ids)):
            start = pages.first_block - first_wanted
            frame_ids = wanted_ids[start : start + pages.num_blocks]
            layers = range(pages.first_layer, pages.first_layer + pages.num_layers)
            views = self._store.read(layers, frame_ids)
            # Those that were gathered are handed over before others wait for their memory.
            if len(gathered) == _FRAMES_AT_ONCE or (gathered and not self._has_room(pages)):
                self._hand_over(transfer, gathered)
                gathered = []
            if not self._reserve(transfer, pages):
                break
            gathered.append(transfer.gather(pages, views))
        if gathered:
            self._hand_over(transfer, gathered)

    def prompt_computed(self, transfer_id: str) -> None:
        """After the last `push_pages`: commit once everything was sent."""
        with self._changed:
            transfer = self._transfers.get(transfer_id)
        if transfer is not None:
            self._thread.call_soon(transfer.prompt_computed, transfer.num_bytes_acked)

    def abort(self, transfer_id: str) -> None:
        """Give a transfer up and drop what was copied."""
        with self._changed:
            transfer = self._transfers.pop(transfer_id, None)
            self._changed.notify_all()
        if transfer is not None:
            self._thread.call_soon(transfer.cancel)

    def counters(self) -> StagedPageCounters:
        with self._changed:
            return StagedPageCounters(self._num_created, self._num_released)

    def close(self) -> None:
        """Give everything up, and end the thread."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            transfer_ids = list(self._transfers)
        for transfer_id in transfer_ids:
            self.abort(transfer_id)
        self._thread.wait_for(self._close_peers())
        self._thread.close()

    def _hand_over(self, transfer: OutgoingTransfer, gathered: list[GatheredFrame]) -> None:
        self._thread.call_soon(transfer.add, gathered)
        # Gathering keeps the interpreter busy, and the loop could not send before all is done.
        time.sleep(0)

    def _reserve(self, transfer: OutgoingTransfer, pages: PageRange) -> bool:
        """Wait until pages may be copied; False if the transfer has ended or now fails."""
        transfer_id = transfer.target.transfer_id

        def ended() -> bool:
            return self._transfers.get(transfer_id) is not transfer

        def has_room() -> bool:
            return self._has_room(pages)

        timeout_s = min(self._stall_timeout_s, _MAX_ENGINE_WAIT_S)
        with self._changed:
            self._changed.wait_for(lambda: ended() or has_room(), timeout_s / 2)
            if not ended() and not has_room():
                self._drop_largest_idle()
                self._changed.wait_for(lambda: ended() or has_room(), timeout_s / 2)
            if not ended() and has_room():
                self._num_created += pages.num_pages
                return True
            if ended():
                return False
        self._give_up(transfer)
        return False

    def _has_room(self, pages: PageRange) -> bool:
        num_staged = self._num_created - self._num_released
        max_pages = self._max_staged_bytes // self._layout.page_bytes
        # A single frame always fits: or else a small limit would stop all transfers.
        return num_staged == 0 or num_staged + pages.num_pages <= max_pages

    def _drop_largest_idle(self) -> None:
        """Give up the transfer that holds most without its receiver having accepted it.

        Better it than one that a receiver is waiting for, and better than an engine that
        computes nothing because of it.
        """
        idle = [transfer for transfer in self._transfers.values() if not transfer.accepted]
        if idle:
            self._give_up(max(idle, key=lambda transfer: transfer.num_sequences))

    def _give_up(self, transfer: OutgoingTransfer) -> None:
        transfer_id = transfer.target.transfer_id
        _LOG.warning("KV transfer %s failed: no memory for its pages", transfer_id)
        self.abort(transfer_id)

    def _release(self, num_pages: int) -> None:
        with self._changed:
            self._num_released += num_pages
            self._changed.notify_all()

    # Below: on the loop.

    def _start(self, transfer: OutgoingTransfer) -> None:
        task = transfer.start(self._route)
        self._keep(task)
        task.add_done_callback(partial(self._ended, transfer))

    async def _route(self, transfer: OutgoingTransfer) -> Route:
        address = transfer.target.address
        if address not in self._peers:
            self._peers[address] = Peer(
                address, self._stall_timeout_s, partial(self._drop_unused, address)
            )
        return await self._peers[address].route(transfer)

    def _ended(self, transfer: OutgoingTransfer, task: asyncio.Task[bool]) -> None:
        target = transfer.target
        with self._changed:
            if self._transfers.get(target.transfer_id) is transfer:
                del self._transfers[target.transfer_id]
            self._changed.notify_all()
        peer = self._peers.get(target.address)
        lost_it = not task.cancelled() and not task.result()
        if lost_it or (peer is not None and peer.has_lost_link):
            self._drop_unused(target.address)

    def _drop_unused(self, address: str) -> None:
        """Forget a peer that may have gone, unless somebody still sends to it.

        Workers that come back have other addresses: their old connections must not pile up.
        """
        with self._changed:
            in_use = any(t.target.address == address for t in self._transfers.values())
        peer = self._peers.get(address)
        if peer is not None and not in_use and not peer.has_link:
            del self._peers[address]
            self._keep(asyncio.ensure_future(peer.close()))

    def _keep(self, task: asyncio.Task[Any]) -> None:
        """Hold a task until it is done: the loop itself does not."""
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _close_peers(self) -> None:
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for peer in list(self._peers.values()):
            await peer.close()
