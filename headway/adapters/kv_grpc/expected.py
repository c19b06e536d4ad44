"""The books of a receiver: what is expected, what came of it. Thread-safe."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from headway.adapters.kv_grpc.frames import PageFrame
from headway.adapters.kv_grpc.incoming import IncomingTransfer
from headway.adapters.kv_grpc.layout import PageStore, StagedPageCounters
from headway.adapters.kv_grpc.tickets import TicketGate
from headway.errors import RequestCancelled
from headway.ports.engine import KvTransferRecord

# A stream that ended before its transfer was expected is remembered, so that the engine hears
# of it at once instead of after its timeout. Old ones give way: they cost the timeout only.
_MAX_ENDED_EARLY = 1024


@dataclass(frozen=True, slots=True)
class TransferOutcome:
    """How an expected transfer ended: `record` is None exactly when `error` says why."""

    transfer_id: str
    record: KvTransferRecord | None
    error: str


class ExpectedTransfers:
    """Transfers from the moment the engine has blocks for them until they end, each once.

    One lock guards everything and is held while pages are written: whoever has ended a
    transfer knows that nothing is written to its blocks any more.
    """

    def __init__(self, store: PageStore, secret: bytes) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._gate = TicketGate(secret)
        self._incoming: dict[str, IncomingTransfer] = {}
        self._ended_early: dict[str, str] = {}
        self._outcomes: list[TransferOutcome] = []
        self._num_created = 0
        self._num_released = 0

    def redeem(self, transfer_id: str, ticket: bytes) -> float:
        """As `TicketGate.redeem`."""
        with self._lock:
            return self._gate.redeem(transfer_id, ticket)

    def check_ticket(self, transfer_id: str, ticket: bytes) -> None:
        """As `TicketGate.check`."""
        with self._lock:
            self._gate.check(transfer_id, ticket)

    def add(self, transfer: IncomingTransfer) -> None:
        """Expect a transfer; it fails at once if its sender has come and gone already."""
        transfer_id = transfer.transfer_id
        with self._lock:
            assert transfer_id not in self._incoming, "a transfer is expected once"
            self._incoming[transfer_id] = transfer
            error = self._ended_early.pop(transfer_id, None)
        if error is not None:
            self.fail(transfer_id, error)

    def get(self, transfer_id: str) -> IncomingTransfer | None:
        """The transfer if it is expected and has not ended."""
        with self._lock:
            return self._incoming.get(transfer_id)

    def write(self, transfer: IncomingTransfer, frame: PageFrame) -> None:
        """Put a checked frame into the transfer's blocks, and verify it there.

        Raises:
            RequestCancelled: the transfer has ended.
            KvTransferFailed: the checksum is wrong.
        """
        with self._lock:
            self._check_running(transfer)
            # Counted first, so that pages of a store that fails half-way are counted too.
            transfer.num_pages_written += frame.pages.num_pages
            self._num_created += frame.pages.num_pages
            transfer.write(frame, self._store)

    def commit(self, transfer: IncomingTransfer, record: KvTransferRecord) -> None:
        """End a transfer well.

        Raises:
            RequestCancelled: the transfer has ended.
        """
        with self._lock:
            self._check_running(transfer)
            self._end(transfer.transfer_id)
            self._outcomes.append(TransferOutcome(transfer.transfer_id, record, ""))

    def fail(self, transfer_id: str, error: str) -> None:
        """End a transfer badly, unless it has ended."""
        assert error, "without an error it would pass for committed"
        with self._lock:
            if self._end(transfer_id):
                # A sender that comes only now must not wait for blocks until its ticket expires.
                self._gate.revoke(transfer_id)
                self._outcomes.append(TransferOutcome(transfer_id, None, error))

    def sender_left(self, transfer_id: str, error: str) -> None:
        """The sender has gone before its transfer was expected."""
        with self._lock:
            if transfer_id in self._incoming:
                return
            self._ended_early[transfer_id] = error
            if len(self._ended_early) > _MAX_ENDED_EARLY:
                del self._ended_early[next(iter(self._ended_early))]

    def abort(self, transfer_id: str) -> bool:
        """End a transfer without an outcome; says whether it was running."""
        with self._lock:
            self._ended_early.pop(transfer_id, None)
            # Its sender may come later, and would hold pages for a request that is gone.
            self._gate.revoke(transfer_id)
            return self._end(transfer_id)

    def abort_all(self) -> None:
        with self._lock:
            for transfer_id in list(self._incoming):
                self._end(transfer_id)

    def poll(self) -> list[TransferOutcome]:
        """Outcomes since the last call."""
        with self._lock:
            outcomes, self._outcomes = self._outcomes, []
        return outcomes

    def counters(self) -> StagedPageCounters:
        with self._lock:
            return StagedPageCounters(self._num_created, self._num_released)

    def _check_running(self, transfer: IncomingTransfer) -> None:
        if self._incoming.get(transfer.transfer_id) is not transfer:
            raise RequestCancelled("the decode worker has given the transfer up")

    def _end(self, transfer_id: str) -> bool:
        transfer = self._incoming.pop(transfer_id, None)
        if transfer is None:
            return False
        self._num_released += transfer.num_pages_written
        return True
