"""What both roles of the emulated engine rest on: KV blocks, and steps that take their time."""

from __future__ import annotations

import asyncio
import statistics
from collections import deque
from typing import Protocol

from headway.core.perf_model import PerfModel, StepShape

# Looking at transfers this often while no step runs adds under a millisecond to a hand-over.
_TRANSFER_POLL_S = 0.001
_NUM_RECENT_STEPS = 32


class BlockPool:
    """The engine's KV blocks. `num_created` and `num_released` count blocks given and returned."""

    def __init__(self, num_blocks: int) -> None:
        self._free = list(range(num_blocks - 1, -1, -1))
        self.num_created = 0
        self.num_released = 0

    @property
    def num_free(self) -> int:
        return len(self._free)

    def allocate(self, num_blocks: int) -> list[int]:
        """Args: num_blocks: at most `num_free`."""
        assert num_blocks <= len(self._free)
        self.num_created += num_blocks
        return [self._free.pop() for _ in range(num_blocks)]

    def release(self, block_ids: list[int]) -> None:
        self.num_released += len(block_ids)
        self._free.extend(block_ids)


class StepWork(Protocol):
    """What one role computes."""

    def begin_step(self) -> StepShape | None:
        """Form the next batch; None when there is nothing to compute now."""
        ...

    def end_step(self) -> None:
        """Hand out what the batch produced. Its requests may have ended meanwhile."""
        ...

    @property
    def awaits_transfers(self) -> bool:
        """Whether work may appear by itself, because pages are on their way."""
        ...


class StepLoop:
    """Runs one step after the other, each for as long as the perf model says, times `ratio`."""

    def __init__(self, work: StepWork, perf_model: PerfModel, ratio: float) -> None:
        self._work = work
        self._perf_model = perf_model
        self._ratio = ratio
        self._work_arrived = asyncio.Event()
        self._ratios: deque[float] = deque(maxlen=_NUM_RECENT_STEPS)

    @property
    def step_time_ratio(self) -> float:
        """Median of measured / predicted over the last steps; 0 before the first."""
        return statistics.median(self._ratios) if self._ratios else 0.0

    def work_arrived(self) -> None:
        """Say that `begin_step` may now have something to do."""
        self._work_arrived.set()

    async def run(self) -> None:
        """Run until cancelled."""
        loop = asyncio.get_running_loop()
        due_at_s = ended_at_s = loop.time()
        while True:
            self._work_arrived.clear()
            shape = self._work.begin_step()
            if shape is None:
                await self._idle()
                due_at_s = ended_at_s = loop.time()
                continue
            predicted_s = self._perf_model.step_s(shape)
            step_s = predicted_s * self._ratio
            # Timers are late by up to a millisecond. Steps follow each other from due time to
            # due time, so that this does not add up; a machine that is late by a whole step
            # is too slow, and must not rush through the next steps.
            if ended_at_s - due_at_s > step_s:
                due_at_s = ended_at_s
            due_at_s += step_s
            # At least one turn of the event loop for everybody else, however late we are.
            await asyncio.sleep(max(0.0, due_at_s - loop.time()))
            self._ratios.append((loop.time() - ended_at_s) / predicted_s)
            ended_at_s = loop.time()
            self._work.end_step()

    async def _idle(self) -> None:
        if self._work.awaits_transfers:
            await asyncio.sleep(_TRANSFER_POLL_S)
        else:
            await self._work_arrived.wait()
