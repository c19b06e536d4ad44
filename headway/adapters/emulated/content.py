"""What the emulated engine computes: pages and tokens, as functions of the prompt alone."""

from __future__ import annotations

import hashlib
import sys
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from headway.adapters.kv_grpc.layout import PageLayout
from headway.config import Config, EmulatedConfig
from headway.core.request import FinishReason, Sampling

# Enough to notice pages of one layer that were written to another.
NUM_LAYERS = 2

_HASH_BYTES = 8
_OUTPUT_BLOCK_TOKENS = 64
# Any byte to a printable ASCII character, which is its own token for the bytes tokenizer.
_PRINTABLE = bytes(32 + value % 95 for value in range(256))


def page_layout(config: Config, engine: EmulatedConfig) -> PageLayout:
    """The layout that two emulated engines of one deployment share."""
    page_bytes = -(-engine.kv_block_size * engine.kv_bytes_per_token // NUM_LAYERS)
    agreed = (config.model.name, engine.seed, engine.kv_block_size, NUM_LAYERS, page_bytes)
    return PageLayout(NUM_LAYERS, page_bytes, hashlib.sha256(repr(agreed).encode()).digest())


def block_hashes(prompt_token_ids: Sequence[int], kv_block_size: int, seed: int) -> list[bytes]:
    """One hash per KV block, each over all tokens up to the block's end, as KV depends on them."""
    token_ids = array("I", prompt_token_ids)
    if sys.byteorder == "big":
        token_ids.byteswap()
    raw = token_ids.tobytes()
    block_bytes = kv_block_size * token_ids.itemsize
    latest = seed.to_bytes(16, "little", signed=True)
    hashes = []
    for start in range(0, len(raw), block_bytes):
        latest = _hash(latest + raw[start : start + block_bytes])
        hashes.append(latest)
    return hashes


def pages(hashes: Sequence[bytes], layer: int, page_bytes: int) -> bytes:
    """The pages of these blocks for one layer, one after the other."""
    num_repeats = -(-page_bytes // _HASH_BYTES)
    return b"".join(
        ((block[layer:] + block[:layer]) * num_repeats)[:page_bytes] for block in hashes
    )


@dataclass(frozen=True, slots=True)
class Output:
    """All that one request will ever put out.

    Attributes:
        token_ids: one byte each.
        text: what of it the client gets; shorter than `token_ids` when a stop string was met.
    """

    token_ids: bytes
    text: str
    finish_reason: FinishReason


def output(last_block_hash: bytes, sampling: Sampling) -> Output:
    """Tokens as a function of (prompt, index); the same whatever the sampling, but for its end.

    As in vLLM the tokens of a stop string are put out and its text is not.
    """
    num_hashes = -(-sampling.max_tokens // _OUTPUT_BLOCK_TOKENS)
    token_ids = b"".join(
        hashlib.blake2b(
            last_block_hash + index.to_bytes(4, "little"), digest_size=_OUTPUT_BLOCK_TOKENS
        ).digest()
        for index in range(num_hashes)
    ).translate(_PRINTABLE)[: sampling.max_tokens]
    text = token_ids.decode("ascii")
    # The stop string that is complete first ends the output.
    ends = [
        (text.index(stop) + len(stop), text.index(stop)) for stop in sampling.stop if stop in text
    ]
    if ends:
        num_tokens, num_characters = min(ends)
        return Output(token_ids[:num_tokens], text[:num_characters], FinishReason.STOP)
    return Output(token_ids, text, FinishReason.LENGTH)


def _hash(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=_HASH_BYTES).digest()
