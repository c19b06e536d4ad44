"""Logs of a run: complete, in order, and the same again from the same seed."""

from __future__ import annotations

import json
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from headway.sim.run import Run, run
from headway.sim.settings import ClusterSettings, Settings

# A guard that refuses, so that all three decisions are in the log.
SETTINGS = Settings(
    scenario="mixed",
    policy="scorpio+",
    rates=(12.0,),
    duration_s=15.0,
    cluster=ClusterSettings(gpus=1, max_running=48),
)


@pytest.fixture(scope="module")
def one() -> Run:
    return run(SETTINGS)


@pytest.fixture(scope="module")
def requests(one: Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in one.log.requests.splitlines()]


@pytest.fixture(scope="module")
def steps(one: Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in one.log.steps.splitlines()]


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(one: Run) -> None:
    assert run(SETTINGS).log == one.log
    other = run(SETTINGS.model_copy(update={"seed": 1})).log
    assert other.sha256 != one.log.sha256


def test_noise_alone_changes_the_hash(one: Run) -> None:
    quiet = SETTINGS.cluster.model_copy(update={"noise_sigma": 0.0})
    assert run(SETTINGS.model_copy(update={"cluster": quiet})).log.sha256 != one.log.sha256


def test_the_hash_is_that_of_the_two_files_in_a_row(one: Run, tmp_path: Path) -> None:
    one.log.write(tmp_path / "new")
    written = [(tmp_path / "new" / name).read_bytes() for name in ("requests.jsonl", "steps.jsonl")]
    assert one.log.sha256 == sha256(b"".join(written)).hexdigest()


def test_every_request_is_there_and_decided_in_one_of_three_ways(
    one: Run, requests: list[dict[str, Any]]
) -> None:
    assert [record["request"] for record in requests] == list(range(len(one.result.workload)))
    assert {record["decision"] for record in requests} == {"promised", "best_effort", "refused"}
    for record in requests:
        assert (record["outcome"] == "refused") == (record["decision"] == "refused")
        if record["decision"] != "promised":
            assert not record["attained_strict"]
            assert not record["attained_mean"]


def test_check_points_are_the_first_every_tenth_and_the_last_token(
    requests: list[dict[str, Any]],
) -> None:
    for record in requests:
        if record["outcome"] == "refused":
            assert record["check_points"] == []
            continue
        last = record["num_output_tokens"] - 1
        expected = sorted({0, last, *range(9, last, 10)})
        assert [index for index, _ in record["check_points"]] == expected
        times_s = [at_s for _, at_s in record["check_points"]]
        assert times_s == sorted(times_s)
        assert times_s[0] == record["first_token_at_s"] >= record["arrived_at_s"]
        assert times_s[-1] == record["last_token_at_s"]


def test_later_rounds_come_after_the_round_they_follow(requests: list[dict[str, Any]]) -> None:
    followers = [record for record in requests if record["follows"] is not None]
    assert followers
    for record in followers:
        before = requests[record["follows"]]
        ended_at_s = before["last_token_at_s"] or before["arrived_at_s"]
        assert record["arrived_at_s"] > ended_at_s


def test_a_worker_runs_one_step_at_a_time_and_all_tokens_are_in_some_step(
    one: Run, requests: list[dict[str, Any]], steps: list[dict[str, Any]]
) -> None:
    for worker in range(one.num_workers):
        own = [step for step in steps if step["worker"] == worker]
        assert own
        for step, later in pairwise(own):
            assert step["start_s"] + step["duration_s"] <= later["start_s"] + 1e-9
    served = [record for record in requests if record["outcome"] == "served"]
    # The step that computes the end of a prompt emits the first token. What was kept is not
    # computed, what was preempted again.
    num_tokens = [
        record["num_prompt_tokens"] - record["num_cached_tokens"] + record["num_output_tokens"] - 1
        for record in served
    ]
    num_preemptions = sum(record["num_preemptions"] for record in served)
    num_again = sum(step["num_tokens"] for step in steps) - sum(num_tokens)
    assert num_again > 0 if num_preemptions else num_again == 0
