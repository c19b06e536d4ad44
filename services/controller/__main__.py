"""Runs the controller of a deployment: `python -m services.controller --config FILE`."""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import sys
from pathlib import Path

import uvloop

from headway.config import load_config
from headway.errors import ConfigError, HeadwayError
from services.controller.process import ControllerProcess


def main() -> int:
    """Run from the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m services.controller", description="Runs the controller of a deployment."
    )
    parser.add_argument("--config", type=Path, required=True, help="the deployment's TOML file")
    arguments = parser.parse_args()
    logging.basicConfig(
        format="%(asctime)s controller %(levelname)s %(message)s", level=logging.INFO
    )
    try:
        uvloop.run(_run(arguments.config))
    except ConfigError as error:
        sys.stderr.write(f"controller: {error}\n")
        return 2
    except HeadwayError as error:
        sys.stderr.write(f"controller: {error.reason}: {error}\n")
        return 1
    return 0


async def _run(config_path: Path) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    await ControllerProcess(load_config(config_path)).run(stopped, loop.create_future())


if __name__ == "__main__":
    sys.exit(main())
