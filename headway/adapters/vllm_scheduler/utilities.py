"""What the worker process can ask of the scheduler in vLLM's EngineCore process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple
from typing import Any

from vllm.v1.engine import EngineCoreRequestType
from vllm.v1.engine.core import EngineCore

from headway.core.perf_model import PerfModel


def headway_form_steps(core: Any, perf_model: Mapping[str, float], guard_ratio: float) -> str:
    """Form steps by deadline from now on; the address for plan updates."""
    queue = getattr(core, "input_queue", None)
    wake = None
    if queue is not None:

        def wake() -> None:
            queue.put_nowait((EngineCoreRequestType.WAKEUP, None))

    address: str = core.scheduler.form_steps(PerfModel(**perf_model), guard_ratio, wake)
    return address


def headway_steps(core: Any) -> dict[str, Any]:
    """The steps since the last call, as the fields of EngineStep, and what drafts were worth."""
    core.scheduler.follow_plans()
    books = core.scheduler.books
    return {
        "scheduled_steps": [astuple(step) for step in core.scheduler.steps.take()],
        "acceptance": books.drafts.learned() if books is not None else {},
    }


def add_utilities() -> None:
    """Make `headway_form_steps` callable in the EngineCore of this process."""
    setattr(EngineCore, headway_form_steps.__name__, headway_form_steps)
