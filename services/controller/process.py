"""One controller, put together from its config."""

from __future__ import annotations

import asyncio
import logging
import secrets

from headway.adapters.system_clock import SystemClock
from headway.adapters.telemetry import CONTROLLER, build_telemetry
from headway.adapters.tokenizer import load_tokenizer
from headway.config import Config
from headway.core.controller import Controller
from headway.core.planner import build_policies
from headway.core.planner.interface import PlannerParams
from headway.rpc.server import Server
from headway.v1 import control_service_pb2_grpc, inference_service_pb2_grpc
from services.controller import control_servicer, servicer
from services.controller.control_servicer import ControlServicer
from services.controller.loop import ControllerLoop
from services.controller.servicer import InferenceServicer
from services.controller.validation import RequestReader

_log = logging.getLogger(__name__)

# When told to end: for what runs, then for clients to be told.
DRAIN_S = 5.0
FLUSH_S = 2.0


class ControllerProcess:
    """Wires one controller together. Must be made while its event loop runs.

    Raises:
        ConfigError: the tokenizer or the telemetry cannot be made as configured.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        clock = SystemClock()
        tiers = {name: tier.slo() for name, tier in config.controller.tiers.items()}
        params = PlannerParams(
            guard_ratio=config.controller.guard_ratio,
            max_best_effort_queued=config.controller.max_best_effort_queued,
            tiers={name: slo for name, slo in tiers.items() if slo is not None},
        )
        controller = Controller(
            build_policies(params).admission,
            guard_ratio=params.guard_ratio,
            max_requests=config.controller.max_requests,
        )
        tokenizer = load_tokenizer(config.model)
        self._telemetry = build_telemetry(config, CONTROLLER)
        self._loop = ControllerLoop(controller, clock, self._telemetry)
        self._server = Server((servicer.SERVICE_NAME, control_servicer.SERVICE_NAME))
        reader = RequestReader(tiers, tokenizer, lambda: secrets.token_hex(16))
        self._inference = InferenceServicer(config, self._loop, reader, self._telemetry, clock)
        inference_service_pb2_grpc.add_InferenceServiceServicer_to_server(
            self._inference, self._server.grpc
        )
        control_service_pb2_grpc.add_ControlServiceServicer_to_server(
            ControlServicer(
                self._loop, self._server, config.model.name, config.controller.report_interval_s
            ),
            self._server.grpc,
        )

    async def run(self, stopped: asyncio.Event, listening: asyncio.Future[str]) -> None:
        """Serve until `stopped` is set, then end in order.

        What runs then gets `DRAIN_S` to end, and after that a terminal message.

        Args:
            stopped: set by whoever wants the process to end.
            listening: gets the address in use.

        Raises:
            Unavailable: the address cannot be bound.
        """
        try:
            address = await self._server.listen(self._config.controller.listen)
            _log.info("serving on %s", address)
            listening.set_result(address)
            try:
                await stopped.wait()
                await self._drain()
            finally:
                await self._server.stop(0.0)
        finally:
            await self._loop.close()
            self._telemetry.shutdown()

    async def _drain(self) -> None:
        self._inference.stop_admitting()
        await self._server.stop_serving()
        await self._loop.wait_no_client(DRAIN_S)
        self._loop.cancel_all()
        await self._loop.wait_no_client(FLUSH_S)
