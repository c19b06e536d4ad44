"""`headway verify` against running stacks: one that keeps its promises, and others."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

from headway.cli.stack import running_stack
from headway.config import load_config
from headway.v1 import inference_service_pb2 as pb
from tests.deployment import free_port, write_deployment
from tests.integration.test_client_cli import headway
from tests.scripted_controller import ScriptedController, admission, finished, serving, tokens

LAX = "[controller.tiers.chat]\nttft_s = 10.0\ntpot_s = 2.0\n"
TIGHT = "[controller.tiers.chat]\nttft_s = 0.5\ntpot_s = 0.02\n"
MIX = """
[[mix]]
tier = "chat"
weight = 3
prompt = { law = "uniform", min = 5, max = 50 }
output = { law = "fixed", num_tokens = 20 }
[[mix]]
tier = ""
weight = 1
prompt = { law = "fixed", num_tokens = 10 }
output = { law = "fixed", num_tokens = 3 }
"""


def write_mix(folder: Path) -> Path:
    path = folder / "mix.toml"
    path.write_text(MIX)
    return path


async def verify(
    folder: Path, address: str, *options: str
) -> tuple[int | None, str, dict[str, Any], dict[str, ET.Element]]:
    """Exit status, what was shown, the JSON and the JUnit cases by name."""
    results, junit = folder / "verify.json", folder / "verify.xml"
    status, shown, notes = await headway(
        *("verify", "--address", address, "--mix", str(write_mix(folder))),
        *("--json", str(results), "--junit", str(junit), *options),
    )
    assert notes == ""
    cases = {str(case.get("name")): case for case in ET.parse(junit).getroot()}
    return status, shown, json.loads(results.read_text()), cases


async def test_a_stack_that_keeps_its_promises_passes(tmp_path: Path) -> None:
    config = write_deployment(tmp_path, f"127.0.0.1:{free_port()}", LAX, step_s=0.005)
    address = load_config(config).controller.listen
    async with running_stack(config, load_config(config), tmp_path / "stack.log", print):
        status, shown, results, cases = await verify(
            tmp_path, address, "--rate", "15", "--duration-s", "2"
        )
    assert (status, results["passed"]) == (0, True)
    assert "verify: PASS" in shown
    chat = results["tiers"]["chat"]
    assert chat["guaranteed"] == chat["attained"] > 0
    assert chat["violations"] == results["tiers"][""]["violations"] == {}
    assert cases["(no tier): promises kept"].find("skipped") is not None
    assert not any(case.find("failure") is not None for case in cases.values())


async def test_an_engine_slower_than_its_profile_is_found_out(tmp_path: Path) -> None:
    """Promised before anybody could know: steps take 40 times what the profile says."""
    # Where decode workers may prefill, no request before ours shows how slow it is.
    more = TIGHT + "[decode]\nprefills = true\n"
    config = write_deployment(tmp_path, f"127.0.0.1:{free_port()}", more, step_s=0.005)
    kind = 'kind = "emulated"\n'
    config.write_text(config.read_text().replace(kind, kind + "step_time_ratio = 40.0\n"))
    address = load_config(config).controller.listen
    async with running_stack(config, load_config(config), tmp_path / "stack.log", print):
        status, shown, results, cases = await verify(
            tmp_path, address, "--rate", "20", "--duration-s", "1"
        )
    assert (status, results["passed"]) == (1, False)
    assert "verify: FAIL" in shown
    chat = results["tiers"]["chat"]
    assert chat["attained"] < chat["guaranteed"]
    assert chat["failed"] == 0
    failure = cases["chat: promises kept"].find("failure")
    assert failure is not None
    assert f"{chat['attained']} of {chat['guaranteed']}" in str(failure.get("message"))
    failures = [name for name, case in cases.items() if case.find("failure") is not None]
    assert failures == ["chat: promises kept"]


async def test_a_stream_with_a_gap_is_found_out(tmp_path: Path) -> None:
    async def skip_a_token(_request: Any, _context: Any) -> AsyncIterator[pb.GenerateResponse]:
        yield admission()
        yield tokens(0, 72)
        yield tokens(2, 33)
        yield finished()

    async with serving(ScriptedController(skip_a_token)) as address:
        status, shown, results, _ = await verify(
            tmp_path, address, "--rate", "50", "--duration-s", "0.2"
        )
    assert status == 1
    num_asked = sum(tier["asked"] for tier in results["tiers"].values())
    assert num_asked > 0
    gaps = sum(tier["violations"]["TOKEN_INDEX_GAP"] for tier in results["tiers"].values())
    assert gaps == num_asked
    assert "x TOKEN_INDEX_GAP" in shown
