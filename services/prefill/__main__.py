"""Runs one prefill worker: `python -m services.prefill --config FILE [--replica N]`."""

from __future__ import annotations

import sys

import grpc

from headway.adapters.worker.host import main
from headway.adapters.worker.slots import Slots
from headway.core.cluster import WorkerRole
from headway.ports.engine import Engine
from headway.ports.telemetry import Telemetry
from headway.v1.prefill_service_pb2_grpc import add_PrefillServiceServicer_to_server
from services.prefill.servicer import SERVICE_NAME, PrefillServicer


def _add_servicer(
    server: grpc.aio.Server, engine: Engine, slots: Slots, telemetry: Telemetry
) -> None:
    add_PrefillServiceServicer_to_server(PrefillServicer(engine, slots, telemetry), server)


if __name__ == "__main__":
    sys.exit(main(WorkerRole.PREFILL, SERVICE_NAME, _add_servicer))
