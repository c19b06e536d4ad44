"""Checks that splitting prefill from decode changes no token: the same prompts on plain vLLM."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from headway.client import AsyncClient, Finished, Tokens
from headway.config import Config, VllmConfig
from headway.core.request import RequestState
from headway.errors import EngineFailed

# One token; a block more or less; a chunk of 256 more or less; many chunks.
PROMPT_LENGTHS = (1, 2, 17, 64, 128, 129, 255, 256, 257, 600, 1000, 1500)
_NUM_OUTPUT_TOKENS = 48
# Prompts start this far apart, so that none is the beginning of another.
_OFFSET_TOKENS = 40
_LOG_CHARACTERS_SHOWN = 2000

TokenIds = list[int]


@dataclass(frozen=True, slots=True)
class ServedPrompt:
    """One prompt through the stack; `token_ids` is its whole output."""

    token_ids: TokenIds
    finished: Finished


def identity_prompts(text_token_ids: Sequence[int]) -> list[TokenIds]:
    """Prompts of PROMPT_LENGTHS cut out of one long natural text."""
    prompts = [
        list(text_token_ids[index * _OFFSET_TOKENS :][:length])
        for index, length in enumerate(PROMPT_LENGTHS)
    ]
    assert tuple(map(len, prompts)) == PROMPT_LENGTHS, "the text is too short"
    return prompts


async def serve_prompts(client: AsyncClient, prompts: Sequence[TokenIds]) -> list[ServedPrompt]:
    """Send all at once, greedy, best effort.

    Raises:
        HeadwayError: one of them was not served.
    """
    async with asyncio.TaskGroup() as running:
        tasks = [running.create_task(_serve(client, prompt)) for prompt in prompts]
    return [task.result() for task in tasks]


async def _serve(client: AsyncClient, prompt: TokenIds) -> ServedPrompt:
    token_ids: TokenIds = []
    async for event in client.generate(
        prompt_token_ids=prompt, max_tokens=_NUM_OUTPUT_TOKENS, ignore_eos=True
    ):
        match event:
            case Tokens():
                token_ids += event.token_ids
            case Finished(state=RequestState.SUCCEEDED):
                return ServedPrompt(token_ids, event)
            case Finished():
                raise EngineFailed(f"{event.state}: {event.error_reason} {event.error_message}")
            case _:
                pass
    raise EngineFailed("the stream ended early")


async def plain_outputs(
    config: Config, engine: VllmConfig, prompts: Sequence[TokenIds]
) -> list[TokenIds]:
    """The same prompts on one plain vLLM engine in a process of its own, all cores at once.

    Raises:
        EngineFailed: it ended with an error; carries the end of its log.
    """
    cores = sorted(
        {core for pool in (config.prefill, config.decode) for c in pool.cores for core in c}
    )
    with TemporaryDirectory(prefix="headway-identity-") as folder:
        outputs_path = Path(folder, "outputs.json")
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "headway.adapters.plain_vllm"),
            *("--model", config.model.path),
            *("--dtype", engine.dtype),
            *("--max-model-len", str(engine.max_model_len)),
            *("--cores", ",".join(map(str, cores))),
            *("--out", str(outputs_path)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        asked = {"prompt_token_ids": prompts, "max_tokens": _NUM_OUTPUT_TOKENS}
        try:
            log, _ = await process.communicate(json.dumps(asked).encode())
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode != 0:
            end = log.decode(errors="replace")[-_LOG_CHARACTERS_SHOWN:]
            raise EngineFailed(f"plain vLLM ended with status {process.returncode}:\n{end}")
        return _read_outputs(outputs_path)


def _read_outputs(path: Path) -> list[TokenIds]:
    outputs: list[TokenIds] = json.loads(path.read_text())["token_ids"]
    return outputs


def differences(served: Sequence[TokenIds], plain: Sequence[TokenIds]) -> list[str]:
    """One line for each prompt whose outputs differ: where they part."""
    lines = []
    for length, ours, theirs in zip(PROMPT_LENGTHS, served, plain, strict=True):
        if ours == theirs:
            continue
        pairs = zip(ours, theirs, strict=False)
        parted = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(ours), len(theirs)))
        lines.append(f"prompt of {length} tokens: outputs part at token {parted}")
    return lines
