"""A prefill and a decode engine, used together as a controller would."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

from headway.adapters.vllm_engine import VllmEngine
from headway.core.request import Sampling
from headway.ports.engine import (
    DecodeJob,
    EngineFinished,
    EngineLoad,
    EngineTokens,
    KvTarget,
    PrefillJob,
    PrefillResult,
)

_IDS = itertools.count()


@dataclass
class Output:
    """What one request gave."""

    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    finished: EngineFinished | None = None
    prefill: PrefillResult | None = None
    has_tokens: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def num_recomputed(self) -> int:
        assert self.finished is not None
        return self.finished.num_prompt_tokens_recomputed


def greedy(num_tokens: int) -> Sampling:
    return Sampling(max_tokens=num_tokens, ignore_eos=True)


def prompt_of(num_tokens: int, seed: int = 0) -> list[int]:
    """Token ids without a meaning, different for each seed from the first one on."""
    return [
        100 + (7919 * (i + 1) * (i + seed + 1) + 104729 * seed) % 40000 for i in range(num_tokens)
    ]


@dataclass(frozen=True)
class Asked:
    """A request that the decode engine has minted a target for."""

    request_id: str
    target: KvTarget
    prompt: tuple[int, ...]

    def prefill_job(self, due_s: float | None = None) -> PrefillJob:
        return PrefillJob(self.request_id, self.prompt, self.target, due_s)


@dataclass
class Pair:
    prefill: VllmEngine
    decode: VllmEngine

    def ask(self, prompt: list[int]) -> Asked:
        request_id = f"request-{next(_IDS)}"
        return Asked(request_id, self.decode.mint_target(request_id), tuple(prompt))

    async def decode_into(
        self, output: Output, asked: Asked, sampling: Sampling, kv_timeout_s: float = 60.0
    ) -> None:
        await self._read(
            output,
            DecodeJob(asked.request_id, asked.prompt, sampling, asked.target, 0, kv_timeout_s),
        )

    async def generate_here(
        self, output: Output, prompt: list[int], sampling: Sampling, due_s: float | None = None
    ) -> None:
        """One request through the decode engine alone."""
        request_id = f"request-{next(_IDS)}"
        job = DecodeJob(request_id, tuple(prompt), sampling, None, 0, 60.0, prefill_due_s=due_s)
        await self._read(output, job)

    async def _read(self, output: Output, job: DecodeJob) -> None:
        items = self.decode.decode(job)
        try:
            async for item in items:
                if isinstance(item, EngineFinished):
                    assert output.finished is None
                    output.finished = item
                elif isinstance(item, PrefillResult):
                    assert output.prefill is None
                    assert not output.token_ids
                    output.prefill = item
                elif isinstance(item, EngineTokens):
                    output.token_ids += item.token_ids
                    output.text += item.text
                    output.has_tokens.set()
        finally:
            await items.aclose()

    async def generate(self, prompt: list[int], sampling: Sampling) -> Output:
        """One request through both engines, the decode engine's blocks ready first."""
        output = Output()
        asked = self.ask(prompt)
        decoding = asyncio.create_task(self.decode_into(output, asked, sampling))
        output.prefill = await self.prefill.prefill(asked.prefill_job())
        await decoding
        return output

    async def settled(self) -> tuple[EngineLoad, EngineLoad]:
        """Wait until both engines have given back all they held."""
        return await at_rest(self.prefill), await at_rest(self.decode)


async def at_rest(engine: VllmEngine) -> EngineLoad:
    load = await until(engine, _is_at_rest)
    assert load.num_free_kv_blocks == engine.info.num_kv_blocks
    return load


def _is_at_rest(load: EngineLoad) -> bool:
    held = load.resources
    return (
        load.num_running == load.num_waiting == 0
        and held.num_slots_created == held.num_slots_released
        and held.num_kv_blocks_created == held.num_kv_blocks_released
        and held.num_staged_pages_created == held.num_staged_pages_released
    )


async def until(engine: VllmEngine, holds: Callable[[EngineLoad], bool]) -> EngineLoad:
    """The engine's first load of which `holds`; asked again and again, as a controller does."""
    load = await engine.load()
    for _ in range(1000):
        if holds(load):
            return load
        await asyncio.sleep(0.01)
        load = await engine.load()
    raise AssertionError(f"the engine stays at {load}")
