"""The connector's worker side: moves pages between the engine's KV memory and the network."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from typing import Any

from headway.adapters.kv_grpc.layout import PageLayout, StagedPageCounters
from headway.adapters.kv_grpc.receiver import KvReceiver
from headway.adapters.kv_grpc.sender import KvSender
from headway.adapters.vllm_kv.messages import Expect, Outcome, StepOutcomes, StepTransfers
from headway.adapters.vllm_kv.pages import TorchPageStore, layout_of


class SendingSide:
    """On a prefill engine: copies pages out as soon as a step has written them."""

    def __init__(self, layout: PageLayout, store: TorchPageStore) -> None:
        self.layout = layout
        self._sender = KvSender(layout, store)

    def step_begins(self, step: StepTransfers) -> None:
        """Before the step computes: dialling takes no time of a prompt that has but one."""
        for opening in step.opens:
            self._sender.open(opening.target, opening.num_blocks, opening.traceparent)
        for transfer_id in step.aborted_transfer_ids:
            self._sender.abort(transfer_id)

    def start_loads(self, step: StepTransfers) -> None:
        """Nothing: a prefill engine receives no pages."""

    def after_step(self, step: StepTransfers) -> None:
        for push in step.pushes:
            if push.block_ids:
                self._sender.push_pages(push.transfer_id, push.first_block, push.block_ids)
            if push.is_last:
                self._sender.prompt_computed(push.transfer_id)

    def take_finished(self) -> set[str]:
        """Nothing: pages are copied out within the step, so no block waits to be sent."""
        return set()

    def take_failed_blocks(self) -> set[int]:
        return set()

    def take_outcomes(self) -> StepOutcomes:
        return StepOutcomes()

    def counters(self) -> StagedPageCounters:
        return self._sender.counters()

    def close(self) -> None:
        self._sender.close()


class ReceivingSide:
    """On a decode engine: lets pages come into blocks that wait for them."""

    def __init__(self, layout: PageLayout, store: TorchPageStore, host: str) -> None:
        self.layout = layout
        self.secret = secrets.token_bytes(32)
        self._receiver = KvReceiver(host, layout, store, self.secret)
        self.address = self._receiver.address
        self._expected: dict[str, Expect] = {}
        self._finished_request_ids: set[str] = set()
        self._failed_block_ids: set[int] = set()
        self._outcomes: dict[str, Outcome] = {}

    def step_begins(self, step: StepTransfers) -> None:
        """Nothing: vLLM says when blocks may be written to."""

    def start_loads(self, step: StepTransfers) -> None:
        """Let pages come; vLLM 0.32 asks for it when the step is computed."""
        for expect in step.expects:
            self._expected[expect.transfer_id] = expect
            timeout_s = max(0.001, expect.expires_at_s - time.monotonic())
            self._receiver.expect(
                expect.transfer_id, expect.block_ids, expect.first_block, timeout_s
            )
        for transfer_id in step.aborted_transfer_ids:
            self._receiver.abort(transfer_id)
            # vLLM keeps the blocks of an aborted request until it hears, exactly once, that
            # nothing will write to them any more.
            expected = self._expected.pop(transfer_id, None)
            if expected is not None:
                self._finished_request_ids.add(expected.request_id)

    def after_step(self, step: StepTransfers) -> None:
        """Nothing: a decode engine sends no pages."""

    def _poll(self) -> None:
        for ended in self._receiver.poll():
            expected = self._expected.pop(ended.transfer_id, None)
            if expected is None:
                continue
            self._finished_request_ids.add(expected.request_id)
            self._outcomes[ended.transfer_id] = Outcome(ended.record, ended.error)
            if ended.record is None:
                self._failed_block_ids.update(expected.block_ids[expected.first_block :])

    def take_finished(self) -> set[str]:
        """Requests whose pages came or never will, each once."""
        self._poll()
        finished, self._finished_request_ids = self._finished_request_ids, set()
        return finished

    def take_failed_blocks(self) -> set[int]:
        failed, self._failed_block_ids = self._failed_block_ids, set()
        return failed

    def take_outcomes(self) -> StepOutcomes:
        outcomes, self._outcomes = self._outcomes, {}
        return StepOutcomes(outcomes)

    def counters(self) -> StagedPageCounters:
        return self._receiver.counters()

    def close(self) -> None:
        self._receiver.close()


WorkerSide = SendingSide | ReceivingSide


def open_worker_side(
    tensors: Mapping[str, Any], vllm_config: Any, num_blocks: int, receive_host: str | None
) -> WorkerSide:
    """Args: receive_host: where to listen for pages; None on an engine that sends."""
    store = TorchPageStore(tensors, num_blocks)
    layout = layout_of(store, tensors, vllm_config)
    if receive_host is None:
        return SendingSide(layout, store)
    return ReceivingSide(layout, store, receive_host)
