"""What the connector's two sides tell each other, step by step."""

from __future__ import annotations

from dataclasses import dataclass, field

from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorMetadata,
    KVConnectorWorkerMetadata,
)

from headway.ports.engine import KvTarget, KvTransferRecord


@dataclass(frozen=True, slots=True)
class Open:
    """Announce a transfer."""

    target: KvTarget
    num_blocks: int
    traceparent: str


@dataclass(frozen=True, slots=True)
class Push:
    """Send blocks that this step completes. `first_block` counts within the request."""

    transfer_id: str
    first_block: int
    block_ids: tuple[int, ...]
    is_last: bool


@dataclass(frozen=True, slots=True)
class Expect:
    """Let a request's pages come into its blocks."""

    request_id: str
    transfer_id: str
    block_ids: tuple[int, ...]
    first_block: int
    expires_at_s: float


@dataclass
class StepTransfers(KVConnectorMetadata):  # type: ignore[misc]
    """What the worker side has to do in one step."""

    opens: list[Open] = field(default_factory=list)
    pushes: list[Push] = field(default_factory=list)
    expects: list[Expect] = field(default_factory=list)
    aborted_transfer_ids: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a transfer into this engine ended: `record` is None exactly when `error` says why."""

    record: KvTransferRecord | None
    error: str


@dataclass
class StepOutcomes(KVConnectorWorkerMetadata):  # type: ignore[misc]
    """What ended since the last step, by transfer id."""

    outcomes: dict[str, Outcome] = field(default_factory=dict)

    def aggregate(self, other: StepOutcomes) -> StepOutcomes:
        return StepOutcomes(self.outcomes | other.outcomes)
