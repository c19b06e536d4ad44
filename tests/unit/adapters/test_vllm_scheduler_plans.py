"""Plan updates between processes, steps as they end, and the waker."""

from __future__ import annotations

import socket
import threading
import time

import pytest

from headway.adapters.vllm_scheduler.demand import Demand, decode_update, encode_update
from headway.adapters.vllm_scheduler.plan_socket import PlanReceiver, PlanSender
from headway.adapters.vllm_scheduler.step_log import ScheduledStep, StepLog
from headway.adapters.vllm_scheduler.waker import Waker
from headway.core.slo import Promise, StageSlo
from headway.errors import EngineFailed
from headway.ports.engine import DemandChange, PlanUpdate

PROMISE = Promise(1.5, (StageSlo(0.5, end_token_id=7), StageSlo(0.2)))


def test_an_update_arrives_as_it_was_sent() -> None:
    update = PlanUpdate(
        step_cap_s=0.02,
        time_ratio=1.3,
        draft_lengths={"chat": 3},
        demands={"a": DemandChange(promise=PROMISE), "b": DemandChange(due_s=0.5)},
    )
    received = decode_update(encode_update(update, now_s=100.0))
    assert (received.step_cap_s, received.time_ratio) == (0.02, 1.3)
    assert received.draft_lengths == {"chat": 3}
    assert received.demands == {"a": (None, PROMISE), "b": (100.5, None)}


def test_a_demand_arrives_as_it_was_sent() -> None:
    demand = Demand("a", 3.0, due_at_s=4.0, promise=PROMISE, tier="chat", step_cap_s=0.1)
    assert Demand.from_wire(demand.to_wire()) == demand


@pytest.fixture
def arrived() -> threading.Semaphore:
    return threading.Semaphore(0)


def test_updates_come_in_order_and_rubbish_is_left_out(arrived: threading.Semaphore) -> None:
    receiver = PlanReceiver(arrived.release)
    sender = PlanSender(receiver.address)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as raw:
        for datagram in (b"{}", b"nonsense", b'{"step_cap_s": 1}', b""):
            raw.sendto(datagram, f"\0{receiver.address}")
    for index in range(5):
        sender.send(PlanUpdate(step_cap_s=float(index)))
    for _ in range(5):
        assert arrived.acquire(timeout=10)
    assert [update.step_cap_s for update in receiver.take()] == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert not receiver.has_updates
    receiver.close()
    with pytest.raises(EngineFailed):
        sender.send(PlanUpdate())
    sender.close()


def test_a_waker_wakes_when_told_last() -> None:
    woken = threading.Event()
    waker = Waker(woken.set)
    waker.wake_at(time.monotonic() + 3600)
    at_s = time.monotonic() + 0.02
    waker.wake_at(at_s)
    assert woken.wait(timeout=10)
    assert time.monotonic() >= at_s
    waker.close()


def scheduled(at_s: float, predicted_s: float, num_tokens: int = 5) -> ScheduledStep:
    return ScheduledStep(at_s, predicted_s, num_tokens, 5, 0, 0, 0)


def test_a_step_starts_when_those_before_it_have_ended() -> None:
    log = StepLog()
    assert log.next_start_at_s(10.0, 1.0) == 10.0
    log.scheduled(scheduled(10.0, 0.5))
    assert log.next_start_at_s(10.1, 2.0) == pytest.approx(11.0)
    log.scheduled(scheduled(10.1, 0.5))
    assert log.next_start_at_s(10.1, 1.0) == pytest.approx(11.0)
    log.ended(10.8)
    assert log.next_start_at_s(10.9, 1.0) == pytest.approx(11.3)
    log.ended(11.2)
    first, second = log.take()
    assert [first.started_at_s, first.duration_s] == pytest.approx([10.0, 0.8])
    # It was handed over while the first one ran.
    assert [second.started_at_s, second.duration_s] == pytest.approx([10.8, 0.4])
    assert log.take() == []


def test_the_time_ratio_is_learned_from_steps_that_were_formed() -> None:
    log = StepLog()
    for index in range(60):
        log.scheduled(scheduled(float(index), 0.2))
        log.ended(index + 0.3)
        log.scheduled(scheduled(index + 0.4, 0.0))
        log.ended(index + 0.45)
        log.scheduled(scheduled(index + 0.5, 0.0, num_tokens=0))
        log.ended(index + 0.501)
    assert log.time_ratio == pytest.approx(1.5, rel=0.02)
    assert len(log.take()) == 120
