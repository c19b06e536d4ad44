from __future__ import annotations

import asyncio

import pytest

from headway.errors import Refused, RequestCancelled
from headway.v1 import inference_service_pb2 as pb
from services.controller.output import Output


async def test_tokens_that_wait_become_one_message() -> None:
    output = Output()
    output.admit(pb.Admission(request_id="r"))
    output.add_tokens(0, (1, 2), "ab")
    output.add_tokens(2, (3,), "c")
    output.finish(pb.Finished(state=pb.FINAL_STATE_SUCCEEDED), None)

    admission, tokens, finished = [await output.next() for _ in range(3)]
    assert admission is not None
    assert admission.HasField("admission")
    assert tokens is not None
    assert (tokens.tokens.first_index, list(tokens.tokens.token_ids)) == (0, [1, 2, 3])
    assert tokens.tokens.text == "abc"
    assert finished is not None
    assert finished.HasField("finished")
    assert await output.next() is None


async def test_a_reader_is_woken_by_what_comes() -> None:
    output = Output()
    output.admit(pb.Admission())
    assert await output.next() is not None
    waiting = asyncio.create_task(output.next())
    await asyncio.sleep(0)
    assert not waiting.done()
    output.add_tokens(0, (1,), "a")
    message = await waiting
    assert message is not None
    assert message.tokens.token_ids == [1]


async def test_an_error_ends_the_call_after_its_last_message() -> None:
    output = Output()
    output.finish(pb.Finished(state=pb.FINAL_STATE_CANCELLED), RequestCancelled("asked"))
    assert await output.next() is not None
    with pytest.raises(RequestCancelled):
        await output.next()


async def test_a_refusal_is_the_only_thing_that_comes() -> None:
    output = Output()
    output.refuse(Refused("PREFILL_TIME", "not now", 1.0))
    with pytest.raises(Refused):
        await output.next()
