"""What waits to be sent to one client."""

from __future__ import annotations

import asyncio

from headway.errors import HeadwayError
from headway.v1 import generation_pb2
from headway.v1 import inference_service_pb2 as pb


class Output:
    """The messages of one Generate call: put in by the loop, taken out by the call.

    Tokens that wait become one message, so what waits is never more than one Admission, the
    request's max_tokens, and one Finished, however slowly the client reads.
    """

    def __init__(self) -> None:
        self._admission: pb.Admission | None = None
        self._tokens: generation_pb2.TokenChunk | None = None
        self._finished: pb.Finished | None = None
        self._error: HeadwayError | None = None
        self._ended = False
        self._ready = asyncio.Event()

    def admit(self, admission: pb.Admission) -> None:
        self._admission = admission
        self._ready.set()

    def add_tokens(self, first_index: int, token_ids: tuple[int, ...], text: str) -> None:
        if self._tokens is None:
            self._tokens = generation_pb2.TokenChunk(
                first_index=first_index, token_ids=token_ids, text=text
            )
        else:
            self._tokens.token_ids.extend(token_ids)
            self._tokens.text += text
        self._ready.set()

    def finish(self, finished: pb.Finished, error: HeadwayError | None) -> None:
        """Nothing comes after this. Args: error: what the call ends with, None for OK."""
        self._finished = finished
        self._end(error)

    def refuse(self, error: HeadwayError) -> None:
        """Nothing was admitted, and nothing comes after this."""
        self._end(error)

    def _end(self, error: HeadwayError | None) -> None:
        self._error = error
        self._ended = True
        self._ready.set()

    async def next(self) -> pb.GenerateResponse | None:
        """The next message, waiting for it; None when the call ends with OK.

        Raises:
            HeadwayError: the call ends with this, after all messages.
        """
        await self._ready.wait()
        if self._admission is not None:
            message = pb.GenerateResponse(admission=self._admission)
            self._admission = None
        elif self._tokens is not None:
            message = pb.GenerateResponse(tokens=self._tokens)
            self._tokens = None
        elif self._finished is not None:
            message = pb.GenerateResponse(finished=self._finished)
            self._finished = None
        else:
            if self._error is not None:
                raise self._error
            return None
        if self._tokens is None and not self._ended:
            self._ready.clear()
        return message
