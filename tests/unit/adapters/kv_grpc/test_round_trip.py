from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import grpc
import numpy as np

from headway.adapters.kv_grpc.frames import decode
from headway.adapters.kv_grpc.layout import PageLayout, StagedPageCounters
from headway.v1 import kv_transfer_service_pb2 as pb


def test_several_transfers_at_once_arrive_byte_for_byte(pair: Any) -> None:
    plans = [
        (pair.target(), list(range(8 * i, 8 * i + 8)), list(range(63 - 8 * i, 55 - 8 * i, -1)))
        for i in range(5)
    ]
    for target, _, theirs in plans:
        pair.receiver.expect(target.transfer_id, theirs, 0, 30.0)
    threads = [threading.Thread(target=pair.send, args=(target, ours)) for target, ours, _ in plans]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    outcomes = {outcome.transfer_id: outcome for outcome in pair.outcomes(len(plans))}
    for target, ours, theirs in plans:
        assert outcomes[target.transfer_id].error == ""
        assert (pair.target_store.pages[:, theirs] == pair.source.pages[:, ours]).all()
    # And nobody else's blocks were touched.
    assert not pair.target_store.pages[:, : 63 - 39].any()


def test_chunks_arrive_as_one_whole(pair: Any) -> None:
    target = pair.target()
    blocks = list(range(23))
    pair.receiver.expect(target.transfer_id, blocks, 0, 30.0)
    pair.send(target, blocks, num_chunks=6)
    (outcome,) = pair.outcomes()
    assert outcome.record is not None
    assert outcome.record.num_bytes == 23 * 3 * 1000
    assert outcome.record.num_blocks_reused == 0
    assert 0 < outcome.record.started_unix_ns <= outcome.record.ended_unix_ns
    assert (pair.target_store.pages[:, blocks] == pair.source.pages[:, blocks]).all()
    assert pair.receiver.counters() == StagedPageCounters(23 * 3, 23 * 3)
    assert pair.sender.counters() == StagedPageCounters(23 * 3, 23 * 3)


def test_nothing_is_reported_before_the_commit(pair: Any) -> None:
    target = pair.target()
    pair.receiver.expect(target.transfer_id, [0, 1], 0, 30.0)
    pair.sender.open(target, 2, "")
    pair.sender.push_pages(target.transfer_id, 0, [0, 1])
    while not pair.target_store.pages[2, 1].any():
        threading.Event().wait(0.002)
    assert pair.receiver.poll() == []
    pair.sender.prompt_computed(target.transfer_id)
    assert pair.outcomes()[0].error == ""
    assert pair.receiver.poll() == []


def test_pages_may_be_overwritten_as_soon_as_they_were_pushed(pair: Any) -> None:
    target = pair.target()
    pair.sender.open(target, 4, "")
    pair.sender.push_pages(target.transfer_id, 0, [0, 1, 2, 3])
    before = pair.source.pages[:, :4].copy()
    pair.source.pages[:] = 0
    pair.sender.prompt_computed(target.transfer_id)
    pair.receiver.expect(target.transfer_id, [9, 8, 7, 6], 0, 30.0)
    assert pair.outcomes()[0].error == ""
    assert (pair.target_store.pages[:, [9, 8, 7, 6]] == before).all()


def test_blocks_that_the_receiver_reuses_are_not_sent(pair: Any) -> None:
    """Some were copied before the receiver could say so, some after."""
    target = pair.target()
    pair.sender.open(target, 10, "")
    pair.sender.push_pages(target.transfer_id, 0, list(range(6)))
    pair.receiver.expect(target.transfer_id, list(range(20, 30)), 7, 30.0)
    pair.sender.push_pages(target.transfer_id, 6, list(range(6, 10)))
    pair.sender.prompt_computed(target.transfer_id)
    (outcome,) = pair.outcomes()
    assert outcome.record is not None, outcome.error
    assert outcome.record.num_bytes == 3 * 3 * 1000
    assert outcome.record.num_blocks_reused == 7
    assert not pair.target_store.pages[:, 20:27].any()
    assert (pair.target_store.pages[:, 27:30] == pair.source.pages[:, 7:10]).all()


