import gzip
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from headway.cli.bench import planned_requests
from headway.cli.workload import (
    Arrival,
    PlannedRequest,
    Workload,
    load_workload,
    prompt_token_ids,
    read_trace,
)
from headway.errors import ConfigError

WORKLOADS = sorted(Path("configs/workloads").glob("*.toml"))

TRACE = """\
TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
2023-11-16 18:15:56.6805900,879,0
"""


def first(workload: Workload, num_requests: int, seed: int = 0) -> list[PlannedRequest]:
    return list(islice(workload.requests(10.0, seed), num_requests))


@pytest.mark.parametrize("path", WORKLOADS, ids=lambda path: path.stem)
def test_shipped_workloads_can_be_read_and_ask_for_three_tiers(path: Path) -> None:
    tiers = {request.tier for request in first(load_workload(path), 200)}
    assert tiers == {"chat", "summarize", "best-effort"}


def test_workloads_are_shipped() -> None:
    assert [path.stem for path in WORKLOADS] == ["emulated", "mixed-bursty", "mixed"]


def test_same_seed_gives_the_same_load_and_another_seed_another() -> None:
    workload = load_workload(WORKLOADS[0])
    assert first(workload, 100, seed=3) == first(workload, 100, seed=3)
    assert first(workload, 100, seed=3) != first(workload, 100, seed=4)


def test_lengths_stay_inside_their_laws() -> None:
    workload = Workload.model_validate(
        {
            "mix": [
                {
                    "tier": "chat",
                    "weight": 1,
                    "prompt": {
                        "law": "lognormal",
                        "median": 50,
                        "sigma": 2.0,
                        "min": 10,
                        "max": 99,
                    },
                    "output": {"law": "uniform", "min": 3, "max": 5},
                }
            ]
        }
    )
    requests = first(workload, 500)
    prompts = sorted(request.num_prompt_tokens for request in requests)
    assert (prompts[0], prompts[-1]) == (10, 99)
    assert 40 < prompts[250] < 60
    assert {request.num_output_tokens for request in requests} == {3, 4, 5}


def test_mix_follows_its_weights() -> None:
    kind = {
        "prompt": {"law": "fixed", "num_tokens": 1},
        "output": {"law": "fixed", "num_tokens": 1},
    }
    workload = Workload.model_validate(
        {"mix": [{"tier": "a", "weight": 3, **kind}, {"tier": "b", "weight": 1, **kind}]}
    )
    tiers = Counter(request.tier for request in first(workload, 4000))
    assert tiers["a"] / 4000 == pytest.approx(0.75, abs=0.03)


@pytest.mark.parametrize(("law", "cv"), [("poisson", 1.0), ("gamma", 3.0)])
def test_gaps_have_the_rate_and_the_variation_asked_for(law: str, cv: float) -> None:
    arrival = Arrival.model_validate({"law": law, "cv": cv})
    gaps_s = np.array(list(islice(arrival.gaps_s(20.0, np.random.default_rng(1)), 50_000)))
    assert gaps_s.mean() == pytest.approx(0.05, rel=0.05)
    assert gaps_s.std() / gaps_s.mean() == pytest.approx(cv, rel=0.05)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("mix = []", "mix"),
        ('[arrival]\nlaw = "poisson"\ncv = 2.0\n', "cv is for law"),
        ('[[mix]]\ntier = "a"\nweight = 0\n', "mix.0.weight"),
        ("[[mix]]\nsurprise = 1\n", "mix.0.surprise"),
        ("not toml", "workload.toml"),
    ],
)
def test_wrong_workload_is_refused_with_its_place(
    tmp_path: Path, text: str, complaint: str
) -> None:
    path = tmp_path / "workload.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=complaint):
        load_workload(path)


@pytest.mark.parametrize("suffix", ["csv", "csv.gz"])
def test_trace_is_replayed_with_its_lengths_and_scaled_gaps(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"trace.{suffix}"
    path.write_bytes(gzip.compress(TRACE.encode()) if suffix == "csv.gz" else TRACE.encode())
    requests = list(read_trace(path, "chat", time_scale=2.0))
    assert [request.at_s for request in requests] == pytest.approx([0.0, 2.1572895, 5.0])
    assert [request.num_prompt_tokens for request in requests] == [374, 396, 879]
    # A request must ask for one token at least.
    assert [request.num_output_tokens for request in requests] == [44, 109, 1]
    assert {request.tier for request in requests} == {"chat"}


@pytest.mark.parametrize(
    "text", ["a,b\n1,2\n", "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16,x,1\n"]
)
def test_trace_of_another_format_is_refused_with_its_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"trace\.csv, line 2"):
        list(read_trace(path, "", 1.0))


def test_load_ends_at_the_first_limit(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(TRACE)

    def count(end_s: float | None, num_requests: int | None) -> int:
        planned = planned_requests(
            None,
            path,
            rate_per_s=1.0,
            time_scale=1.0,
            tier="",
            seed=0,
            end_s=end_s,
            num_requests=num_requests,
        )
        return len(list(planned))

    assert [count(None, None), count(4.4, None), count(4.4, 1), count(99.0, 2)] == [3, 2, 1, 2]


def test_prompts_have_the_length_asked_for_and_differ_by_seed() -> None:
    assert len(prompt_token_ids(37, seed=1)) == 37
    assert prompt_token_ids(37, seed=1) == prompt_token_ids(37, seed=1)
    assert prompt_token_ids(37, seed=1) != prompt_token_ids(37, seed=2)
    assert set(prompt_token_ids(5000, seed=1)) == set(range(32, 127))
