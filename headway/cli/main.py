"""The `headway` command: runs a subcommand, and says what can be done about an error."""

from __future__ import annotations

import os
import sys

from rich.console import Console

from headway.cli.commands import app
from headway.errors import HeadwayError, InvalidRequest, Refused, Unavailable

# Else gRPC writes a line to the terminal whenever a server it talked to goes away.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")


def _advice(error: HeadwayError) -> str:
    match error:
        case Unavailable():
            return (
                "Is Headway running there? Start it with "
                "`python -m services --config configs/local.toml`, or give --address."
            )
        case Refused():
            fits = f" Tier {error.tier_that_fits} would fit now." if error.tier_that_fits else ""
            return f"Try again in {error.retry_after_s:.1f} s.{fits}"
        case InvalidRequest():
            return "Nothing was sent to the model; change the request."
        case _:
            return ""


def main() -> None:
    """Run the command; errors that a user can act on become a message and exit status 1."""
    try:
        app()
    except HeadwayError as error:
        console = Console(stderr=True, soft_wrap=True)
        console.print(f"headway: {error.reason}: {error}", style="bold red", markup=False)
        if advice := _advice(error):
            console.print(advice, markup=False)
        sys.exit(1)
