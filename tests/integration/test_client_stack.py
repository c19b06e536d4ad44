"""Starting and stopping a deployment from the command line's side."""

from pathlib import Path

import psutil
import pytest

from headway.cli.stack import running_stack
from headway.client import AsyncClient, Finished
from headway.config import load_config
from headway.core.request import RequestState
from headway.errors import StackFailed
from tests.deployment import free_port, write_deployment

TIER = "[controller.tiers.chat]\nttft_s = 5.0\ntpot_s = 1.0\n"


def deployment(folder: Path) -> Path:
    return write_deployment(folder, f"127.0.0.1:{free_port()}", TIER, step_s=0.005)


async def test_stack_is_complete_when_entered_and_gone_when_left(tmp_path: Path) -> None:
    path = deployment(tmp_path)
    config = load_config(path)
    told: list[str] = []
    async with running_stack(path, config, tmp_path / "stack.log", told.append) as pid:
        processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
        async with AsyncClient(config.controller.listen) as client:
            *_, last = [event async for event in client.generate(prompt="Hi", max_tokens=2)]
    assert told == ["waiting for the controller, 1 prefill and 1 decode workers"]
    assert isinstance(last, Finished)
    assert last.state is RequestState.SUCCEEDED
    assert len(processes) == 4
    assert not any(process.is_running() for process in processes)


async def test_stack_that_cannot_start_says_its_last_words(tmp_path: Path) -> None:
    path = deployment(tmp_path)
    (tmp_path / "profile.toml").unlink()
    with pytest.raises(StackFailed, match=r"profile\.toml: no such file"):
        async with running_stack(path, load_config(path), tmp_path / "stack.log", print):
            pass


async def test_stack_of_somebody_else_at_the_address_is_not_taken_for_ours(tmp_path: Path) -> None:
    path = deployment(tmp_path)
    config = load_config(path)
    async with running_stack(path, config, tmp_path / "theirs.log", print):
        with pytest.raises(StackFailed, match=f"cannot listen on {config.controller.listen}"):
            async with running_stack(path, config, tmp_path / "ours.log", print):
                pass
