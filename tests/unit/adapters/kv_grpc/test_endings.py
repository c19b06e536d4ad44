"""Every way a transfer can end early. The fixture checks that nothing staged is left."""

from __future__ import annotations

import multiprocessing as mp
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import grpc
import numpy as np
import pytest

from headway.adapters.kv_grpc.layout import PageLayout
from headway.adapters.kv_grpc.numpy_store import NumpyPageStore
from headway.adapters.kv_grpc.receiver import KvReceiver
from headway.adapters.kv_grpc.sender import KvSender
from headway.adapters.kv_grpc.tickets import TicketMint
from headway.ports.engine import KvTarget
from headway.v1 import kv_transfer_service_pb2 as pb

LAYOUT = PageLayout(num_layers=3, page_bytes=1000, digest=b"d" * 32)
SECRET = b"shared by a worker and its engine"
STAGES = ["opened", "pushed", "accepted", "arrived"]


def until(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.002)


def is_over(pair: Any, target: KvTarget) -> bool:
    return target.transfer_id not in pair.sender._transfers


def bring_to(pair: Any, stage: str) -> KvTarget:
    """A transfer of three blocks, two of them pushed, that has come as far as `stage`."""
    target: KvTarget = pair.target()
    pair.sender.open(target, 3, "")
    if stage == "opened":
        return target
    pair.sender.push_pages(target.transfer_id, 0, [0, 1])
    if stage == "pushed":
        return target
    pair.receiver.expect(target.transfer_id, [10, 11, 12], 0, 30.0)
    until(lambda: target.transfer_id in pair.receiver._streams)
    if stage == "arrived":
        until(lambda: bool(pair.target_store.pages[2, 11].any()))
    return target


@pytest.mark.parametrize("stage", STAGES)
def test_when_the_sender_gives_up_the_receiver_hears_of_it(pair: Any, stage: str) -> None:
    target = bring_to(pair, stage)
    pair.sender.abort(target.transfer_id)
    pair.sender.abort(target.transfer_id)
    pair.sender.push_pages(target.transfer_id, 2, [2])
    pair.sender.prompt_computed(target.transfer_id)
    if stage in ("opened", "pushed"):
        # Aborted so early that the stream may never have reached the receiver.
        pair.receiver.expect(target.transfer_id, [10, 11, 12], 0, 0.5)
    (outcome,) = pair.outcomes()
    assert outcome.record is None
    assert outcome.error


@pytest.mark.parametrize("stage", STAGES)
def test_when_the_receiver_gives_up_the_sender_drops_its_pages(pair: Any, stage: str) -> None:
    target = bring_to(pair, stage)
    expected = stage in ("accepted", "arrived")
    assert pair.receiver.abort(target.transfer_id) is expected
    assert pair.receiver.abort(target.transfer_id) is False
    before = pair.target_store.pages.copy()
    until(lambda: target.transfer_id not in pair.sender._transfers)
    pair.sender.push_pages(target.transfer_id, 2, [2])
    pair.until_at_rest()
    assert (pair.target_store.pages == before).all()
    assert pair.receiver.poll() == []


def test_the_sender_hears_of_an_abort_at_any_moment(pair: Any) -> None:
    """Above all while the receiver is writing an answer, when gRPC cannot end a stream."""
    for _ in range(100):
        target = bring_to(pair, "accepted")
        assert pair.receiver.abort(target.transfer_id)
        until(partial(is_over, pair, target))


def test_nothing_is_written_after_an_abort_returned(pair: Any) -> None:
    """The blocks go to the next request at once; a late page would corrupt it."""
    for _ in range(20):
        target = pair.target()
        pair.receiver.expect(target.transfer_id, list(range(40)), 0, 30.0)
        pair.send(target, list(range(40)), num_chunks=8)
        until(lambda: bool(pair.target_store.pages[:, :40].any()))
        pair.receiver.abort(target.transfer_id)
        pair.target_store.pages[:] = 0
        pair.until_at_rest()
        until(partial(is_over, pair, target))
        assert not pair.target_store.pages.any()


