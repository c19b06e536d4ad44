"""A worker's connection to the controller: says what it is, then again and again how it does."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from dataclasses import replace

import grpc

from headway.core.cluster import WorkerLoad, WorkerSpec
from headway.errors import HeadwayError, Unavailable
from headway.rpc.convert import duration_from_pb, load_to_pb, register_to_pb
from headway.rpc.errors import error_from_rpc
from headway.rpc.server import open_channel
from headway.v1 import control_service_pb2 as pb
from headway.v1 import control_service_pb2_grpc as pb_grpc

_log = logging.getLogger(__name__)

_Call = grpc.aio.StreamStreamCall[pb.ConnectRequest, pb.ConnectResponse]

_FIRST_BACKOFF_S = 0.05
_LONGEST_BACKOFF_S = 2.0


class ControlLink:
    """Keeps one worker registered for as long as `run` runs.

    Args:
        read_load: the newest load, for the next report.
        on_drain: awaited when the controller says that the worker must take nothing new.
        on_set_role: called when it says whether this decode worker may compute prompts itself.
    """

    def __init__(
        self,
        spec: WorkerSpec,
        controller_address: str,
        read_load: Callable[[], WorkerLoad],
        on_drain: Callable[[], Awaitable[None]],
        on_set_role: Callable[[bool], None],
    ) -> None:
        self._spec = spec
        self._controller_address = controller_address
        self._read_load = read_load
        self._on_drain = on_drain
        self._on_set_role = on_set_role
        self._is_role_new = False
        self._report_due = asyncio.Event()
        self._backoff_s = _FIRST_BACKOFF_S
        self._last_problem = ""
        self._drained = False

    def report_now(self) -> None:
        """Do not wait for the interval to pass: something important has changed."""
        self._report_due.set()

    async def run(self) -> None:
        """Connect, and connect again whenever the connection ends, until cancelled.

        A worker that was told to drain does not connect again: a newer start of it has its
        place, and each of the two would drive the other out.
        """
        while not self._drained:
            try:
                await self._session()
            except HeadwayError as error:
                # Once for each kind of problem: it may last for hours.
                if str(error) != self._last_problem:
                    _log.warning("no controller at %s: %s", self._controller_address, error)
                self._last_problem = str(error)
            # All workers of a restarted controller come back at once; the jitter spreads them.
            await asyncio.sleep(self._backoff_s * random.uniform(0.5, 1.5))  # noqa: S311
            self._backoff_s = min(2 * self._backoff_s, _LONGEST_BACKOFF_S)

    async def _session(self) -> None:
        # A channel of its own: a used one would first wait out grpc's own backoff.
        async with open_channel(self._controller_address) as channel:
            call: _Call = pb_grpc.ControlServiceStub(channel).Connect()
            try:
                await self._serve(call)
            except grpc.aio.AioRpcError as error:
                raise error_from_rpc(error) from error
            finally:
                call.cancel()

    async def _serve(self, call: _Call) -> None:
        await call.write(pb.ConnectRequest(register=register_to_pb(self._spec)))
        reporting: asyncio.Task[None] | None = None
        try:
            async for response in call:
                match response.WhichOneof("message"):
                    case "registered" if reporting is None:
                        interval_s = duration_from_pb(response.registered.report_interval)
                        reporting = asyncio.create_task(self._report(call, interval_s))
                        self._backoff_s = _FIRST_BACKOFF_S
                        self._last_problem = ""
                        _log.info("registered as %s", self._spec.worker_id)
                    case "set_role":
                        self._set_role(response.set_role.prefills_locally)
                    case "drain":
                        self._drained = True
                        await self._on_drain()
        finally:
            if reporting is not None:
                reporting.cancel()
                await asyncio.gather(reporting, return_exceptions=True)
        raise Unavailable("the controller closed the connection")

    def _set_role(self, prefills_locally: bool) -> None:
        self._on_set_role(prefills_locally)
        # It is what a worker that must connect anew registers with.
        self._spec = replace(self._spec, prefills_locally=prefills_locally)
        self._is_role_new = True
        self.report_now()

    async def _report(self, call: _Call, interval_s: float) -> None:
        """Ends when the call does; why it did is what the reading side learns."""
        while True:
            self._report_due.clear()
            if self._is_role_new:
                self._is_role_new = False
                taken = pb.RoleTaken(prefills_locally=self._spec.prefills_locally)
                await call.write(pb.ConnectRequest(role_taken=taken))
            await call.write(pb.ConnectRequest(report=load_to_pb(self._read_load())))
            try:
                await asyncio.wait_for(self._report_due.wait(), interval_s)
            except TimeoutError:
                continue
