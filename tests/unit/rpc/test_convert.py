"""Core types survive the way over the wire."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.core.cluster import ResourceCounters, WorkerLoad, WorkerRole, WorkerSpec
from headway.core.perf_model import PerfModel
from headway.core.request import FinishReason, Sampling
from headway.core.slo import Promise, StageSlo
from headway.ports.engine import KvTarget, KvTransferRecord
from headway.rpc import convert
from headway.v1 import control_service_pb2, decode_service_pb2, generation_pb2

counts = st.integers(0, 2**32 - 1)
long_counts = st.integers(0, 2**64 - 1)
costs = st.floats(0, 1e3)
texts = st.text(max_size=20)


@given(
    st.builds(
        Sampling,
        max_tokens=counts,
        temperature=st.floats(0, 2),
        top_p=st.floats(0.01, 1),
        top_k=counts,
        seed=st.none() | counts,
        stop=st.lists(texts, max_size=3).map(tuple),
        ignore_eos=st.booleans(),
    )
)
def test_sampling(sampling: Sampling) -> None:
    wire = convert.sampling_to_pb(sampling).SerializeToString()
    assert convert.sampling_from_pb(generation_pb2.SamplingParams.FromString(wire)) == sampling


def test_unset_sampling_means_greedy_over_all_tokens() -> None:
    sampling = convert.sampling_from_pb(generation_pb2.SamplingParams())
    assert sampling == Sampling(max_tokens=0, temperature=0.0, top_p=1.0, top_k=0, seed=None)


@given(
    st.builds(
        WorkerLoad,
        num_running=counts,
        num_waiting=counts,
        num_free_kv_blocks=counts,
        resources=st.builds(ResourceCounters, *[long_counts] * 6),
        draining=st.booleans(),
        step_time_ratio=costs,
    )
)
def test_load(load: WorkerLoad) -> None:
    assert convert.load_from_pb(convert.load_to_pb(load)) == load


@given(
    st.builds(
        WorkerSpec,
        worker_id=texts,
        incarnation=texts,
        role=st.sampled_from(WorkerRole),
        address=texts,
        model=texts,
        max_model_len=counts,
        kv_block_size=counts,
        num_kv_blocks=counts,
        max_step_tokens=counts,
        max_num_running=counts,
        kv_bytes_per_token=counts,
        perf_model=st.builds(PerfModel, *[costs] * 7),
        forms_steps_by_deadline=st.booleans(),
        prefills_locally=st.booleans(),
    )
)
def test_registration(spec: WorkerSpec) -> None:
    wire = convert.register_to_pb(spec).SerializeToString()
    back = convert.register_from_pb(control_service_pb2.Register.FromString(wire))
    assert back == spec


@pytest.mark.parametrize("ttft_s", [1.5, -0.25])
@pytest.mark.parametrize(
    "stages",
    [
        (StageSlo(0.05),),
        (StageSlo(0.05, end_token_id=0), StageSlo(0.1, end_after_tokens=7), StageSlo(0.2)),
    ],
)
def test_demand(ttft_s: float, stages: tuple[StageSlo, ...]) -> None:
    promise = Promise(ttft_s, stages)
    wire = convert.demand_to_pb(promise).SerializeToString()
    assert convert.demand_from_pb(decode_service_pb2.Demand.FromString(wire)) == promise


@pytest.mark.parametrize(
    "stages",
    [
        (),
        (StageSlo(0.05), StageSlo(0.1)),
        (StageSlo(0.05, end_after_tokens=3),),
    ],
)
def test_a_demand_whose_stages_do_not_follow_each_other(stages: tuple[StageSlo, ...]) -> None:
    with pytest.raises(ValueError, match="stage"):
        convert.demand_from_pb(convert.demand_to_pb(Promise(1.0, stages)))


def test_an_unknown_role_is_not_guessed() -> None:
    register = control_service_pb2.Register(role=77)  # type: ignore[arg-type]
    with pytest.raises(KeyError):
        convert.register_from_pb(register)


def test_target_and_finish_reason() -> None:
    target = KvTarget("127.0.0.1:1", "t", b"\x00\xff")
    assert convert.target_from_pb(convert.target_to_pb(target)) == target
    for reason in FinishReason:
        assert convert.finish_reason_from_pb(convert.finish_reason_to_pb(reason)) == reason


def test_transfer_record() -> None:
    record = KvTransferRecord(5, 2, 1, 0.25, 1_000_000_000, 3_500_000_000, "")
    usage = convert.usage_to_pb(record)
    assert (usage.num_bytes, usage.num_frames, usage.num_blocks_reused) == (5, 2, 1)
    assert usage.overlapped_ratio == 0.25
    assert convert.duration_from_pb(usage.duration) == 2.5


@given(st.floats(0, 3600))
def test_durations_keep_nanoseconds(seconds: float) -> None:
    assert convert.duration_from_pb(convert.duration_to_pb(seconds)) == pytest.approx(
        seconds, abs=1e-9
    )
