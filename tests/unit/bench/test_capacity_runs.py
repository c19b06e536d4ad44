from dataclasses import replace

import numpy as np
import pytest

from bench.capacity_cases import (
    ABLATIONS,
    DISAGGREGATED,
    H100_8B,
    HYBRID,
    PACKING,
    SPECULATION,
    UNDEFERRED,
    Case,
    Setting,
    quick_tasks,
    settings_of,
)
from bench.capacity_runs import Runner
from headway.sim.result import RunResult
from headway.sim.scenarios import SCENARIOS
from headway.sim.scoring import score
from headway.sim.setup import HEADWAY, HEADWAY_DP
from headway.sim.simulation import Simulation

CASE = Case("chat", "azure-code", H100_8B, 1, 300, (0,))


def whole(case: Case, policy: str, rate: float) -> dict[str, float]:
    """Ratios of a run to its end, of the requests that are scored."""
    settings = Runner(case, policy).settings(settings_of(policy, case)[0], 0, rate)
    workload = settings.workload(rate)
    scores = score(settings.simulation(workload, settings.named_policy().build()).run())
    scored = slice(int(0.2 * len(workload)), int(0.8 * len(workload)))
    return {
        "strict": float(scores.strict[scored].mean()),
        "mean": float(scores.mean[scored].mean()),
    }


@pytest.mark.parametrize("policy", ["headway", "vllm-v1"])
@pytest.mark.parametrize("scenario", ["chat", "tools"])
@pytest.mark.parametrize("rate", [4.0, 12.0, 40.0])
def test_ending_a_run_early_changes_nothing(policy: str, scenario: str, rate: float) -> None:
    case = replace(CASE, scenario=scenario)
    runner, setting = Runner(case, policy), settings_of(policy, case)[0]
    expected = whole(case, policy, rate)
    found = runner.attained(setting, 0, rate)
    assert {name: found[name] for name in expected} == expected
    for attainment in (0.9, 0.98):
        asked = runner.attained(setting, 0, rate, attainment)
        if max(expected.values()) >= attainment:
            assert {name: asked[name] for name in expected} == expected
        else:
            assert max(asked["strict"], asked["mean"]) < attainment


def test_a_run_that_cannot_pass_ends_early(monkeypatch: pytest.MonkeyPatch) -> None:
    ended_at_s: list[float] = []
    runner, setting = Runner(CASE, "vllm-v1"), settings_of("vllm-v1", CASE)[0]

    def last_token_at_s(attainment: float) -> float:
        runner.attained(setting, 0, 40.0, attainment)
        return ended_at_s[-1]

    run = Simulation.run

    def noting(simulation: Simulation) -> RunResult:
        result = run(simulation)
        ended_at_s.append(float(np.nanmax(result.sim["last_token_at_s"])))
        return result

    monkeypatch.setattr(Simulation, "run", noting)
    assert last_token_at_s(0.9) < last_token_at_s(0.0)


def test_without_deferral_everything_is_promised() -> None:
    runner = Runner(CASE, UNDEFERRED)
    settings = runner.settings(Setting(), 0, 40.0)
    workload = settings.workload(40.0)
    scores = score(settings.simulation(workload, runner.new_policy(settings)).run())
    assert scores.promised.all()
    assert not scores.strict.all()


def test_the_quick_form_has_everything() -> None:
    tasks = list(quick_tasks())
    assert len(set(tasks)) == len(tasks)
    one_gpu = {
        (task.case.scenario, task.case.arrivals, task.policy)
        for task in tasks
        if task.case.num_gpus == 1
    }
    baselines = ("vllm-v0", "vllm-v1", "sarathi", "edf", "niyama", "scorpio")
    for arrivals in ("poisson", "azure-chat", "azure-code"):
        for scenario in SCENARIOS:
            assert all((scenario, arrivals, name) in one_gpu for name in (HEADWAY, *baselines))
    policies = {task.policy for task in tasks}
    more = {PACKING, SPECULATION, DISAGGREGATED, HYBRID, UNDEFERRED, HEADWAY_DP, *ABLATIONS}
    assert more | {"distserve", "polyserve"} <= policies
    assert {task.case.num_gpus for task in tasks if task.policy == HEADWAY} == {1, 4, 8}
    assert {"colocated", "1:3", "2+1:1"} <= {
        setting.roles for task in tasks for setting in settings_of(task.policy, task.case)
    }
