"""Loaded by every Python process of the bench's stack: decode workers note when tokens leave.

Python imports a module of this name from PYTHONPATH when it starts, which is how programs are
instrumented without changing them. Nothing happens in processes other than decode workers.
"""

from __future__ import annotations

import os
import sys

if "services.decode" in sys.orig_argv and "HEADWAY_BENCH_STAMPS" in os.environ:
    import atexit
    import json
    import time
    from collections.abc import Awaitable, Callable
    from pathlib import Path
    from typing import Any

    import grpc

    _METHOD = "/headway.v1.DecodeService/Decode"
    _server = grpc.aio.server
    # (request id, index of the token, instant on this machine's monotonic clock)
    _stamps: list[tuple[str, int, float]] = []

    class _StampingContext:
        """The context of one call, noting each token that is written to it."""

        def __init__(self, context: Any, request_id: str) -> None:
            self._context = context
            self._request_id = request_id

        async def write(self, response: Any) -> None:
            if response.HasField("tokens"):
                now_s = time.monotonic()
                first = response.tokens.first_index
                _stamps.extend(
                    (self._request_id, first + offset, now_s)
                    for offset in range(len(response.tokens.token_ids))
                )
            await self._context.write(response)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._context, name)

    def _stamped(behaviour: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
        async def decode(request: Any, context: Any) -> None:
            await behaviour(request, _StampingContext(context, request.request_id))

        return decode

    class _Stamping(grpc.aio.ServerInterceptor):
        async def intercept_service(
            self,
            continuation: Callable[[Any], Awaitable[Any]],
            handler_call_details: grpc.HandlerCallDetails,
        ) -> Any:
            handler = await continuation(handler_call_details)
            if handler_call_details.method != _METHOD:
                return handler
            return grpc.unary_stream_rpc_method_handler(
                _stamped(handler.unary_stream),
                request_deserializer=handler.request_deserializer,
                response_serializer=handler.response_serializer,
            )

    def _stamping_server(**options: Any) -> grpc.aio.Server:
        return _server(interceptors=[_Stamping()], **options)

    def _write() -> None:
        path = Path(os.environ["HEADWAY_BENCH_STAMPS"], f"{os.getpid()}.json")
        path.write_text(json.dumps(_stamps))

    grpc.aio.server = _stamping_server  # type: ignore[assignment]  # named options only
    atexit.register(_write)
