"""What Prometheus finds at a running controller."""

from __future__ import annotations

import asyncio
import re
import urllib.request
from pathlib import Path

from headway.cli.stack import running_stack
from headway.client import AsyncClient
from headway.config import load_config
from tests.traced_request import emulated_deployment


def scrape(url: str) -> set[str]:
    with urllib.request.urlopen(url) as response:
        return set(str(response.read(), "utf-8").splitlines())


async def until_shown(url: str, wanted: set[str], interval_s: float) -> None:
    """Worker loads come with the workers' reports."""
    while True:
        if wanted <= await asyncio.to_thread(scrape, url):
            return
        await asyncio.sleep(interval_s)


async def test_a_running_controller_shows_its_requests_and_all_workers(tmp_path: Path) -> None:
    config_path = emulated_deployment(tmp_path)
    config = load_config(config_path)
    log_path = tmp_path / "stack.log"
    async with (
        running_stack(config_path, config, log_path, lambda _: None),
        AsyncClient(config.controller.listen) as client,
    ):
        async for _ in client.generate(prompt="Count me.", tier="chat", max_tokens=4):
            pass
        found = re.search(r"metrics at (http://127\.0\.0\.1:\d+/metrics)", log_path.read_text())
        assert found is not None
        wanted = {
            'headway_admission_decisions_total{decision="GUARANTEED",tier="chat"} 1.0',
            'headway_requests_total{attained="true",state="SUCCEEDED",tier="chat"} 1.0',
            'gen_ai_server_time_to_first_token_seconds_bucket{le="30.0",tier="chat"} 1.0',
            'gen_ai_server_time_per_output_token_seconds_bucket{le="5.0",tier="chat"} 1.0',
            'headway_worker_requests_running{worker_id="prefill-0"} 0.0',
            'headway_worker_requests_running{worker_id="decode-0"} 0.0',
        }
        async with asyncio.timeout(60.0):
            await until_shown(found[1], wanted, config.controller.report_interval_s)
