"""One controller, put together from its config."""

from __future__ import annotations

import asyncio
import logging
import secrets

from headway.adapters.build_controller import build_controller
from headway.adapters.event_log import open_event_log
from headway.adapters.system_clock import SystemClock
from headway.adapters.telemetry import CONTROLLER, build_telemetry
from headway.adapters.tokenizer import load_tokenizer
from headway.config import Config
from headway.core.planner.warm_up import warm_up
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
        ConfigError: the tokenizer, the telemetry or the event log cannot be made as configured.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        clock = SystemClock()
        tiers = {name: tier.slo() for name, tier in config.controller.tiers.items()}
        tokenizer = load_tokenizer(config.model)
        self._telemetry = build_telemetry(config, CONTROLLER)
        self._event_log = open_event_log(config.controller)
        self._loop = ControllerLoop(
            build_controller(config.controller), clock, self._telemetry, self._event_log
        )
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
            # Compiled code is loaded, or made, before the first request waits for it.
            await asyncio.to_thread(warm_up)
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
            if self._event_log is not None:
                await asyncio.to_thread(self._event_log.close)

    async def _drain(self) -> None:
        self._inference.stop_admitting()
        await self._server.stop_serving()
        await self._loop.wait_no_client(DRAIN_S)
        self._loop.cancel_all()
        await self._loop.wait_no_client(FLUSH_S)
