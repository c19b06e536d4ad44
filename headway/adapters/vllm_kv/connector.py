"""The class vLLM loads by name: hands each of its hooks to one of the two sides."""

from __future__ import annotations

from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorRole,
    SupportsHMA,
)

from headway.adapters.vllm_kv.engine_core import add_utilities
from headway.adapters.vllm_kv.messages import StepOutcomes
from headway.adapters.vllm_kv.scheduler_side import SchedulerSide
from headway.adapters.vllm_kv.worker_side import WorkerSide, open_worker_side
from headway.errors import ConfigError


class HeadwayKvConnector(KVConnectorBase_V1, SupportsHMA):  # type: ignore[misc]
    """Sends a prompt's KV pages chunk by chunk, or receives them before a request decodes.

    vLLM makes two of it, one for each role; the `kv_role` of its config says whether the
    engine sends ("kv_producer") or receives ("kv_consumer").
    """

    def __init__(self, vllm_config: Any, role: KVConnectorRole, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        if vllm_config.parallel_config.world_size != 1:
            raise ConfigError("KV transfer needs engines on one device each")
        if len(kv_cache_config.kv_cache_groups) != 1:
            raise ConfigError("KV transfer needs a model whose layers all have the same KV")
        self._side: WorkerSide | None = None
        self._scheduler = SchedulerSide(vllm_config.cache_config.block_size)
        if role == KVConnectorRole.SCHEDULER:
            add_utilities()

    @property
    def scheduler_side(self) -> SchedulerSide:
        return self._scheduler

    @property
    def worker_side(self) -> WorkerSide:
        assert self._side is not None, "asked before the KV memory was allocated"
        return self._side

    # The worker's role.

    def register_kv_caches(self, kv_caches: dict[str, Any]) -> None:
        host = self._kv_transfer_config.get_from_extra_config("receive_host", None)
        self._side = open_worker_side(
            kv_caches, self._vllm_config, self._kv_cache_config.num_blocks, host
        )

    def bind_connector_metadata(self, connector_metadata: Any) -> None:
        super().bind_connector_metadata(connector_metadata)
        self.worker_side.step_begins(connector_metadata)

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:  # noqa: ARG002
        self.worker_side.start_loads(self._get_connector_metadata())

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Nothing: requests whose pages have not all come are not in the step."""

    def save_kv_layer(
        self, layer_name: str, kv_layer: Any, attn_metadata: Any, **kwargs: Any
    ) -> None:
        """Nothing: pages are sent when the whole step is computed."""

    def wait_for_save(self) -> None:
        self.worker_side.after_step(self._get_connector_metadata())

    def get_finished(
        self,
        finished_req_ids: set[str],  # noqa: ARG002
    ) -> tuple[set[str], set[str]]:
        return set(), self.worker_side.take_finished()

    def get_block_ids_with_load_errors(self) -> set[int]:
        return self.worker_side.take_failed_blocks()

    def build_connector_worker_meta(self) -> StepOutcomes:
        # Never None, so that the scheduler side hears of the end of each step.
        return self.worker_side.take_outcomes()

    def shutdown(self) -> None:
        if self._side is not None:
            self._side.close()

    # The scheduler's role.

    def bind_gpu_block_pool(self, gpu_block_pool: Any) -> None:
        self._scheduler.bind_block_pool(gpu_block_pool)

    def get_num_new_matched_tokens(
        self, request: Any, num_computed_tokens: int
    ) -> tuple[int, bool]:
        num_tokens = self._scheduler.num_tokens_to_receive(request, num_computed_tokens)
        return num_tokens, num_tokens > 0

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        self._scheduler.blocks_allocated(request, blocks.get_block_ids()[0], num_external_tokens)

    def build_connector_meta(self, scheduler_output: Any) -> Any:
        return self._scheduler.step_scheduled(scheduler_output)

    def update_connector_output(self, connector_output: Any) -> None:
        self._scheduler.step_done(connector_output.kv_connector_worker_meta)

    def request_finished(
        self,
        request: Any,
        block_ids: list[int],  # noqa: ARG002
    ) -> tuple[bool, None]:
        self._scheduler.request_finished(request)
        return False, None

    def request_finished_all_groups(
        self,
        request: Any,
        block_ids: tuple[list[int], ...],  # noqa: ARG002
    ) -> tuple[bool, None]:
        self._scheduler.request_finished(request)
        return False, None