def test_a_sender_that_comes_after_the_abort_is_turned_away(pair: Any) -> None:
    target = pair.target()
    assert pair.receiver.abort(target.transfer_id) is False
    assert pair.stream([pair.opened(target, 1)]) == grpc.StatusCode.PERMISSION_DENIED


def test_a_sender_that_comes_after_the_timeout_is_turned_away(pair: Any) -> None:
    target = pair.target()
    pair.receiver.expect(target.transfer_id, [1], 0, 0.01)
    assert pair.outcomes()[0].error
    assert pair.stream([pair.opened(target, 1)]) == grpc.StatusCode.PERMISSION_DENIED


def test_a_transfer_fails_when_no_sender_ever_comes(pair: Any) -> None:
    pair.receiver.expect("nobody knows it", [1, 2], 0, 0.05)
    (outcome,) = pair.outcomes()
    assert "0.05 s" in outcome.error


def test_a_transfer_fails_when_it_is_not_complete_in_time(pair: Any) -> None:
    target = bring_to(pair, "pushed")
    pair.receiver.expect(target.transfer_id, [10, 11, 12], 0, 0.3)
    (outcome,) = pair.outcomes()
    assert outcome.record is None
    pair.target_store.pages[:] = 0
    pair.sender.push_pages(target.transfer_id, 2, [2])
    pair.sender.prompt_computed(target.transfer_id)
    until(lambda: target.transfer_id not in pair.sender._transfers)
    assert not pair.target_store.pages.any()


def test_a_committed_transfer_does_not_fail_later(pair: Any) -> None:
    target = pair.target()
    pair.receiver.expect(target.transfer_id, [5], 0, 0.5)
    pair.send(target, [0])
    assert pair.outcomes()[0].error == ""
    assert pair.receiver.abort(target.transfer_id) is False
    pair.receiver.expect("a later one", [6], 0, 0.6)
    assert [outcome.transfer_id for outcome in pair.outcomes()] == ["a later one"]


def test_a_sender_that_left_before_it_was_expected_fails_the_transfer_at_once(pair: Any) -> None:
    target = pair.target()
    with grpc.insecure_channel(pair.receiver.address) as channel:
        push: grpc.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(
            "/headway.v1.KvTransferService/Push"
        )
        call = push(iter([pair.opened(target, 1)]))
        until(lambda: target.transfer_id in pair.receiver._waiting)
        call.cancel()
    until(lambda: target.transfer_id not in pair.receiver._waiting)
    pair.receiver.expect(target.transfer_id, [1], 0, 10_000.0)
    assert "broke off" in pair.outcomes()[0].error


def test_only_so_many_streams_wait_for_blocks() -> None:
    receiver = KvReceiver("127.0.0.1", LAYOUT, NumpyPageStore(4, LAYOUT), SECRET, max_waiting=0)
    sender = KvSender(LAYOUT, NumpyPageStore(4, LAYOUT))
    transfer_id, ticket = TicketMint(SECRET).mint("request")
    sender.open(KvTarget(receiver.address, transfer_id, ticket), 1, "")
    until(lambda: transfer_id not in sender._transfers)
    sender.close()
    receiver.close()


@pytest.fixture
def silent_server() -> Iterator[str]:
    """Accepts every transfer, and then neither reads nor answers."""
    over = threading.Event()

    def push(_requests: Iterator[bytes], _context: grpc.ServicerContext) -> Iterator[bytes]:
        yield pb.PushResponse(accepted=pb.PushAccepted()).SerializeToString()
        over.wait()

    server = grpc.server(ThreadPoolExecutor(2))
    handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.stream_stream_rpc_method_handler(push)
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler("headway.v1.KvTransferService", {"Push": handler})]
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    over.set()
    server.stop(None).wait()


