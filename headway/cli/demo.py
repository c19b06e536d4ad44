"""`headway demo`: real engines end to end, with proof that the promises and the split are real."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console

from headway.adapters.system_clock import SystemClock
from headway.adapters.tokenizer import load_tokenizer
from headway.cli.bench import Bench
from headway.cli.chat import ask
from headway.cli.checks import Check
from headway.cli.identity import (
    ServedPrompt,
    differences,
    identity_prompts,
    plain_outputs,
    serve_prompts,
)
from headway.cli.model import prepare
from headway.cli.stack import running_stack
from headway.cli.tally import Tally
from headway.cli.workload import load_workload
from headway.client import AsyncClient
from headway.config import Config, VllmConfig, load_config
from headway.errors import ConfigError

_QUESTION = "Why does a clock at sea level run slower than one on a mountain?"
_TIER = "chat"
_NUM_REQUESTS = 34
# Keeps a prefill core of the reference machine about two thirds busy.
_RATE_PER_S = 0.7
_SEED = 7
_NUM_CONNECTIONS = 2


class Demo:
    """One run of the demo; needs the repository's checkout as working directory."""

    def __init__(self, config_path: Path, workload_path: Path, out: Path) -> None:
        self._config_path = config_path
        self._workload_path = workload_path
        self._out = out
        self._console = Console(highlight=False)
        self._clock = SystemClock()
        self._started_at_s = self._clock.now_s()

    def run(self) -> bool:
        """Run it all; returns whether every check passed.

        Raises:
            ConfigError: the deployment has no real engine, or a file is missing or wrong.
            HeadwayError: the stack or the plain engine did not run.
        """
        config = load_config(self._config_path)
        if not isinstance(config.engine, VllmConfig):
            raise ConfigError(f"{self._config_path}: the demo needs an engine of kind vllm")
        prepare(Path(config.model.path), self._console)
        return asyncio.run(self._run(config, config.engine))

    async def _run(self, config: Config, engine: VllmConfig) -> bool:
        text = _natural_text()
        prompts = identity_prompts(load_tokenizer(config.model).encode(text))
        address = config.controller.listen
        bench = Bench(address, _NUM_CONNECTIONS, _SEED)
        planned = islice(
            load_workload(self._workload_path).requests(_RATE_PER_S, _SEED), _NUM_REQUESTS
        )
        self._say(f"starting the stack of {self._config_path}")
        log_path = self._out.with_name("demo-stack.log")
        async with running_stack(self._config_path, config, log_path, self._say):
            async with AsyncClient(address) as client:
                tiers = await client.list_tiers()
                self._say(f"asking: {_QUESTION}")
                await ask(client, _QUESTION, _TIER, self._console)
                self._say(f"sending {_NUM_REQUESTS} requests, {_RATE_PER_S} per second")
                await bench.send(planned, str(self._workload_path))
                self._say(f"sending {len(prompts)} prompts for comparison with plain vLLM")
                served = await serve_prompts(client, prompts)
            self._say("stopping the stack")
        self._say("running the same prompts on one plain vLLM engine")
        plain = await plain_outputs(config, engine, prompts)
        for prompt in served:
            bench.tally.kv.ended(prompt.finished)
        promised = [tier.name for tier in tiers if tier.slo is not None]
        return self._conclude(config, bench, promised, served, plain)

    def _conclude(
        self,
        config: Config,
        bench: Bench,
        promised_tiers: Sequence[str],
        served: Sequence[ServedPrompt],
        plain: Sequence[list[int]],
    ) -> bool:
        parted = differences([prompt.token_ids for prompt in served], plain)
        num_equal = len(served) - len(parted)
        bench.print_report(str(self._workload_path))
        checks = load_checks(bench.tally, promised_tiers)
        checks.append(
            Check(
                "output of every prompt is that of plain vLLM",
                num_equal == len(plain) >= 10,
                "; ".join([f"{num_equal} of {len(plain)} equal", *parted]),
            )
        )
        passed = all(check.passed for check in checks)
        report: dict[str, Any] = {
            "passed": passed,
            "engine": config.engine.kind,
            "model": config.model.name,
            **bench.report(),
            "greedy_identical": {"checked": len(plain), "equal": num_equal, "differences": parted},
            "checks": {check.name: check.passed for check in checks},
        }
        self._out.parent.mkdir(parents=True, exist_ok=True)
        self._out.write_text(json.dumps(report, indent=2) + "\n")
        for check in checks:
            self._say(f"{'ok  ' if check.passed else 'FAIL'} {check.name}: {check.seen}")
        self._say(f"written to {self._out}")
        verdict = f"demo: {'PASS' if passed else 'FAIL'} {_summary(bench.tally, num_equal)}"
        self._console.print(verdict, markup=False, soft_wrap=True)
        return passed

    def _say(self, text: str) -> None:
        elapsed_s = self._clock.now_s() - self._started_at_s
        self._console.print(f"{elapsed_s:5.0f} s  {text}", markup=False, soft_wrap=True)


def load_checks(tally: Tally, promised_tiers: Sequence[str]) -> list[Check]:
    """What must hold for the load, and for all KV that was moved."""
    num_asked, num_succeeded = tally.total("num_asked"), tally.total("num_succeeded")
    kv = tally.kv
    num_ended = sum(kv.recomputed.values())
    max_recomputed = max(kv.recomputed, default=0)
    checks = [
        Check(
            "every request succeeded",
            num_succeeded == num_asked > 0,
            f"{num_succeeded} of {num_asked}",
        ),
        Check(
            "KV moved for every request",
            kv.num_transfers == num_ended > 0 and kv.num_bytes > 0,
            f"{kv.num_transfers} of {num_ended}, {kv.num_bytes / 1e6:,.0f} MB",
        ),
        Check(
            "decode recomputed at most one prompt token per request",
            num_ended > 0 and max_recomputed <= 1,
            f"at most {max_recomputed}",
        ),
    ]
    for name in promised_tiers:
        tier = tally.tier(name)
        checks.append(
            Check(
                f"tier {name} was promised, and kept",
                tier.num_attained > 0,
                f"{tier.num_attained} kept of {tier.num_guaranteed} promised",
            )
        )
    return checks


def _summary(tally: Tally, num_equal: int) -> str:
    return (
        f"{tally.total('num_succeeded')} requests, {tally.total('num_attained')} of "
        f"{tally.total('num_guaranteed')} promises kept, {tally.kv.num_transfers} KV transfers, "
        f"{num_equal} outputs identical to plain vLLM"
    )


def _natural_text() -> str:
    """The licence: natural text, in the checkout, and long enough."""
    try:
        return Path("LICENSE").read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError("run the demo in the repository's checkout: no LICENSE here") from error
