"""Starts a prefill engine from the config in argv[1], says so on stdout, and waits to be killed."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from headway.adapters.vllm_engine import open_vllm_engine
from headway.config import Config
from headway.core.cluster import WorkerRole


async def main(config: Config) -> None:
    await open_vllm_engine(config, WorkerRole.PREFILL, 0, "127.0.0.1", "")
    sys.stdout.write("started\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(Config.model_validate_json(Path(sys.argv[1]).read_text())))