@pytest.mark.parametrize("page_bytes", [1000, 4 << 20])
def test_a_receiver_that_stalls_costs_its_own_transfer_only(
    make_pair: Callable[..., Any], silent_server: str, page_bytes: int
) -> None:
    """With small pages the commit gets no answer; with large ones the network takes no more."""
    pair = make_pair(layout=PageLayout(1, page_bytes, b"any"), stall_timeout_s=0.3)
    pair.send(KvTarget(silent_server, "stalled", b""), [0, 1, 2, 3])
    until(lambda: "stalled" not in pair.sender._transfers)
    pair.until_at_rest()
    target = pair.target()
    pair.receiver.expect(target.transfer_id, [0], 0, 30.0)
    pair.send(target, [0])
    assert pair.outcomes()[0].error == ""


def test_a_push_that_gets_no_memory_gives_its_transfer_up(make_pair: Callable[..., Any]) -> None:
    pair = make_pair(
        layout=PageLayout(1, 1 << 20, b"one"), max_staged_bytes=2 << 20, stall_timeout_s=0.2
    )
    target = pair.target()
    pair.send(target, list(range(8)))
    assert target.transfer_id not in pair.sender._transfers


def test_what_nobody_accepts_makes_room_for_what_is_awaited(make_pair: Callable[..., Any]) -> None:
    pair = make_pair(
        layout=PageLayout(1, 1 << 20, b"one"), max_staged_bytes=2 << 20, stall_timeout_s=2.0
    )
    ignored, awaited = pair.target("ignored"), pair.target("awaited")
    pair.send(ignored, [0, 1])
    pair.receiver.expect(awaited.transfer_id, [5, 6], 0, 30.0)
    pair.send(awaited, [2, 3])
    (outcome,) = pair.outcomes()
    assert (outcome.transfer_id, outcome.error) == (awaited.transfer_id, "")
    assert ignored.transfer_id not in pair.sender._transfers
    pair.until_at_rest()


def test_a_target_where_nobody_listens_costs_nothing(pair: Any) -> None:
    with NobodyListens() as address:
        pair.send(KvTarget(address, "lost", b""), [0, 1])
        until(lambda: "lost" not in pair.sender._transfers)
    assert pair.sender._peers == {}


class NobodyListens:
    """A port that is taken but refuses connections."""

    def __enter__(self) -> str:
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{self._socket.getsockname()[1]}"

    def __exit__(self, *_: object) -> None:
        self._socket.close()


def receive_for_ever(pipe: Connection) -> None:
    store = NumpyPageStore(8, LAYOUT)
    receiver = KvReceiver("127.0.0.1", LAYOUT, store, SECRET)
    transfer_id, ticket = TicketMint(SECRET).mint("request")
    receiver.expect(transfer_id, [0, 1, 2], 0, 1000.0)
    pipe.send(KvTarget(receiver.address, transfer_id, ticket))
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


def test_when_the_receiving_process_is_killed_the_sender_drops_its_pages(
    pair: Any, start_process: Callable[..., Any]
) -> None:
    process, pipe = start_process(receive_for_ever)
    target = pipe.recv()
    pair.sender.open(target, 3, "")
    pair.sender.push_pages(target.transfer_id, 0, [0, 1])
    assert pipe.recv() == "arrived"
    process.kill()
    until(lambda: target.transfer_id not in pair.sender._transfers)
    pair.sender.push_pages(target.transfer_id, 2, [2])


def test_when_the_sending_process_is_killed_the_transfer_fails(
    pair: Any, start_process: Callable[..., Any]
) -> None:
    process, pipe = start_process(send_for_ever)
    target = pair.target()
    pair.receiver.expect(target.transfer_id, [10, 11, 12], 0, 1000.0)
    pipe.send(target)
    until(lambda: bool(pair.target_store.pages[2, 11].any()))
    process.kill()
    assert pair.outcomes()[0].record is None


def test_closing_in_the_middle_of_transfers_releases_everything(pair: Any) -> None:
    for stage in STAGES:
        bring_to(pair, stage)
    pair.sender.close()
    pair.receiver.close()
    for counters in (pair.sender.counters(), pair.receiver.counters()):
        assert counters.num_created == counters.num_released
    pair.sender.open(pair.target(), 1, "")
    pair.sender.abort("any")
    pair.receiver.abort("any")
