from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractContextManager

import pytest

from headway.adapters.null_telemetry import NullSpan, NullTelemetry
from headway.adapters.system_clock import SystemClock
from headway.core.cluster import ClusterSnapshot, WorkerLoad, WorkerRole
from headway.core.controller import Controller
from headway.core.planner.admission import PlannedAdmission
from headway.core.planner.interface import Decision, PlannerParams
from headway.core.request import RequestSpec
from headway.errors import NotFound, RequestCancelled
from headway.v1 import inference_service_pb2 as pb
from services.controller.loop import ControllerLoop
from services.controller.output import Output
from services.controller.request_trace import RequestTrace
from services.controller.worker_calls import Connection
from tests.core_objects import request, worker_spec

PARAMS = PlannerParams(1.0, 10, {})
PREFILL = worker_spec(WorkerRole.PREFILL)
DECODE = worker_spec(WorkerRole.DECODE)


def loop_with(policy: PlannedAdmission) -> ControllerLoop:
    controller = Controller(policy, max_requests=10)
    return ControllerLoop(controller, SystemClock(), NullTelemetry())


@pytest.fixture
async def loop() -> AsyncIterator[ControllerLoop]:
    made = loop_with(PlannedAdmission(PARAMS))
    yield made
    await made.close()


@pytest.fixture
async def connections(loop: ControllerLoop) -> list[Connection]:
    return [loop.join(PREFILL), loop.join(DECODE)]


def submitted(loop: ControllerLoop) -> AbstractContextManager[Output]:
    spec = request("r")
    trace = RequestTrace(NullTelemetry(), NullSpan(""), spec, "emulated")
    return loop.submitted(spec, trace, SystemClock().now_s())


@pytest.mark.usefixtures("connections")
async def test_a_client_that_is_cut_off_frees_its_request(loop: ControllerLoop) -> None:
    with submitted(loop) as output:
        assert loop.num_requests_running == 1
        loop.cut_off("r")
        assert loop.num_requests_running == 0
        await output.next()
        finished = await output.next()
        assert finished is not None
        assert finished.finished.state == pb.FINAL_STATE_CANCELLED
        with pytest.raises(RequestCancelled, match="did not read"):
            await output.next()


@pytest.mark.usefixtures("connections")
async def test_a_request_ends_when_its_client_leaves(loop: ControllerLoop) -> None:
    with submitted(loop):
        pass
    assert loop.num_requests_running == 0
    with pytest.raises(NotFound):
        loop.cancel("r")


class BrokenPolicy(PlannedAdmission):
    def decide(
        self, request: RequestSpec, cluster: ClusterSnapshot, elapsed_s: float = 0.0
    ) -> Decision:
        raise ZeroDivisionError


async def test_nothing_is_kept_of_a_client_whose_request_broke_the_controller() -> None:
    loop = loop_with(BrokenPolicy(PARAMS))
    with pytest.raises(ZeroDivisionError), submitted(loop):
        pass
    await loop.wait_no_client(0.0)
    assert loop._clients == {}


async def test_it_serves_while_there_is_a_worker_of_each_role(
    loop: ControllerLoop, connections: list[Connection]
) -> None:
    assert loop.serving
    await loop.lose(connections[0])
    assert not loop.serving


async def test_the_late_end_of_an_old_connection_does_not_lose_the_worker(
    loop: ControllerLoop, connections: list[Connection]
) -> None:
    newer = loop.join(PREFILL)
    assert connections[0].successor.done()
    loop.report(connections[0], WorkerLoad(draining=True))
    await loop.lose(connections[0])
    assert loop.serving
    assert not any(worker.load.draining for worker in loop.workers)
    await loop.lose(newer)
    assert [worker.spec for worker in loop.workers] == [DECODE]
    await loop.lose(connections[1])
    assert loop._calls._connections == set()
