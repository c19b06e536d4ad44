"""Feeds events to the controller and carries out what it asks. Decides nothing."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import assert_never

from headway.adapters.event_log import EventLog
from headway.core.cluster import WorkerLoad, WorkerRole, WorkerSnapshot, WorkerSpec
from headway.core.controller import Controller
from headway.core.effects import (
    AbortOnWorkers,
    Effect,
    RelayTokens,
    SendAdmission,
    SendFinished,
    SendRefusal,
    SetRole,
    StartDecode,
    StartPrefill,
    WakeAt,
)
from headway.core.events import (
    CancelCause,
    CancelRequested,
    Event,
    RequestArrived,
    RoleAsked,
    RoleTaken,
    TimePassed,
    WorkerJoined,
    WorkerLost,
    WorkerReported,
)
from headway.core.request import RequestSpec
from headway.errors import NotFound
from headway.ports.clock import Clock
from headway.ports.engine import EngineLoad
from headway.ports.telemetry import Telemetry
from services.controller.messages import (
    admission_to_pb,
    final_error,
    finished_to_pb,
    refusal_error,
)
from services.controller.output import Output
from services.controller.request_trace import RequestTrace
from services.controller.worker_calls import Connection, WorkerCalls


class ControllerLoop:
    """The live world around one `Controller`. Everything happens on one event loop."""

    def __init__(
        self,
        controller: Controller,
        clock: Clock,
        telemetry: Telemetry,
        event_log: EventLog | None = None,
    ) -> None:
        """Args: event_log: gets every event with its effects."""
        self._controller = controller
        self._event_log = event_log
        self._clock = clock
        self._telemetry = telemetry
        self._calls = WorkerCalls(self.post, telemetry)
        self._events: deque[Event] = deque()
        self._handling = False
        self._clients: dict[str, tuple[Output, RequestTrace]] = {}
        self._no_client = asyncio.Event()
        self._no_client.set()
        self._wake: asyncio.TimerHandle | None = None

    def post(self, event: Event) -> None:
        """Handle an event now; or next, if it is the consequence of one being handled."""
        self._events.append(event)
        if self._handling:
            return
        self._handling = True
        try:
            while self._events:
                event, now_s = self._events.popleft(), self._clock.now_s()
                effects = self._controller.handle(event, now_s)
                if self._event_log is not None:
                    self._event_log.add(event, now_s, effects)
                for effect in effects:
                    self._perform(effect)
        finally:
            self._handling = False

    @contextmanager
    def submitted(
        self, request: RequestSpec, trace: RequestTrace, arrived_at_s: float
    ) -> Iterator[Output]:
        """Start a request; when the block ends, so does the request if it has not yet."""
        request_id = request.request_id
        output = Output()
        self._clients[request_id] = (output, trace)
        self._no_client.clear()
        try:
            self.post(RequestArrived(request, arrived_at_s))
            yield output
        finally:
            try:
                self.post(CancelRequested(request_id, CancelCause.DISCONNECTED))
            finally:
                del self._clients[request_id]
                if not self._clients:
                    self._no_client.set()

    def cut_off(self, request_id: str) -> None:
        """End a request whose client does not read."""
        self.post(CancelRequested(request_id, CancelCause.SLOW_READER))

    def cancel(self, request_id: str) -> None:
        """End a request early.

        Raises:
            NotFound: no such request is running.
        """
        if not self._controller.has_request(request_id):
            raise NotFound("no such request is running")
        self.post(CancelRequested(request_id, CancelCause.ASKED))

    def join(self, spec: WorkerSpec) -> Connection:
        """A worker has registered; an earlier connection of it counts no more."""
        connection = self._calls.connect(spec)
        self.post(WorkerJoined(spec))
        return connection

    def report(self, connection: Connection, load: WorkerLoad) -> None:
        """Note how a worker does, unless it has connected anew since."""
        if not self._calls.is_newest(connection):
            return
        spec = connection.spec
        self.post(WorkerReported(spec.worker_id, spec.incarnation, load))
        self._telemetry.worker_load(
            spec.worker_id,
            EngineLoad(
                num_running=load.num_running,
                num_waiting=load.num_waiting,
                num_free_kv_blocks=load.num_free_kv_blocks,
                resources=load.resources,
                step_time_ratio=load.step_time_ratio,
            ),
        )

    def set_role(self, worker_id: str, *, prefills_locally: bool) -> None:
        """Let a decode worker compute prompts itself, or end doing so."""
        self.post(RoleAsked(worker_id, prefills_locally))

    def role_taken(self, connection: Connection, *, prefills_locally: bool) -> None:
        """A worker says that it does so, unless it has connected anew since."""
        if self._calls.is_newest(connection):
            spec = connection.spec
            self.post(RoleTaken(spec.worker_id, spec.incarnation, prefills_locally))

    async def lose(self, connection: Connection) -> None:
        """A worker's connection has ended: so has the worker, unless it connected anew."""
        try:
            if self._calls.is_newest(connection):
                spec = connection.spec
                self.post(WorkerLost(spec.worker_id, spec.incarnation))
        finally:
            await self._calls.disconnect(connection)

    @property
    def workers(self) -> list[WorkerSnapshot]:
        return self._controller.workers

    @property
    def num_best_effort_queued(self) -> int:
        return self._controller.num_best_effort_queued

    @property
    def num_requests(self) -> int:
        """Admitted and not ended."""
        return self.num_requests_running + self.num_best_effort_queued

    @property
    def num_requests_running(self) -> int:
        return self._controller.num_requests_running

    @property
    def serving(self) -> bool:
        """Whether there are workers for both phases."""
        specs = [worker.spec for worker in self.workers]
        decodes = any(spec.role is WorkerRole.DECODE for spec in specs)
        return decodes and any(spec.prefills for spec in specs)

    async def wait_no_client(self, timeout_s: float) -> None:
        """Until no client is connected, or the time is over."""
        try:
            await asyncio.wait_for(self._no_client.wait(), timeout_s)
        except TimeoutError:
            return

    def cancel_all(self) -> None:
        """End all requests because the process ends; their clients are told."""
        for request_id in list(self._clients):
            self.post(CancelRequested(request_id, CancelCause.SHUTDOWN))

    async def close(self) -> None:
        """Cancel what runs on workers and close the connections to them."""
        if self._wake is not None:
            self._wake.cancel()
        await self._calls.close()

    def _perform(self, effect: Effect) -> None:
        match effect:
            case RelayTokens(request_id, first_index, token_ids, text):
                self._clients[request_id][0].add_tokens(first_index, token_ids, text)
            case SendAdmission():
                output, trace = self._clients[effect.request.request_id]
                trace.admit(effect)
                output.admit(admission_to_pb(effect))
            case SendRefusal():
                output, trace = self._clients[effect.request_id]
                trace.refuse(effect)
                output.refuse(refusal_error(effect.refusal))
            case SendFinished():
                output, trace = self._clients[effect.request_id]
                trace.finish(effect)
                output.finish(finished_to_pb(effect), final_error(effect))
            case StartDecode():
                trace = self._clients[effect.request.request_id][1]
                self._calls.start_decode(effect, trace.traceparent)
            case StartPrefill():
                trace = self._clients[effect.request.request_id][1]
                self._calls.start_prefill(effect, trace.traceparent)
            case AbortOnWorkers(request_id):
                self._calls.abort(request_id)
            case SetRole():
                self._calls.set_role(effect)
            case WakeAt(at_s):
                self._wake_at(at_s)
            case _:
                assert_never(effect)

    def _wake_at(self, at_s: float) -> None:
        if self._wake is not None:
            self._wake.cancel()
        delay_s = max(0.0, at_s - self._clock.now_s())
        self._wake = asyncio.get_running_loop().call_later(delay_s, self.post, TimePassed())
