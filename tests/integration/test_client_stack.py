"""Starting and stopping a deployment from the command line's side."""

import socket
from pathlib import Path

import psutil
import pytest

from headway.cli.stack import running_stack
from headway.client import AsyncClient, Finished
from headway.config import load_config
from headway.core.request import RequestState
from headway.errors import StackFailed

CONFIG = """
[model]
name = "emulated"
tokenizer = "bytes"
[engine]
kind = "emulated"
profile = "{profile}"
[controller]
listen = "127.0.0.1:{port}"
[controller.tiers.chat]
ttft_s = 5.0
tpot_s = 1.0
"""
PROFILE = "profiles/h100-llama-3.1-8b-bf16.toml"


def deployment(folder: Path, profile: str) -> Path:
    """A config on a port that was free a moment ago: a controller needs a fixed one."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    path = folder / "config.toml"
    path.write_text(CONFIG.format(profile=profile, port=port))
    return path


async def test_stack_is_complete_when_entered_and_gone_when_left(tmp_path: Path) -> None:
    path = deployment(tmp_path, PROFILE)
    config = load_config(path)
    told: list[str] = []
    async with running_stack(path, config, tmp_path / "stack.log", told.append) as pid:
        processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
        async with AsyncClient(config.controller.listen) as client:
            *_, last = [event async for event in client.generate(prompt="Hi", max_tokens=2)]
    assert told[0] == "waiting for the controller"
    assert isinstance(last, Finished)
    assert last.state is RequestState.SUCCEEDED
    assert len(processes) == 4
    assert not any(process.is_running() for process in processes)


async def test_stack_that_cannot_start_says_its_last_words(tmp_path: Path) -> None:
    path = deployment(tmp_path, str(tmp_path / "none.toml"))
    with pytest.raises(StackFailed, match=r"none\.toml: no such file"):
        async with running_stack(path, load_config(path), tmp_path / "stack.log", print):
            pass
