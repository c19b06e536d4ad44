"""What the client makes of values that cannot be sent, and of what a newer server says."""

from __future__ import annotations

import math
from typing import cast

import pytest

from headway.client import Finished
from headway.client.convert import (
    GenerateArguments,
    capacity_from_pb,
    event_from_pb,
    request_to_pb,
)
from headway.core.request import RequestState
from headway.core.slo import Slo, StageSlo
from headway.errors import InvalidRequest
from headway.v1 import generation_pb2
from headway.v1 import inference_service_pb2 as pb
from tests.scripted_controller import finished

UNKNOWN = 99
CANNOT_BE_SENT: list[tuple[GenerateArguments, str]] = [
    ({"max_tokens": 2**32}, "sampling"),
    ({"prompt_token_ids": [5, -1]}, "prompt_token_ids"),
    ({"prompt": "\udcff"}, "prompt_text"),
    ({"messages": [("user", "\udcff")]}, "messages"),
    ({"tier": "\udcff"}, "tier"),
    ({"slo": Slo((StageSlo(1e30),), ttft_s=1.0)}, "slo"),
    ({"deadline_s": math.nan}, "deadline"),
    ({"deadline_s": math.inf}, "deadline"),
    ({"deadline_s": -math.inf}, "deadline"),
    ({"deadline_s": -1e30}, "deadline"),
]


@pytest.mark.parametrize(("arguments", "field"), CANNOT_BE_SENT)
def test_value_that_cannot_be_sent_is_invalid_and_named(
    arguments: GenerateArguments, field: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        request_to_pb(**arguments)
    assert [violation.field for violation in caught.value.violations] == [field]


def test_unknown_final_state_is_a_failure_that_says_so() -> None:
    last = event_from_pb(finished(cast("pb.FinalState", UNKNOWN)))
    assert isinstance(last, Finished)
    assert (last.state, last.error_reason) == (RequestState.FAILED, "UNKNOWN_STATE")
    assert str(UNKNOWN) in last.error_message


def test_unknown_finish_reason_is_left_out() -> None:
    response = finished()
    response.finished.finish_reason = cast("generation_pb2.FinishReason", UNKNOWN)
    last = event_from_pb(response)
    assert isinstance(last, Finished)
    assert (last.state, last.finish_reason) == (RequestState.SUCCEEDED, None)


def test_worker_in_an_unknown_role_is_left_out() -> None:
    response = pb.GetCapacityResponse()
    response.workers.add(worker_id="encode-0", role=cast("generation_pb2.WorkerRole", UNKNOWN))
    response.workers.add(worker_id="decode-0", role=generation_pb2.WORKER_ROLE_DECODE)
    (worker,) = capacity_from_pb(response).workers
    assert worker.worker_id == "decode-0"
