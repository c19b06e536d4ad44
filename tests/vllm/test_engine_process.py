"""vLLM's own process never outlives the worker that started it."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from headway.config import Config
from tests.vllm.conftest import ROOT

SCRIPT = Path(__file__).with_name("start_prefill_engine.py")


@pytest.fixture
def worker(vllm_config: Config, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    config = tmp_path / "config.json"
    config.write_text(vllm_config.model_dump_json(exclude_defaults=True))
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), str(config)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "VLLM_LOGGING_LEVEL": "ERROR"},
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def engine_process(worker: psutil.Process) -> psutil.Process:
    """The child that runs the engine, from its first moment on."""
    while True:
        for child in worker.children():
            # vLLM also starts short-lived helpers, which may be gone before they are looked at.
            with contextlib.suppress(psutil.NoSuchProcess):
                command = " ".join(child.cmdline())
                if "spawn_main" in command or "EngineCore" in command:
                    return child
        time.sleep(0.02)


def test_an_engine_ends_with_a_worker_killed_while_it_starts(
    worker: subprocess.Popen[str],
) -> None:
    engine = engine_process(psutil.Process(worker.pid))
    worker.kill()
    engine.wait(timeout=60)


def test_an_engine_ends_with_a_worker_killed_later(worker: subprocess.Popen[str]) -> None:
    assert worker.stdout is not None
    assert worker.stdout.readline() == "started\n"
    engine = engine_process(psutil.Process(worker.pid))
    worker.kill()
    engine.wait(timeout=60)