def test_a_prompt_that_is_reused_whole_needs_no_pages(pair: Any) -> None:
    target = pair.target()
    pair.receiver.expect(target.transfer_id, [4, 5], 2, 30.0)
    pair.send(target, [4, 5])
    (outcome,) = pair.outcomes()
    assert outcome.record is not None, outcome.error
    assert (outcome.record.num_bytes, outcome.record.overlapped_ratio) == (0, 0.0)


def test_bytes_that_arrived_before_the_last_chunk_count_as_overlapped(pair: Any) -> None:
    target = pair.target()
    pair.receiver.expect(target.transfer_id, list(range(4)), 0, 30.0)
    pair.sender.open(target, 4, "")
    pair.sender.push_pages(target.transfer_id, 0, [0, 1, 2])
    # The acknowledgement is what counts, and only the sender's own transfer sees it.
    while pair.sender._transfers[target.transfer_id].num_bytes_acked < 9000:
        threading.Event().wait(0.002)
    pair.sender.push_pages(target.transfer_id, 3, [3])
    pair.sender.prompt_computed(target.transfer_id)
    record = pair.outcomes()[0].record
    assert record is not None
    assert 0.75 <= record.overlapped_ratio <= 1.0


def test_the_trace_context_travels_with_the_pages(pair: Any) -> None:
    target = pair.target()
    traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    pair.receiver.expect(target.transfer_id, [0], 0, 30.0)
    pair.sender.open(target, 1, traceparent)
    pair.sender.push_pages(target.transfer_id, 0, [0])
    pair.sender.prompt_computed(target.transfer_id)
    record = pair.outcomes()[0].record
    assert record is not None
    assert record.traceparent == traceparent


def test_a_page_larger_than_a_usual_message_travels_alone(make_pair: Callable[..., Any]) -> None:
    pair = make_pair(layout=PageLayout(2, 3 << 20, b"large"))
    target = pair.target()
    pair.receiver.expect(target.transfer_id, [3], 0, 30.0)
    pair.send(target, [5])
    record = pair.outcomes()[0].record
    assert record is not None
    assert record.num_frames == 2
    assert np.array_equal(pair.target_store.pages[:, 3], pair.source.pages[:, 5])


def test_a_foreign_sender_may_use_any_protobuf_library(pair: Any) -> None:
    target = pair.target()
    frames = [
        pb.PushRequest.FromString(message).SerializeToString() for message in pair.frames([1, 2])
    ]
    assert frames != pair.frames([1, 2])
    assert [decode(frame) for frame in frames] == [decode(frame) for frame in pair.frames([1, 2])]
    pair.receiver.expect(target.transfer_id, [7, 8], 0, 30.0)
    code = pair.stream([pair.opened(target, 2), *frames, pair.commit(frames)])
    assert code == grpc.StatusCode.OK
    assert pair.outcomes()[0].error == ""
    assert (pair.target_store.pages[:, [7, 8]] == pair.source.pages[:, [1, 2]]).all()


def test_pushing_waits_for_memory_instead_of_taking_more(make_pair: Callable[..., Any]) -> None:
    pair = make_pair(layout=PageLayout(1, 1 << 20, b"one"), max_staged_bytes=2 << 20)
    target = pair.target()
    pushing = threading.Thread(target=pair.send, args=(target, list(range(12))))
    pushing.start()
    while pair.sender.counters().num_created < 2:
        threading.Event().wait(0.002)
    counters = pair.sender.counters()
    assert counters.num_created - counters.num_released == 2
    pair.receiver.expect(target.transfer_id, list(range(12)), 0, 30.0)
    pushing.join()
    assert pair.outcomes()[0].error == ""
    assert (pair.target_store.pages[:, :12] == pair.source.pages[:, :12]).all()
