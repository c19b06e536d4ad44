"""`headway bench --against`, with a real plain vLLM server on the other side."""

import json
import os
from pathlib import Path

import pytest

from bench.plain_server import plain_server
from headway.adapters.openai_completions import CompletionServers
from headway.cli.against import Against
from headway.cli.stack import running_stack
from headway.cli.workload import PlannedRequest
from headway.config import Config, load_config
from headway.errors import EngineFailed, StackFailed, Unavailable
from tests.deployment import free_port, write_deployment

pytestmark = pytest.mark.slow

TIER = "[controller.tiers.chat]\nttft_s = 20.0\ntpot_s = 2.0\n"


async def test_counts_of_a_plain_server_and_its_errors(vllm_config: Config, tmp_path: Path) -> None:
    model = vllm_config.model.name
    cores = os.sched_getaffinity(0)
    log = tmp_path / "plain.log"
    async with (
        plain_server(vllm_config, port=free_port(), cores=cores, log_path=log) as url,
        CompletionServers([url], model) as servers,
        CompletionServers([url], "another") as others,
    ):
        counts = [count async for count in servers.generate([65, 66, 67], 12)]
        assert counts == sorted(set(counts))
        assert counts[-1] == 12
        with pytest.raises(EngineFailed, match="maximum context length"):
            await anext(servers.generate([65] * 5000, 12))
        with pytest.raises(Unavailable, match=f"serves {model}, not another"):
            await others.check()
    with pytest.raises(Unavailable):
        async with CompletionServers([url], model) as gone:
            await gone.check()


async def test_a_server_that_cannot_start_says_its_last_words(
    vllm_config: Config, tmp_path: Path
) -> None:
    engine = vllm_config.engine.model_copy(update={"max_model_len": 10**9})
    config = vllm_config.model_copy(update={"engine": engine})
    with pytest.raises(StackFailed, match="max_model_len"):
        async with plain_server(config, port=free_port(), cores=[0], log_path=tmp_path / "log"):
            pass


async def test_both_sides_serve_the_same_load(vllm_config: Config, tmp_path: Path) -> None:
    path = write_deployment(tmp_path, f"127.0.0.1:{free_port()}", TIER, step_s=0.005)
    path.write_text(path.read_text().replace('"emulated"\ntok', f'"{vllm_config.model.name}"\ntok'))
    config = load_config(path)
    rounds = [[PlannedRequest(0.2 * n, "chat", "best_effort", 8, 4) for n in range(3)]] * 2
    out = tmp_path / "out.json"
    async with (
        running_stack(path, config, tmp_path / "stack.log", print),
        plain_server(vllm_config, port=free_port(), cores=[0], log_path=tmp_path / "log") as url,
    ):
        against = Against(config.controller.listen, [url], connections=1, profile=None)
        rows = await against.rows(rounds, seed=3)
        against.conclude(rows, out)
    report = json.loads(out.read_text())
    assert [(row["system"], row["round"]) for row in report["rows"]] == [
        ("headway", 0),
        ("plain", 0),
        ("plain", 1),
        ("headway", 1),
    ]
    assert all(row["attained"] == row["asked"] == 3 for row in report["rows"])
    assert report["summary"]["kept_of_guaranteed_ratio"] == 1.0
