"""Servers with OpenAI's completions API, `vllm serve` for one: what Headway is compared with."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Sequence
from itertools import cycle
from types import TracebackType
from typing import Self

import aiohttp

from headway.errors import EngineFailed, Unavailable

_EVENT = b"data:"
_END = b"[DONE]"


class CompletionServers:
    """Some servers of one model, asked in turn."""

    def __init__(self, urls: Sequence[str], model: str) -> None:
        """Args: urls: as in "http://127.0.0.1:8000"; model: the name they serve it under."""
        self._urls = [url.rstrip("/") for url in urls]
        self._turns = cycle(self._urls)
        self._model = model

    async def __aenter__(self) -> Self:
        # No limit of connections: an open-loop load must not wait in its own client.
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=None),
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._session.close()

    async def check(self) -> None:
        """See that every server answers and serves the model.

        Raises:
            Unavailable: one does not.
        """
        for url in self._urls:
            try:
                async with self._session.get(f"{url}/v1/models") as response:
                    response.raise_for_status()
                    names = [model["id"] for model in (await response.json())["data"]]
            except (aiohttp.ClientError, KeyError, TypeError) as error:
                raise Unavailable(f"{url} does not answer as an OpenAI server: {error}") from error
            if self._model not in names:
                raise Unavailable(f"{url} serves {', '.join(names)}, not {self._model}")

    async def generate(
        self, prompt_token_ids: Sequence[int], max_tokens: int
    ) -> AsyncGenerator[int]:
        """Yield how many output tokens there are so far, each time some came.

        Greedy, and exactly `max_tokens` long.

        Raises:
            Unavailable: the server did not answer, or broke off.
            EngineFailed: it answered with an error, or with fewer tokens.
        """
        num_tokens = 0
        body = {
            "model": self._model,
            "prompt": list(prompt_token_ids),
            "max_tokens": max_tokens,
            "temperature": 0,
            "stream": True,
            # vLLM's own additions: the count of tokens in every message, and no early end.
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
            "ignore_eos": True,
        }
        url = f"{next(self._turns)}/v1/completions"
        try:
            async with self._session.post(url, json=body) as response:
                if response.status != 200:
                    raise EngineFailed(f"{url}: {response.status} {await response.text()}")
                async for line in response.content:
                    seen = _num_tokens(line)
                    if seen > num_tokens:
                        num_tokens = seen
                        yield num_tokens
        except aiohttp.ClientError as error:
            raise Unavailable(f"{url}: {error}") from error
        if num_tokens != max_tokens:
            raise EngineFailed(f"{url} ended after {num_tokens} of {max_tokens} tokens")


def _num_tokens(line: bytes) -> int:
    """Output tokens so far, as one line of the event stream says; 0 if it says nothing of them.

    Raises:
        EngineFailed: the line is an error.
    """
    if not line.startswith(_EVENT):
        return 0
    data = line[len(_EVENT) :].strip()
    if data == _END:
        return 0
    message = json.loads(data)
    if "error" in message:
        raise EngineFailed(f"the server broke off: {message['error']}")
    return int((message.get("usage") or {}).get("completion_tokens", 0))
