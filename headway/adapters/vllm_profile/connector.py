"""A connector that gives a request any context at once, so that no prompt must be computed."""

from __future__ import annotations

from typing import Any

from headway.adapters.vllm_kv.connector import HeadwayKvConnector

# In a request's `kv_transfer_params`: tokens whose KV it shall be taken to have.
NUM_CONTEXT_TOKENS = "num_context_tokens"


class ContextConnector(HeadwayKvConnector):
    """Says that a request's context has come from elsewhere; its blocks hold random KV.

    How long attention takes does not depend on the values. All else is the connector that serves,
    so that a step has that one's work too, and is timed by it.
    """

    def register_kv_caches(self, kv_caches: dict[str, Any]) -> None:
        super().register_kv_caches(kv_caches)
        for cache in kv_caches.values():
            # Memory never written to is one page of zeros, which stays in the CPU's cache.
            if cache.is_floating_point():
                cache.uniform_(-1.0, 1.0)

    def get_num_new_matched_tokens(
        self,
        request: Any,
        num_computed_tokens: int,
    ) -> tuple[int, bool]:
        params = request.kv_transfer_params or {}
        return max(0, params.get(NUM_CONTEXT_TOKENS, 0) - num_computed_tokens), False
