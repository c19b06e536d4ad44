"""What we send is understood by an OTLP backend that is not ours."""

from __future__ import annotations

import json
import os
import subprocess
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from google.protobuf.json_format import ParseDict
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.deployment import free_port
from tests.otlp_receiver import ReceivedSpan, outline, spans_in
from tests.traced_request import OUTLINE, emulated_deployment, of_clients, run_traced_request

AGENT = Path(__file__).parents[2] / ".venv-otlp" / "bin" / "ddapm-test-agent"

# A port that was free may be taken by the time the agent opens it.
_NUM_ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class Backend:
    """Datadog's APM test agent: takes OTLP over gRPC, gives it back over HTTP."""

    endpoint: str
    query_url: str

    def spans(self) -> list[ReceivedSpan]:
        with urllib.request.urlopen(f"{self.query_url}/test/session/traces") as response:
            exports = json.load(response)
        return [
            span
            for export in exports
            for span in spans_in(ParseDict(export, ExportTraceServiceRequest()))
        ]


def _start(folder: Path) -> tuple[subprocess.Popen[str], Backend | None]:
    """Start the agent; the backend is None when it ended before it listened."""
    apm_port, http_port, grpc_port = free_port(), free_port(), free_port()
    process = subprocess.Popen(
        [
            AGENT,
            f"--port={apm_port}",
            f"--otlp-http-port={http_port}",
            f"--otlp-grpc-port={grpc_port}",
        ],
        cwd=folder,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "Running OTLP GRPC server" in line:
            return process, Backend(
                f"http://127.0.0.1:{grpc_port}", f"http://127.0.0.1:{http_port}"
            )
    return process, None


@pytest.fixture(scope="session")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    if not AGENT.exists():
        pytest.fail(f"{AGENT.name} is not installed: run `make tools`")
    for _ in range(_NUM_ATTEMPTS):
        process, backend = _start(tmp_path_factory.mktemp("otlp-backend"))
        try:
            if backend is not None:
                yield backend
                return
        finally:
            process.terminate()
            process.communicate()
    pytest.fail(f"{AGENT.name} did not start in {_NUM_ATTEMPTS} attempts")


async def test_an_independent_backend_shows_the_request_as_one_tree(
    backend: Backend, tmp_path: Path
) -> None:
    config_path = emulated_deployment(tmp_path, backend.endpoint)
    await run_traced_request(config_path, tmp_path / "stack.log")
    spans = of_clients(backend.spans())
    assert outline(spans) == OUTLINE
    assert len({span.trace_id for span in spans}) == 1
