"""What is special about transfers through shared memory; the rest is tested both ways."""

from __future__ import annotations

import multiprocessing as mp
import os
import resource
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headway.adapters.kv_grpc import segment
from headway.adapters.kv_grpc.layout import PageLayout
from headway.adapters.kv_grpc.numpy_store import NumpyPageStore
from headway.adapters.kv_grpc.receiver import KvReceiver
from headway.adapters.kv_grpc.segment import OfferedSegment
from headway.adapters.kv_grpc.sender import KvSender
from headway.adapters.kv_grpc.tickets import TicketMint
from headway.ports.engine import KvTarget

LAYOUT = PageLayout(num_layers=3, page_bytes=1000, digest=b"d" * 32)
# Four pages to a frame and four frames to a small segment.
LARGE = PageLayout(num_layers=3, page_bytes=256 << 10, digest=b"large")
SECRET = b"shared by a worker and its engine"


def until(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.002)


def num_mapped(pid: int | str = "self") -> int:
    """How many segments are in a process's memory."""
    return Path(f"/proc/{pid}/maps").read_text(encoding="utf-8").count("memfd:headway-kv")


def holds_none() -> bool:
    """Whether this process has no segment mapped nor open."""
    files = [link.readlink().name for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    return num_mapped() == 0 and not any("headway-kv" in name for name in files)


@pytest.fixture
def shares_memory() -> bool:
    return True


@pytest.fixture
def small_segments(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(segment, "_SLOTS_BYTES", 0)
    return 4


def is_over(pair: Any, target: KvTarget) -> bool:
    return target.transfer_id not in pair.sender._transfers


def link_of(pair: Any) -> Any:
    peer = pair.sender._peers[pair.receiver.address]
    assert peer.has_link
    return peer._link


def transfer_whole(pair: Any, request_id: str = "request") -> None:
    target = pair.target(request_id)
    pair.receiver.expect(target.transfer_id, [3, 2], 0, 30.0)
    pair.send(target, [0, 1])
    (outcome,) = pair.outcomes()
    assert outcome.error == ""
    assert (pair.target_store.pages[:, [3, 2]] == pair.source.pages[:, [0, 1]]).all()
    pair.target_store.pages[:] = 0


def test_one_host_shares_memory_and_all_slots_come_back(pair: Any) -> None:
    for number in range(3):
        transfer_whole(pair, str(number))
    link = link_of(pair)
    until(lambda: len(link.free._free) == len(link.slots))
    assert link._num_opened == 3


def test_memory_that_is_not_offered_is_done_without(make_pair: Callable[..., Any]) -> None:
    pair = make_pair(shares_memory=False)
    transfer_whole(pair)
    transfer_whole(pair, "second")
    assert not pair.sender._peers[pair.receiver.address].has_link


def test_memory_that_cannot_be_opened_is_done_without(
    pair: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the sender is in another container, or of another user."""
    offers = []
    offer_segment = pair.receiver._offers._offer

    def offer_unusable(transfer_id: str) -> OfferedSegment:
        offered: OfferedSegment = offer_segment(transfer_id)
        os.fchmod(offered.offer.descriptor, 0o640)
        offers.append(offered.offer)
        return offered

    monkeypatch.setattr(pair.receiver._offers, "_offer", offer_unusable)
    transfer_whole(pair)
    transfer_whole(pair, "second")
    assert len(offers) == 1, "a host that was tried once is not tried again"
    assert not pair.sender._peers[pair.receiver.address].has_link
    until(holds_none)


def test_a_system_that_gives_no_memory_is_done_without(pair: Any) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        transfer_whole(pair)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert holds_none()
    assert not pair.sender._peers[pair.receiver.address].has_link


def test_a_small_segment_is_used_many_times_over(
    make_pair: Callable[..., Any], small_segments: int
) -> None:
    """Ten transfers of 11 MB in all through 4 MiB; some push before they are expected."""
    pair = make_pair(layout=LARGE)
    plans = [
        (pair.target(str(index)), [index, index + 20, index + 10], index % 3) for index in range(10)
    ]
    pushing = []
    for number, (target, ours, first_block) in enumerate(plans):
        theirs = [6 * number + 2, 6 * number + 1, 6 * number + 4]
        if number % 2:
            pair.receiver.expect(target.transfer_id, theirs, first_block, 30.0)
        pushing.append(threading.Thread(target=pair.send, args=(target, ours)))
        pushing[-1].start()
        if not number % 2:
            pair.receiver.expect(target.transfer_id, theirs, first_block, 30.0)
    for thread in pushing:
        thread.join()
    outcomes = {outcome.transfer_id: outcome for outcome in pair.outcomes(len(plans))}
    for number, (target, ours, first_block) in enumerate(plans):
        theirs = [6 * number + 2, 6 * number + 1, 6 * number + 4]
        assert outcomes[target.transfer_id].error == ""
        sent = pair.source.pages[:, ours[first_block:]]
        assert (pair.target_store.pages[:, theirs[first_block:]] == sent).all()
        assert not pair.target_store.pages[:, theirs[:first_block]].any()
    link = link_of(pair)
    assert len(link.slots) == small_segments
    until(lambda: len(link.free._free) == small_segments)


def test_transfers_that_nobody_expects_leave_room_for_those_that_somebody_does(
    make_pair: Callable[..., Any], small_segments: int
) -> None:
    pair = make_pair(layout=LARGE)
    transfer_whole(pair, "first")
    link = link_of(pair)
    until(lambda: len(link.free._free) == small_segments)
    ignored = pair.target("ignored")
    pair.send(ignored, list(range(12)))
    assert len(link.free._free) == small_segments // 4
    transfer_whole(pair, "second")
    pair.sender.abort(ignored.transfer_id)
    until(lambda: len(link.free._free) == small_segments)


def test_an_aborted_transfer_gives_its_slots_back(
    make_pair: Callable[..., Any], small_segments: int
) -> None:
    pair = make_pair(layout=LARGE)
    transfer_whole(pair, "first")
    link = link_of(pair)
    for number in range(20):
        target = pair.target(str(number))
        pair.receiver.expect(target.transfer_id, list(range(40)), 0, 30.0)
        pushing = threading.Thread(target=pair.send, args=(target, list(range(40))))
        pushing.start()
        until(lambda: bool(pair.target_store.pages[:, :40].any()))
        (pair.sender if number % 2 else pair.receiver).abort(target.transfer_id)
        pushing.join()
        until(partial(is_over, pair, target))
        pair.until_at_rest()
        pair.target_store.pages[:] = 0
        until(lambda: len(link.free._free) == small_segments)
    pair.receiver.poll()
    assert link_of(pair) is link, "the link outlives transfers that fail"
    transfer_whole(pair, "last")


def test_another_sender_gets_memory_of_its_own(pair: Any) -> None:
    transfer_whole(pair)
    second = KvSender(pair.layout, pair.source)
    target = pair.target("second")
    pair.receiver.expect(target.transfer_id, [8], 0, 30.0)
    second.open(target, 1, "")
    second.push_pages(target.transfer_id, 0, [9])
    second.prompt_computed(target.transfer_id)
    assert pair.outcomes()[0].error == ""
    assert len(pair.receiver._offers) == 2
    second.close()
    until(lambda: len(pair.receiver._offers) == 1)
    transfer_whole(pair, "third")


def receive_for_ever(pipe: Connection) -> None:
    store = NumpyPageStore(8, LAYOUT)
    receiving = KvReceiver("127.0.0.1", LAYOUT, store, SECRET)
    transfer_id, ticket = TicketMint(SECRET).mint("request")
    receiving.expect(transfer_id, [0, 1, 2], 0, 1000.0)
    pipe.send(KvTarget(receiving.address, transfer_id, ticket))
    until(lambda: bool(store.pages.any()))
    pipe.send("arrived")
    pipe.recv()


def send_for_ever(pipe: Connection) -> None:
    store = NumpyPageStore(8, LAYOUT)
    store.pages[:] = np.uint8(1)
    sender = KvSender(LAYOUT, store)
    target = pipe.recv()
    sender.open(target, 3, "")
    sender.push_pages(target.transfer_id, 0, [0, 1])
    pipe.recv()


@pytest.fixture
def start_process() -> Iterator[Callable[..., tuple[Any, Connection]]]:
    processes = []

    def start(body: Callable[[Connection], None]) -> tuple[Any, Connection]:
        ours, theirs = mp.Pipe()
        process = mp.get_context("spawn").Process(target=body, args=(theirs,), daemon=True)
        process.start()
        processes.append(process)
        return process, ours

    yield start
    for process in processes:
        process.kill()
        process.join()


def test_a_receiver_that_was_killed_leaves_no_memory(
    pair: Any, start_process: Callable[..., Any]
) -> None:
    names = sorted(Path("/dev/shm").iterdir())
    process, pipe = start_process(receive_for_ever)
    target = pipe.recv()
    pair.sender.open(target, 3, "")
    pair.sender.push_pages(target.transfer_id, 0, [0, 1])
    assert pipe.recv() == "arrived"
    assert num_mapped(process.pid) == num_mapped() == 1
    process.kill()
    until(lambda: target.transfer_id not in pair.sender._transfers)
    until(holds_none)
    until(lambda: pair.sender._peers == {})
    assert sorted(Path("/dev/shm").iterdir()) == names


def test_a_sender_that_was_killed_leaves_no_memory(
    pair: Any, start_process: Callable[..., Any]
) -> None:
    names = sorted(Path("/dev/shm").iterdir())
    process, pipe = start_process(send_for_ever)
    target = pair.target()
    pair.receiver.expect(target.transfer_id, [10, 11, 12], 0, 1000.0)
    pipe.send(target)
    until(lambda: bool(pair.target_store.pages[2, 11].any()))
    assert num_mapped(process.pid) == num_mapped() == 1
    process.kill()
    assert pair.outcomes()[0].record is None
    pair.until_at_rest()
    until(holds_none)
    assert sorted(Path("/dev/shm").iterdir()) == names


def test_an_idle_receiver_that_goes_takes_its_memory_with_it(pair: Any) -> None:
    transfer_whole(pair)
    assert num_mapped() == 2
    pair.receiver.close()
    until(lambda: pair.sender._peers == {})
    until(holds_none)
