"""The programs in examples/ work against a running stack, as their READMEs show them."""

from __future__ import annotations

import asyncio
import re
import shutil
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from headway.cli.stack import running_stack
from headway.config import load_config
from tests.traced_request import emulated_deployment

EXAMPLES = Path(__file__).parents[2] / "examples"
NODE = EXAMPLES / "node"


@dataclass(frozen=True, slots=True)
class Ended:
    """How a program ended, and what it wrote."""

    status: int
    output: str
    errors: str


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def address(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    """Of a stack with emulated engines; no step of theirs is fast enough for "impossible"."""
    folder = tmp_path_factory.mktemp("stack")
    config_path = emulated_deployment(folder)
    config = load_config(config_path)
    async with running_stack(config_path, config, folder / "stack.log", lambda _: None):
        yield config.controller.listen


async def run(*command: str | Path) -> Ended:
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    output, errors = await process.communicate()
    assert process.returncode is not None
    return Ended(process.returncode, output.decode(), errors.decode())


async def node(*arguments: str) -> Ended:
    program = shutil.which("node")
    if program is None or not (NODE / "node_modules").is_dir():
        pytest.fail("Node.js or the client's packages are not installed: run `make tools`")
    return await run(program, NODE / "generate.mjs", *arguments)


async def python(example: str, *arguments: str) -> Ended:
    return await run(sys.executable, EXAMPLES / "python" / example, *arguments)


async def test_node_streams_a_promised_completion(address: str) -> None:
    ended = await node("--address", address, "--tier", "chat", "--max-tokens", "8", "Hello")
    assert ended.status == 0, ended.errors
    assert ended.output.strip()
    admission, finished = ended.errors.splitlines()
    assert admission.startswith("guaranteed: TTFT 30000 ms, TPOT 5000 ms")
    assert finished.startswith("SUCCEEDED; 8 tokens;")


async def test_node_decodes_why_it_was_refused_and_when_to_come_back(address: str) -> None:
    ended = await node("--address", address, "--tier", "impossible", "--refuse", "Hello")
    assert ended.status == 1
    assert ended.output == ""
    assert ended.errors.startswith("ResourceExhausted: ")
    assert re.search(r"^reason: (PREFILL_TIME|DECODE_RATE)$", ended.errors, re.MULTILINE)
    assert re.search(r"^retry after: [1-9]\d* ms$", ended.errors, re.MULTILINE)
    assert "tier that would be promised now: chat" in ended.errors


async def test_node_is_served_best_effort_when_it_did_not_ask_for_refusal(address: str) -> None:
    ended = await node("--address", address, "--tier", "impossible", "Hello")
    assert ended.status == 0, ended.errors
    assert re.match(r"best effort \((PREFILL_TIME|DECODE_RATE)\)", ended.errors)


async def test_node_names_the_field_that_is_wrong(address: str) -> None:
    ended = await node("--address", address, "--tier", "no-such-tier", "Hello")
    assert ended.status == 1
    assert ended.errors.startswith("InvalidArgument: ")
    assert re.search(r"^tier: ", ended.errors, re.MULTILINE)


async def test_python_streams_a_promised_completion(address: str) -> None:
    ended = await python("generate.py", "--address", address, "--tier", "chat", "Hello")
    assert ended.status == 0, ended.errors
    assert ended.output.strip()
    assert ended.errors.splitlines() == [
        "guaranteed: TTFT 30000 ms, TPOT 5000 ms",
        "SUCCEEDED; promise: kept",
    ]


async def test_python_says_why_it_was_refused_and_when_to_come_back(address: str) -> None:
    ended = await python("generate.py", "--address", address, "--tier", "impossible", "Hello")
    assert ended.status == 1
    assert re.search(r"^refused: (PREFILL_TIME|DECODE_RATE): ", ended.errors)
    assert re.search(r"^try again in \d+ ms$", ended.errors, re.MULTILINE)


async def test_python_runs_requests_at_once_and_a_wrong_one_fails_alone(address: str) -> None:
    requests = ("chat:Hello", "no-such-tier:Hello")
    ended = await python("generate_concurrently.py", "--address", address, *requests)
    assert ended.status == 1
    assert ended.output.startswith("[chat SUCCEEDED] ")
    assert ended.errors.startswith("[no-such-tier INVALID_REQUEST] ")
