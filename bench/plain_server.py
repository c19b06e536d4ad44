"""Starts plain vLLM servers with OpenAI's API: what Headway is compared with."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from headway.adapters.openai_completions import CompletionServers
from headway.adapters.process import MALLOC_ENVIRONMENT, die_with_parent
from headway.config import Config, VllmConfig
from headway.errors import StackFailed, Unavailable

_START_S = 180.0
_POLL_S = 0.5
_LOG_CHARACTERS_SHOWN = 2000


@asynccontextmanager
async def plain_server(
    config: Config,
    *,
    port: int,
    cores: Collection[int],
    log_path: Path,
    max_step_tokens: int | None = None,
) -> AsyncIterator[str]:
    """Run `vllm serve` for as long as the block lasts, bound to `cores`; yields its URL.

    It serves the model of `config` with the same data type, context and KV memory as one of
    Headway's engines. What is left unset is vLLM's default.

    Args:
        config: of a deployment with vLLM engines on a CPU.
        port: on loopback.
        cores: of the server and its engine.
        log_path: gets what it writes.
        max_step_tokens: vLLM's max_num_batched_tokens.

    Raises:
        StackFailed: it ended, or did not answer in time.
    """
    url = f"http://127.0.0.1:{port}"
    log_path.parent.mkdir(parents=True, exist_ok=True)
    parent = os.getpid()

    def prepare() -> None:
        os.sched_setaffinity(0, cores)
        die_with_parent(parent)

    with log_path.open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *_command(config, port, max_step_tokens),
            stdout=log,
            stderr=log,
            env=os.environ | _environment(len(cores)),
            start_new_session=True,
            preexec_fn=prepare,
        )
        try:
            await _until_ready(process, url, config.model.name, log_path)
            yield url
        finally:
            # It has nothing to save, and its engine would take seconds to take itself apart.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()


def _command(config: Config, port: int, max_step_tokens: int | None) -> list[str]:
    engine = config.engine
    assert isinstance(engine, VllmConfig)
    options = {
        "model": config.model.path,
        "served-model-name": config.model.name,
        "host": "127.0.0.1",
        "port": port,
        "dtype": engine.dtype,
        "max-model-len": engine.max_model_len,
        "kv-cache-memory-bytes": engine.kv_cache_bytes,
        "block-size": engine.kv_block_size,
        "max-num-batched-tokens": max_step_tokens,
    }
    # The module behind `vllm serve`, which needs a distribution named vllm to be installed.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    for name, value in options.items():
        if value is not None:
            command += [f"--{name}", str(value)]
    return [*command, "--enforce-eager", "--disable-uvicorn-access-log"]


def _environment(num_cores: int) -> dict[str, str]:
    """As Headway sets it for its own engines: the engine computes in its own process."""
    return {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": str(num_cores),
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        **MALLOC_ENVIRONMENT,
    }


async def _until_ready(
    process: asyncio.subprocess.Process, url: str, model: str, log_path: Path
) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(_START_S), CompletionServers([url], model) as servers:
            while process.returncode is None:
                with suppress(Unavailable):
                    await servers.check()
                    return
                await asyncio.sleep(_POLL_S)
    raise StackFailed(f"the plain server did not start; its last words:\n{_last_words(log_path)}")


def _last_words(log_path: Path) -> str:
    return log_path.read_text(errors="replace")[-_LOG_CHARACTERS_SHOWN:]
