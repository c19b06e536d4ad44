"""The list of vLLM's private names that our scheduler rests on: whole, and checked at start."""

from __future__ import annotations

import ast
import inspect

import pytest
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine.core import EngineCore
from vllm.v1.request import Request, RequestStatus

from headway.adapters.vllm_scheduler import granted_queues, scheduler, symbols
from headway.adapters.vllm_scheduler.granted_queues import GrantedQueues
from headway.adapters.vllm_scheduler.scheduler import FormsStepsByDeadline, HeadwayAsyncScheduler
from headway.errors import ConfigError

TREE = ast.parse(inspect.getsource(scheduler) + inspect.getsource(granted_queues))


def attributes_of(name: str) -> set[str]:
    """What our modules read or call of the variable `name`."""
    return {
        node.attr
        for node in ast.walk(TREE)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == name
    }


def test_the_installed_vllm_has_all() -> None:
    assert symbols.missing_symbols() == []
    symbols.check_symbols()


@pytest.mark.parametrize(
    ("owner", "name"), [(Scheduler, "_preempt_request"), (RequestStatus, "__init__")]
)
def test_what_is_missing_is_named(owner: type, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if owner is RequestStatus:
        monkeypatch.setattr(symbols, "STATUSES", ("RUNNING", "GONE_FOR_A_WALK"))
        name = "GONE_FOR_A_WALK"
    else:
        monkeypatch.delattr(owner, name)
    with pytest.raises(ConfigError, match=name):
        symbols.check_symbols()


def test_a_changed_signature_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def preempt(self: object, timestamp: float, request: object) -> None: ...

    monkeypatch.setattr(Scheduler, "_preempt_request", preempt)
    assert symbols.missing_symbols() == ["Scheduler._preempt_request"]


def test_whatever_of_vllms_scheduler_is_used_is_listed() -> None:
    own = set(vars(FormsStepsByDeadline)) | set(vars(GrantedQueues))
    own |= {
        node.attr
        for node in ast.walk(TREE)
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
    }
    listed = set(symbols.METHODS) | set(symbols.ATTRIBUTES)
    assert attributes_of("self") - own <= listed
    # What is stored may be vLLM's as well.
    assert (own & set(dir(Scheduler))) - {"__init__", "__module__", "__doc__"} <= listed | {
        name for name in own if name.startswith("__")
    }


def test_whatever_of_requests_is_used_is_listed() -> None:
    used = attributes_of("request") | attributes_of("r")
    assert used - {"num_tokens", "num_stale_output_tokens"} <= set(symbols.REQUEST_ATTRIBUTES)
    assert isinstance(Request.num_tokens, property)


def test_whatever_of_a_steps_output_is_used_is_listed() -> None:
    used = attributes_of("scheduler_output") | attributes_of("output") | attributes_of("scheduled")
    assert used <= set(symbols.OUTPUT_FIELDS) | {"values"}
    assert set(symbols.OUTPUT_FIELDS) <= set(SchedulerOutput.__dataclass_fields__)


def test_vllm_calls_what_we_override() -> None:
    source = inspect.getsource(Scheduler) + inspect.getsource(EngineCore)
    for name in symbols.METHODS:
        assert f".{name}(" in source, name
    # Ours comes first, whichever of vLLM's schedulers is behind it.
    assert HeadwayAsyncScheduler.__mro__[1] is FormsStepsByDeadline
