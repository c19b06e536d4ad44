"""`headway simulate` and `headway explain`, as a user runs them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from headway.cli.commands import app
from headway.cli.explain import PastDecision
from headway.cli.simulate import choose
from headway.core.planner.arrival import Limit
from headway.core.planner.baselines import BASELINES
from headway.errors import ConfigError
from headway.sim.scenarios import SCENARIOS

ROOT = Path(__file__).parents[3]
CONFIGS = sorted((ROOT / "configs" / "simulate").glob("*.toml"))


def headway(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def succeeded(*arguments: object) -> str:
    result = headway(*arguments)
    assert result.exception is None, result.output
    return result.stdout


def read(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    result = json.loads((folder / "result.json").read_text())
    lines = (folder / "requests.jsonl").read_text().splitlines()
    return result, [json.loads(line) for line in lines]


@pytest.fixture(scope="module", autouse=True)
def at_root() -> Any:
    """Profiles are named relative to the working directory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        yield


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run in which not everything can be promised, and what was printed."""
    folder = tmp_path_factory.mktemp("run") / "crowded"
    options = ("--scenario", "mixed", "--rate", 25, "--duration-s", 10, "--gpus", 1)
    return folder, succeeded("simulate", *options, "--policy", "headway", "--out", folder)


def test_a_run_leaves_its_logs_and_their_hash(crowded: tuple[Path, str]) -> None:
    folder, printed = crowded
    logs = [(folder / name).read_bytes() for name in ("requests.jsonl", "steps.jsonl")]
    digest = sha256(b"".join(logs)).hexdigest()
    assert digest in printed
    result, _ = read(folder)
    assert result["log_sha256"] == digest


def test_counts_and_percentiles_can_be_taken_from_the_log(crowded: tuple[Path, str]) -> None:
    result, requests = read(crowded[0])
    for name, tier in [*result["tiers"].items(), ("all", result["all"])]:
        own = [record for record in requests if name in ("all", record["tier"])]
        decisions = [record["decision"] for record in own]
        assert tier["asked"] == len(own)
        for decision in ("promised", "best_effort", "refused"):
            assert tier[decision] == decisions.count(decision)
        for way in ("attained_strict", "attained_mean"):
            assert tier[way] == sum(record[way] for record in own)
        tpots_s = sorted(
            (record["last_token_at_s"] - record["first_token_at_s"]) / (num - 1)
            for record in own
            if (num := record["num_output_tokens"]) > 1
        )
        assert tpots_s[0] <= tier["tpot_s"]["p50"] <= tier["tpot_s"]["p99"] <= tpots_s[-1]
    assert 0 < result["all"]["promised"] < result["all"]["asked"]


def test_the_check_in_the_docs_gives_the_same_figure(crowded: tuple[Path, str]) -> None:
    folder, _ = crowded
    (code,) = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs" / "simulate.md").read_text(), re.DOTALL
    )
    command = [sys.executable, "-c", code, str(folder)]
    checked = subprocess.run(command, capture_output=True, check=True, text=True)
    tally = read(folder)[0]["all"]
    assert checked.stdout == f"{tally['attained_strict']} of {tally['asked']}\n"


def test_the_settings_of_a_result_repeat_the_run(crowded: tuple[Path, str], tmp_path: Path) -> None:
    settings = read(crowded[0])[0]["settings"]
    config = tmp_path / "again.toml"
    cluster = settings.pop("cluster")
    assert settings.pop("tiers") == {}
    lines = [
        f"{name} = {json.dumps(value)}" for name, value in settings.items() if value is not None
    ]
    lines += ["[cluster]", *(f"{name} = {json.dumps(value)}" for name, value in cluster.items())]
    config.write_text("\n".join(lines))
    printed = succeeded("simulate", "--config", config)
    assert read(crowded[0])[0]["log_sha256"] in printed


class _Page(HTMLParser):
    """Collects what a page would fetch, and counts its figures."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.num_figures = 0
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.num_figures += tag == "svg"
        for name, value in attrs:
            if name in ("src", "href", "xlink:href") and not (value or "").startswith("#"):
                self.fetched.append(f"{tag} {name}={value}")
            if name == "id" and value:
                self.ids.append(value)


