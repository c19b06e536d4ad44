"""Runs one decode worker: `python -m services.decode --config FILE [--replica N]`."""

from __future__ import annotations

import sys

import grpc

from headway.adapters.worker.host import main
from headway.adapters.worker.slots import Slots
from headway.core.cluster import WorkerRole
from headway.ports.engine import Engine
from headway.ports.telemetry import Telemetry
from headway.v1.decode_service_pb2_grpc import add_DecodeServiceServicer_to_server
from services.decode.servicer import SERVICE_NAME, DecodeServicer


def _add_servicer(
    server: grpc.aio.Server, engine: Engine, slots: Slots, telemetry: Telemetry
) -> None:
    add_DecodeServiceServicer_to_server(DecodeServicer(engine, slots, telemetry), server)


if __name__ == "__main__":
    sys.exit(main(WorkerRole.DECODE, SERVICE_NAME, _add_servicer))
