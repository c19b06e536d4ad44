"""A live event log replays to identical effects."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from typer.testing import CliRunner

from headway.cli.commands import app
from headway.errors import ConfigError
from headway.v1 import inference_service_pb2 as pb
from tests.controller_stack import rest, running_controller, running_stack, stack_config

TIERS = {
    "chat": {"ttft_s": 3.0, "tpot_s": 0.2},
    "tight": {"ttft_s": 0.05, "tpot_s": 0.02},
    "long": {"ttft_slowdown": 5.0, "tpot_s": 0.1},
    "free": {},
}
COSTS = {"floor_s": 0.004, "token_s": 2e-5, "sequence_s": 2e-5, "context_token_s": 1e-8}


async def serve_load(tmp_path: Path, log: Path, *, decode_prefills: bool) -> Counter[str]:
    """Two workers of each role under more than they can promise; how each request was admitted."""
    config = stack_config(
        tmp_path,
        costs=COSTS,
        engine={"max_num_running": 16, "max_step_tokens": 512},
        controller={"event_log": str(log), "tiers": TIERS, "max_best_effort_queued": 20},
        decode_prefills=decode_prefills,
    )
    chance = random.Random(1)
    answers: Counter[str] = Counter()

    async with running_stack(config, num_prefill=2, num_decode=2) as stack:

        async def ask(index: int) -> None:
            call = stack.generate(
                prompt_text="x" * chance.choice((5, 300, 2000)),
                tier=chance.choice(list(TIERS)),
                sampling={"max_tokens": chance.choice((1, 20, 60)), "ignore_eos": True},
                when_not_promised=(
                    pb.WHEN_NOT_PROMISED_REFUSE
                    if index % 3 == 0
                    else pb.WHEN_NOT_PROMISED_UNSPECIFIED
                ),
            )
            messages = []
            if index % 10 == 9:
                with suppress(grpc.aio.AioRpcError):
                    first = await call.read()
                    assert isinstance(first, pb.GenerateResponse)
                    messages.append(first)
                    request_id = first.admission.request_id
                    await stack.stub.Cancel(pb.CancelRequest(request_id=request_id))
            messages += (await rest(call))[0]
            for message in messages:
                if message.HasField("admission"):
                    admission = message.admission
                    answers[pb.AdmissionState.Name(admission.state)] += 1
                    is_local = admission.prefill_worker_id == admission.decode_worker_id
                    answers["on one worker"] += is_local and bool(admission.decode_worker_id)

        async def watch() -> None:
            # Looking must not change what is decided.
            while True:
                await stack.capacity()
                await asyncio.sleep(0.002)

        watching = asyncio.create_task(watch())
        asking = []
        for index in range(120):
            asking.append(asyncio.create_task(ask(index)))
            # Decode workers that prefill have room for more.
            await asyncio.sleep(chance.expovariate(250 if decode_prefills else 150))
        stack.links["decode-1"].cancel()
        await asyncio.gather(*asking)
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        stack.stopped.set()
        await stack.serving
    return answers


def replayed(log: Path) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["replay", str(log)])
    if isinstance(result.exception, ConfigError):
        return 1, str(result.exception)
    return result.exit_code, result.output


@pytest.mark.parametrize("decode_prefills", [False, True])
def test_a_log_of_a_loaded_deployment_replays_to_identical_effects(
    tmp_path: Path, *, decode_prefills: bool
) -> None:
    log = tmp_path / "logs" / "events.jsonl"
    answers = asyncio.run(serve_load(tmp_path, log, decode_prefills=decode_prefills))
    assert answers["ADMISSION_STATE_GUARANTEED"] > 10
    assert (answers["on one worker"] > 10) is decode_prefills
    assert answers["ADMISSION_STATE_BEST_EFFORT"] > 5
    lines = log.read_text(encoding="utf-8").splitlines()
    kinds = Counter(json.loads(line)["event"][0] for line in lines[1:])
    assert kinds["RequestArrived"] == 120
    assert kinds["WorkerLost"] >= 1
    assert {"TokensProduced", "PrefillComputed", "WorkerReported", "CancelRequested"} < kinds.keys()

    exit_code, output = replayed(log)
    assert output.startswith(f"identical: {len(lines) - 1} events")
    assert exit_code == 0

    # A decision that is not what the log says is found, where it is.
    number = next(n for n, line in enumerate(lines) if '"promise":{' in line)
    changed = tmp_path / "changed.jsonl"
    line = lines[number].replace('"predicted_ttft_s":', '"predicted_ttft_s":1', 1)
    changed.write_text("\n".join([*lines[:number], line, *lines[number + 1 :]]), encoding="utf-8")
    exit_code, output = replayed(changed)
    assert exit_code == 1
    assert output.startswith(f"different from line {number + 1} on")

    # A missing event shows as soon as it matters.
    number = next(n for n, line in enumerate(lines) if '"PrefillComputed"' in line)
    changed.write_text("\n".join(lines[:number] + lines[number + 1 :]), encoding="utf-8")
    assert replayed(changed)[0] == 1


async def serve_one(tmp_path: Path, log: Path) -> None:
    async with running_stack(
        stack_config(tmp_path, costs=COSTS, controller={"event_log": str(log)})
    ) as stack:
        await rest(stack.generate(prompt_text="hello", tier="chat", sampling={"max_tokens": 3}))
        stack.stopped.set()
        await stack.serving


@pytest.fixture
def short_log(tmp_path: Path) -> Path:
    log = tmp_path / "short.jsonl"
    asyncio.run(serve_one(tmp_path, log))
    return log


def _edit(line: str, change: dict[str, Any]) -> str:
    return json.dumps(json.loads(line) | change)


def test_a_line_that_was_not_written_is_named(short_log: Path) -> None:
    lines = short_log.read_text(encoding="utf-8").splitlines()
    assert replayed(short_log)[0] == 0
    arrival = next(n for n, line in enumerate(lines) if '"RequestArrived"' in line)
    name, fields = json.loads(lines[arrival])["event"]
    wrong = {
        "cut off": lines[arrival][:50],
        "no event of ours": _edit(lines[arrival], {"event": ["Surprise", {}]}),
        "a field too few": _edit(lines[arrival], {"event": [name, {}]}),
        "a field of another type": _edit(
            lines[arrival], {"event": [name, {**fields, "arrived_at_s": "soon"}]}
        ),
        "no instant": _edit(lines[arrival], {"now_s": None}),
        "not an object": "7",
    }
    for what, line in wrong.items():
        short_log.write_text("\n".join([*lines[:arrival], line]), encoding="utf-8")
        exit_code, output = replayed(short_log)
        assert exit_code == 1, what
        assert f"line {arrival + 1}:" in output, what
    short_log.write_text("\n".join(lines[1:]), encoding="utf-8")
    assert "line 1: not an event log" in replayed(short_log)[1]
    assert "No such file" in replayed(short_log.with_name("none"))[1]


async def test_a_log_that_cannot_be_opened_is_refused_at_start(tmp_path: Path) -> None:
    config = stack_config(tmp_path, controller={"event_log": str(tmp_path)})
    with pytest.raises(ConfigError, match=r"controller\.event_log"):
        async with running_controller(config):
            pass


async def test_serving_goes_on_when_the_disk_is_full(tmp_path: Path) -> None:
    config = stack_config(tmp_path, costs=COSTS, controller={"event_log": "/dev/full"})
    async with running_stack(config) as stack:
        for _ in range(3):
            messages, error = await rest(
                stack.generate(prompt_text="hello", tier="chat", sampling={"max_tokens": 3})
            )
            assert error is None
            assert messages[-1].finished.state == pb.FINAL_STATE_SUCCEEDED
