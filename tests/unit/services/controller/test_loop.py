from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from headway.adapters.null_telemetry import NullSpan, NullTelemetry
from headway.core.cluster import WorkerRole
from headway.core.controller import Controller
from headway.core.planner import build_policies
from headway.core.planner.interface import PlannerParams
from headway.errors import NotFound, RequestCancelled
from headway.v1 import inference_service_pb2 as pb
from services.controller.loop import SLOW_READER_S, ControllerLoop
from services.controller.output import Output
from services.controller.request_trace import RequestTrace
from tests.core_objects import request, worker_spec


@dataclass
class HandClock:
    """Implements `ports.Clock`: shows what the test sets."""

    at_s: float = 0.0

    def now_s(self) -> float:
        return self.at_s


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
async def loop(clock: HandClock) -> AsyncIterator[ControllerLoop]:
    policy = build_policies(PlannerParams(1.0, 10, {})).admission
    controller = Controller(policy, guard_ratio=1.0, max_requests=10)
    made = ControllerLoop(controller, clock, NullTelemetry())
    made.join(worker_spec(WorkerRole.PREFILL))
    made.join(worker_spec(WorkerRole.DECODE))
    yield made
    await made.close()


def submit(loop: ControllerLoop) -> Output:
    spec = request("r")
    return loop.submit(spec, RequestTrace(NullTelemetry(), NullSpan(""), spec, "emulated"))


async def test_a_client_that_does_not_read_is_cancelled(
    loop: ControllerLoop, clock: HandClock
) -> None:
    output = submit(loop)
    output.blocked_since_s = clock.now_s()
    clock.at_s = SLOW_READER_S
    loop.cancel_slow_readers()
    assert loop.num_requests_running == 1
    clock.at_s = SLOW_READER_S + 0.1
    loop.cancel_slow_readers()
    assert loop.num_requests_running == 0
    await output.next()
    finished = await output.next()
    assert finished is not None
    assert finished.finished.state == pb.FINAL_STATE_CANCELLED
    with pytest.raises(RequestCancelled, match="did not read"):
        await output.next()


async def test_a_client_that_has_nothing_to_read_is_not_slow(
    loop: ControllerLoop, clock: HandClock
) -> None:
    submit(loop)
    clock.at_s = 10 * SLOW_READER_S
    loop.cancel_slow_readers()
    assert loop.num_requests_running == 1


async def test_a_request_ends_when_its_client_leaves(loop: ControllerLoop) -> None:
    submit(loop)
    loop.leave("r")
    assert loop.num_requests_running == 0
    with pytest.raises(NotFound):
        loop.cancel("r")


async def test_it_serves_while_there_is_a_worker_of_each_role(loop: ControllerLoop) -> None:
    assert loop.serving
    await loop.lose(worker_spec(WorkerRole.PREFILL))
    assert not loop.serving