def test_the_report_is_one_file_with_its_figures(crowded: tuple[Path, str]) -> None:
    folder, _ = crowded
    text = (folder / "report.html").read_text()
    page = _Page()
    page.feed(text)
    assert page.fetched == []
    assert "<script" not in text
    assert page.num_figures == 4
    # Each figure uses its own marks and clips, not those of another one on the page.
    for used in re.findall(r'(?:href="#|url\(#)([^")]+)', text):
        assert page.ids.count(used) == 1
    result, _ = read(folder)
    assert result["log_sha256"] in text
    for name in result["tiers"]:
        assert f"<td>{name}</td>" in text


def test_several_rates_are_a_folder_each_and_a_figure_over_the_rate(tmp_path: Path) -> None:
    options = ("--scenario", "coder", "--policy", "vllm-v1", "--duration-s", 5)
    printed = succeeded("simulate", *options, "--rates", "4,12", "--out", tmp_path)
    asked = []
    for rate in (4, 12):
        result, requests = read(tmp_path / f"rate-{rate}")
        assert result["settings"]["rates"] == [rate]
        assert result["log_sha256"] in printed
        asked.append(len(requests))
    assert asked[0] < asked[1]
    both = json.loads((tmp_path / "result.json").read_text())["runs"]
    assert [one["all"]["asked"] for one in both] == asked
    text = (tmp_path / "report.html").read_text()
    page = _Page()
    page.feed(text)
    assert page.num_figures == 5
    assert "Attainment over the rate" in text
    alone = succeeded("simulate", *options, "--rate", 12)
    assert both[1]["log_sha256"] in alone


def test_lists_name_every_policy_and_scenario() -> None:
    names = {line.split()[0] for line in succeeded("simulate", "--policy", "list").splitlines()}
    assert {"headway", *BASELINES, *(f"{name}+" for name in BASELINES)} <= names
    printed = succeeded("simulate", "--scenario", "list")
    assert {line.split()[0] for line in printed.splitlines()} >= SCENARIOS.keys()


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_configs_run_and_options_override_them(config: Path) -> None:
    printed = succeeded("simulate", "--config", config, "--rate", 6, "--duration-s", 4)
    assert "chat at 6 requests per second for 4 s" in printed
    settings = choose(config, {"rates": (6.0,), "gpus": 8, "policy": None})
    assert settings.cluster.gpus == 8
    assert settings.cluster.roles == choose(config, {}).cluster.roles
    assert settings.workload(6.0).tiers[0].slo.ttft_s == 0.5


def test_bounds_of_ones_own_reach_the_requests(tmp_path: Path) -> None:
    config = tmp_path / "mine.toml"
    config.write_text(
        'scenario = "reasoning"\nrates = [1.0]\nduration_s = 8.0\n'
        "[tiers.reasoning]\nttft_s = 0.75\ntpot_s = 0.08\nthinking_tpot_s = 0.03\n"
    )
    succeeded("simulate", "--config", config, "--out", tmp_path / "out")
    _, requests = read(tmp_path / "out")
    bounds = {
        (record["ttft_bound_s"], record["thinking_tpot_bound_s"], record["tpot_bound_s"])
        for record in requests
        if record["num_thinking_tokens"]
    }
    assert bounds == {(0.75, 0.03, 0.08)}


