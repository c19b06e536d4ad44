"""Streams one completion under a latency promise.

    python examples/python/generate.py --tier chat "Once upon a time"

The text goes to standard output, everything about the promise to standard error.
"""

from __future__ import annotations

import argparse
import sys

from headway.client import Admission, Client, Finished, Tokens
from headway.errors import HeadwayError, Refused


def main() -> int:
    parser = argparse.ArgumentParser(description="Stream one completion from Headway.")
    parser.add_argument("prompt")
    parser.add_argument("--address", default="127.0.0.1:7400")
    parser.add_argument("--tier", default="", help="without one the request is best effort")
    arguments = parser.parse_args()
    try:
        with Client(arguments.address) as client:
            stream(client, arguments.prompt, arguments.tier)
    except Refused as refused:
        print(f"refused: {refused.reason}: {refused}", file=sys.stderr)
        print(f"try again in {refused.retry_after_s * 1e3:.0f} ms", file=sys.stderr)
        return 1
    except HeadwayError as error:
        print(f"failed: {error.reason}: {error}", file=sys.stderr)
        return 1
    return 0


def stream(client: Client, prompt: str, tier: str) -> None:
    """Print the tokens as they come, and what was promised and kept."""
    for event in client.generate(
        prompt=prompt, tier=tier, when_not_promised="refuse", max_tokens=64
    ):
        match event:
            case Admission(guaranteed=True, ttft_s=float(ttft_s), tpot_s=float(tpot_s)):
                print(
                    f"guaranteed: TTFT {ttft_s * 1e3:.0f} ms, TPOT {tpot_s * 1e3:.0f} ms",
                    file=sys.stderr,
                )
            case Admission():
                print("best effort", file=sys.stderr)
            case Tokens(text=text):
                print(text, end="", flush=True)
            case Finished(state=state, timings=timings):
                kept = {True: "kept", False: "broken", None: "none was made"}
                print()
                print(f"{state}; promise: {kept[timings.slo_attained]}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
