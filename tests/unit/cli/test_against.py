import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from typer.testing import CliRunner

from headway.cli.against import run_round
from headway.cli.commands import app
from headway.cli.comparison import round_rows, summary
from headway.cli.watch import Watch
from headway.cli.workload import PlannedRequest
from headway.core.slo import Promise, StageSlo
from headway.errors import EngineFailed, Refused

PROMISE = Promise(1.0, (StageSlo(0.1),))


@dataclass
class ManualClock:
    at_s: float = 100.0

    def now_s(self) -> float:
        return self.at_s


def watched(
    arrivals: Sequence[tuple[float, int]],
    *,
    promise: Promise | None = PROMISE,
    num_asked: int = 12,
    error: str = "",
) -> Watch:
    """A request whose tokens were so many at each of these times after it was sent."""
    clock = ManualClock()
    watch = Watch(clock, promise, num_asked)
    for after_s, num_tokens in arrivals:
        clock.at_s = 100.0 + after_s
        watch.has(num_tokens)
    watch.error = error
    return watch


def test_a_request_is_attained_when_first_tenth_and_last_token_are_in_time() -> None:
    # Due at 1.0, 1.9 (10th) and 2.1 (12th).
    assert watched([(0.99, 1), (1.89, 10), (2.09, 12)]).attained
    assert not watched([(1.01, 1), (1.89, 10), (2.09, 12)]).attained
    assert not watched([(0.99, 1), (1.91, 10), (2.09, 12)]).attained
    assert not watched([(0.99, 1), (1.89, 10), (2.11, 12)]).attained


def test_only_a_whole_output_counts() -> None:
    assert not watched([(0.5, 1), (1.0, 11)]).attained
    assert not watched([(0.5, 12)], error="ENGINE_FAILED").attained
    assert not watched([(0.5, 12)], promise=None).attained
    assert not watched([], num_asked=0).attained_mean


def test_the_mean_may_hide_a_stall_and_counts_from_the_first_token() -> None:
    stalled = watched([(0.5, 1), (1.95, 10), (1.99, 12)])
    assert not watched([(0.9, 1), (1.95, 10), (1.99, 12)]).attained
    assert watched([(0.9, 1), (1.95, 10), (1.99, 12)]).attained_mean
    assert not stalled.attained_mean  # 1.49 s for 11 gaps of 0.1 s
    assert stalled.ttft_s == pytest.approx(0.5)
    assert stalled.tpot_s == pytest.approx(1.49 / 11)


def planned(tier: str, at_s: float) -> PlannedRequest:
    return PlannedRequest(at_s, tier, "best_effort", 4, 2)


class ScriptedSystem:
    """Gives two tokens at once, refuses, or breaks off, as the tier's name says."""

    name = "headway"

    async def serve(self, request: PlannedRequest, prompt: list[int], watch: Watch) -> None:
        assert len(prompt) == request.num_prompt_tokens
        if request.tier == "refused":
            raise Refused("KV_BLOCKS", "full", 1.0)
        watch.guaranteed = True
        watch.has(1)
        if request.tier == "broken":
            raise EngineFailed("gone")
        watch.has(2)


def test_a_round_tells_each_tier_apart_and_leaves_best_effort_out() -> None:
    load = [planned(t, 0.01 * n) for n, t in enumerate(["good", "refused", "broken", "idle"])]
    watches = asyncio.run(
        run_round(
            ScriptedSystem(),
            load,
            lambda request: None if request.tier == "idle" else PROMISE,
            seed=1,
            clock=ManualClockThatRuns(),
        )
    )
    rows = {row["tier"]: row for row in round_rows("headway", 0, load, watches)}
    assert set(rows) == {"good", "refused", "broken"}
    assert (rows["good"]["attained"], rows["good"]["kept"], rows["good"]["failed"]) == (1, 1, 0)
    assert (rows["refused"]["attained"], rows["refused"]["guaranteed"]) == (0, 0)
    assert (rows["broken"]["guaranteed"], rows["broken"]["kept"]) == (1, 0)
    assert rows["broken"]["failed"] == rows["refused"]["failed"] == 1
    assert rows["good"]["goodput_per_s"] == pytest.approx(1 / 0.03)


class ManualClockThatRuns:
    def now_s(self) -> float:
        return asyncio.get_running_loop().time()


def row(system: str, number: int, attained: int, kept: int, guaranteed: int) -> dict[str, object]:
    return {
        "system": system,
        "round": number,
        "asked": 10,
        "attained": attained,
        "guaranteed": guaranteed,
        "kept": kept,
        "goodput_per_s": attained / 5,
    }


def test_goodputs_are_compared_round_by_round() -> None:
    found = summary(
        [
            row("headway", 0, 9, 8, 8),
            row("plain", 0, 3, 0, 0),
            row("headway", 1, 8, 7, 8),
            row("plain", 1, 8, 0, 0),
            row("headway", 2, 6, 5, 6),
            row("plain", 2, 3, 0, 0),
        ]
    )
    assert found["goodput_ratio"] == pytest.approx({"median": 2.0, "min": 1.0, "max": 3.0})
    assert found["kept_of_guaranteed_ratio"] == pytest.approx(20 / 22)
    assert found["attained_of_asked_ratio"]["plain"]["median"] == pytest.approx(0.3)


def test_a_plain_server_that_is_not_there_is_an_error_that_says_so() -> None:
    options = "--requests 1 --address 127.0.0.1:9 --against http://127.0.0.1:9"
    result = CliRunner().invoke(
        app, ["bench", "--workload", "configs/workloads/mixed.toml", *options.split()]
    )
    assert result.exit_code == 1
    assert "127.0.0.1:9" in str(result.exception)