def test_policies_that_do_not_see_output_lengths_decide_otherwise() -> None:
    options = ("simulate", "--scenario", "chat", "--rate", 40, "--duration-s", 6)
    known = succeeded(*options, "--lengths", "known")
    unknown = succeeded(*options, "--lengths", "unknown")
    assert known.splitlines()[-1] != unknown.splitlines()[-1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--policy", "fastest"), "there is no 'fastest'"),
        (("--scenario", "poems"), "there is no 'poems'"),
        (("--roles", "1:1"), "do not add up"),
        (("--roles", "2+1:1"), "do not add up"),
        (("--roles", "both"), "cluster.roles"),
        (("--rates", "4,x"), "rates look like"),
        (("--rate", -1), "rates.0"),
        (("--arrivals", "trace"), "go together"),
        (("--trace", "no-such-file.csv"), "no-such-file.csv"),
        (("--profile", "no-such.toml"), "no such file"),
        (("--profile", "profiles/h100x2-qwen3-32b-bf16.toml"), "takes 2 GPUs"),
        (("--policy", "distserve"), "needs prefill and decode workers"),
        (("--policy", "polyserve+", "--roles", "1:1", "--gpus", 2), "needs colocated workers"),
        (("--policy", "headway", "--token-budget", 512), "takes no token budget"),
    ],
)
def test_what_cannot_be_run_is_said_in_one_line(options: tuple[object, ...], message: str) -> None:
    result = headway("simulate", "--duration-s", 1, *options)
    assert isinstance(result.exception, ConfigError)
    assert message in str(result.exception)


def test_unknown_keys_of_a_config_are_refused(tmp_path: Path) -> None:
    config = tmp_path / "typo.toml"
    config.write_text("[cluster]\ngpu = 4\n")
    with pytest.raises(ConfigError, match=r"cluster\.gpu"):
        choose(config, {})


def test_explanations_agree_with_what_was_decided(crowded: tuple[Path, str]) -> None:
    folder, _ = crowded
    _, requests = read(folder)
    for decision, fits in (("promised", True), ("best_effort", False)):
        chosen = [record for record in requests if record["decision"] == decision][::8]
        assert chosen
        for record in chosen:
            limit = PastDecision(folder, record["request"]).explanation().limit
            assert (limit is Limit.NONE) == fits


def late_request(folder: Path) -> tuple[PastDecision, float]:
    """A decision that another TTFT bound would have turned, and that bound."""
    _, requests = read(folder)
    for record in requests:
        if record["decision"] == "best_effort":
            past = PastDecision(folder, record["request"])
            found = past.explanation()
            if found.limit is Limit.PREFILL_TIME and found.ttft_that_fits_s is not None:
                return past, found.ttft_that_fits_s
    raise AssertionError("no request was turned away for its prefill time alone")


def test_the_ttft_that_would_have_fitted_does_and_a_shorter_one_does_not(
    crowded: tuple[Path, str],
) -> None:
    past, fitting_s = late_request(crowded[0])
    asked = past._simulation.view.requests[past.record["request"]]
    asked_s = float(asked["prefill_due_at_s"]) - past.now_s
    assert fitting_s > asked_s
    # The search is as fine as a 64th of the bound asked for.
    for ttft_s, fits in ((fitting_s, True), (fitting_s - asked_s / 32, False)):
        asked["prefill_due_at_s"] = asked["next_due_at_s"] = past.now_s + ttft_s
        assert (past.explanation().limit is Limit.NONE) == fits


def test_explain_tells_what_was_asked_what_bound_and_what_would_fit(
    crowded: tuple[Path, str],
) -> None:
    folder, _ = crowded
    late = late_request(folder)[0].record
    printed = succeeded("explain", "--run", folder, "--request", late["request"])
    assert f"tier {late['tier']}" in printed
    assert "decided:   best effort" in printed
    assert "PREFILL_TIME" in printed
    assert "would fit: a TTFT bound of " in printed
    assert "tiers that would have fitted: " in printed


@pytest.mark.parametrize(("request_", "message"), [(100_000, "requests 0 to"), (0, "no such file")])
def test_explain_names_what_is_missing(
    crowded: tuple[Path, str], tmp_path: Path, request_: int, message: str
) -> None:
    folder = crowded[0] if request_ else tmp_path
    result = headway("explain", "--run", folder, "--request", request_)
    assert isinstance(result.exception, ConfigError)
    assert message in str(result.exception)


def test_only_headway_explains_itself(tmp_path: Path) -> None:
    options = ("--policy", "edf", "--scenario", "chat", "--rate", 2, "--duration-s", 3)
    succeeded("simulate", *options, "--out", tmp_path)
    result = headway("explain", "--run", tmp_path, "--request", 0)
    assert isinstance(result.exception, ConfigError)
    assert "edf cannot explain" in str(result.exception)
