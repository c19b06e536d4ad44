"""Opens the engine that the config names."""

from __future__ import annotations

from headway.config import Config, EmulatedConfig, VllmConfig
from headway.core.cluster import WorkerRole
from headway.ports.engine import Engine


async def open_engine(config: Config, role: WorkerRole, replica: int, host: str) -> Engine:
    """Start the engine of one worker; the caller closes it.

    A decode engine receives KV pages on `host`, on a port of its own choice.

    Raises:
        ConfigError: the engine cannot run as configured.
        EngineFailed: it did not start.
    """
    # Each is imported only where it runs: vLLM takes seconds to import, and may not be there.
    match config.engine:
        case EmulatedConfig() as engine:
            from headway.adapters.emulated.engine import open_emulated_engine  # noqa: PLC0415

            return await open_emulated_engine(config, engine, role, host)
        case VllmConfig():
            from headway.adapters.vllm_engine import open_vllm_engine  # noqa: PLC0415

            return await open_vllm_engine(
                config, role, replica, host, config.telemetry.otlp_endpoint
            )
