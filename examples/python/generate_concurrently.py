"""Runs several requests at once, each in its tier, with asyncio.

python examples/python/generate_concurrently.py chat:"Hello" batch:"Summarise this: ..."
"""

from __future__ import annotations

import argparse
import asyncio
import sys

from headway.client import AsyncClient, Finished, Tokens
from headway.errors import HeadwayError


async def complete(client: AsyncClient, tier: str, prompt: str) -> str:
    """The whole text of one request, with how it ended."""
    text = ""
    async for event in client.generate(prompt=prompt, tier=tier, max_tokens=64):
        match event:
            case Tokens(text=piece):
                text += piece
            case Finished(state=state):
                return f"[{tier} {state}] {text}"
            case _:
                pass
    raise AssertionError("a stream ends with Finished, or raises")


async def run(address: str, requests: list[tuple[str, str]]) -> int:
    """Print every result as a line, in the order given; an error fails its request alone."""
    async with AsyncClient(address) as client:
        results = await asyncio.gather(
            *(complete(client, tier, prompt) for tier, prompt in requests),
            return_exceptions=True,
        )
    num_failed = 0
    for (tier, _), result in zip(requests, results, strict=True):
        match result:
            case str(line):
                print(line)
            case HeadwayError() as error:
                num_failed += 1
                print(f"[{tier} {error.reason}] {error}", file=sys.stderr)
            case unexpected:
                raise unexpected
    return 1 if num_failed else 0


def _tier_and_prompt(argument: str) -> tuple[str, str]:
    tier, colon, prompt = argument.partition(":")
    if not colon:
        raise argparse.ArgumentTypeError(f"{argument!r} is not TIER:PROMPT")
    return tier, prompt


def main() -> int:
    parser = argparse.ArgumentParser(description="Run several requests at once.")
    parser.add_argument("requests", nargs="+", type=_tier_and_prompt, metavar="TIER:PROMPT")
    parser.add_argument("--address", default="127.0.0.1:7400")
    arguments = parser.parse_args()
    return asyncio.run(run(arguments.address, arguments.requests))


if __name__ == "__main__":
    sys.exit(main())
