"""The `headway` command as users run it: a process, its output and its exit status."""

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from headway.errors import Refused
from headway.v1 import inference_service_pb2 as pb
from tests.scripted_controller import ScriptedController, admission, finished, serving, tokens


async def headway(*arguments: str, text: str = "") -> tuple[int | None, str, str]:
    """Exit status, standard output and standard error."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", "from headway.cli.main import main; main()"),
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, notes = await process.communicate(text.encode())
    return process.returncode, out.decode(), notes.decode()


async def test_one_question_gives_the_answer_alone_on_standard_output() -> None:
    controller = ScriptedController()
    async with serving(controller) as address:
        status, out, notes = await headway("chat", "Hello?", "--address", address)
    assert (status, out) == (0, "Hi!\n")
    assert "guaranteed, tier chat: first token within 60,000 ms" in notes
    assert "promise kept" in notes
    assert "50% of it while the prompt was still computed" in notes
    (message,) = controller.requests[0].messages
    assert (message.role, message.content) == ("user", "Hello?")


async def test_conversation_remembers_what_was_said() -> None:
    controller = ScriptedController()
    async with serving(controller) as address:
        status, out, _ = await headway("chat", "--address", address, text="One?\nTwo?\n")
    assert status == 0
    assert out.count("Hi!") == 2
    second = [(m.role, m.content) for m in controller.requests[1].messages]
    assert second == [("user", "One?"), ("assistant", "Hi!"), ("user", "Two?")]


async def test_best_effort_says_what_stood_against_a_promise() -> None:
    async def demote(_request: Any, _context: Any) -> AsyncIterator[pb.GenerateResponse]:
        yield admission(guaranteed=False, binding_constraint="KV_BLOCKS")
        yield tokens(0, 72)
        yield finished()

    async with serving(ScriptedController(demote)) as address:
        _, _, notes = await headway("chat", "Hello?", "--address", address)
    assert "best effort: no promise, there is no KV memory left for it" in notes


async def test_refusal_says_when_to_come_back_and_what_would_fit() -> None:
    async def refuse(_request: Any, _context: Any) -> AsyncIterator[pb.GenerateResponse]:
        raise Refused("DECODE_RATE", "no worker is fast enough", 1.25, tier_that_fits="batch")
        yield

    async with serving(ScriptedController(refuse)) as address:
        status, out, notes = await headway("chat", "Hello?", "--refuse", "--address", address)
    assert (status, out) == (1, "")
    assert "DECODE_RATE: no worker is fast enough" in notes
    assert "Try again in 1.2 s. Tier batch would fit now." in notes
    assert "Traceback" not in notes


async def test_number_too_large_to_send_is_an_error_in_a_sentence() -> None:
    async with serving(ScriptedController()) as address:
        status, out, notes = await headway(
            *("chat", "Hello?", "--max-tokens", "4294967296", "--address", address)
        )
    assert (status, out) == (1, "")
    assert "INVALID_REQUEST: sampling: " in notes
    assert "4294967296" in notes
    assert "Traceback" not in notes


async def test_every_command_that_finds_no_controller_says_how_to_start_one() -> None:
    async with serving(ScriptedController()) as address:
        pass
    workload = ("--workload", "configs/workloads/mixed.toml")
    for command in (["chat", "Hello?"], ["chat"], ["bench", *workload], ["verify"]):
        status, _, notes = await headway(*command, "--address", address)
        assert status == 1
        assert "python -m services --config configs/local.toml" in notes
        assert "Traceback" not in notes


async def test_bench_writes_what_each_tier_got(tmp_path: Path) -> None:
    out = tmp_path / "results" / "bench.json"
    async with serving(ScriptedController()) as address:
        status, shown, notes = await headway(
            *("bench", "--workload", "configs/workloads/mixed.toml", "--address", address),
            *("--rate", "100", "--requests", "40", "--seed", "5", "--out", str(out)),
        )
    assert (status, notes) == (0, "")
    assert "seed 5" in shown
    assert "40 of 40 succeeded" in shown
    report = json.loads(out.read_text())
    assert report["complete"]
    assert report["seed"] == 5
    assert set(report["tiers"]) == {"chat", "summarize", "best-effort"}
    chat = report["tiers"]["chat"]
    assert chat["asked"] == chat["guaranteed"] == chat["attained"] > 0
    assert chat["attained_of_asked_ratio"] == 1.0
    assert chat["ttft_s"]["p50"] <= chat["ttft_s"]["p90"] <= chat["ttft_s"]["p99"]
    assert report["kv"]["transfers"] == 40


async def test_missing_workload_and_missing_choice_are_explained(tmp_path: Path) -> None:
    async with serving(ScriptedController()) as address:
        status, _, notes = await headway(
            "bench", "--address", address, "--workload", str(tmp_path / "none.toml")
        )
        assert (status, "no such file" in notes) == (1, True)
    status, _, notes = await headway("bench")
    assert status == 2
    assert "--workload" in notes


async def test_interrupted_bench_reports_what_it_saw(tmp_path: Path) -> None:
    arrived = asyncio.Semaphore(0)

    async def stall(_request: Any, _context: Any) -> AsyncIterator[pb.GenerateResponse]:
        yield admission()
        arrived.release()
        await asyncio.Event().wait()

    controller = ScriptedController(stall)
    out = tmp_path / "bench.json"
    async with serving(controller) as address:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", "from headway.cli.main import main; main()"),
            *("bench", "--workload", "configs/workloads/mixed.toml", "--address", address),
            *("--rate", "1000", "--requests", "3", "--out", str(out)),
            stdout=asyncio.subprocess.PIPE,
        )
        for _ in range(3):
            await arrived.acquire()
        process.send_signal(signal.SIGINT)
        shown, _ = await process.communicate()
        await controller.cancelled.wait()
    assert process.returncode == 130
    assert b"stopped" in shown
    report = json.loads(out.read_text())
    assert not report["complete"]
    assert sum(tier["asked"] for tier in report["tiers"].values()) == 3
