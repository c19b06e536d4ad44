"""`headway verify`: does a running stack keep what it promises, by the client's own clock?"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import uvloop
from rich.console import Console
from rich.table import Table

from headway.cli.bench import Bench
from headway.cli.checks import Check, write_junit
from headway.cli.load import until
from headway.cli.tally import Tally, TierTally
from headway.cli.workload import load_workload

_NUM_CONNECTIONS = 4
_SUITE = "headway.verify"


@dataclass(frozen=True, slots=True)
class DeclaredLoad:
    """What is asked of the stack.

    Attributes:
        mix: a workload file, see configs/workloads/.
    """

    mix: Path
    rate_per_s: float
    duration_s: float
    seed: int


class Verify:
    """One conformance run against one controller."""

    def __init__(self, address: str, load: DeclaredLoad, min_attained_ratio: float) -> None:
        self._address = address
        self._load = load
        self._min_attained_ratio = min_attained_ratio
        self._bench = Bench(address, _NUM_CONNECTIONS, load.seed)
        self._console = Console(highlight=False)

    def run(self, json_path: Path | None, junit_path: Path | None) -> bool:
        """Send the load, check what came of it, tell it; returns whether all checks passed.

        Raises:
            ConfigError: the mix is missing or wrong.
            Unavailable: no controller answers at the address.
        """
        load = self._load
        planned = until(
            load_workload(load.mix).requests(load.rate_per_s, load.seed), load.duration_s
        )
        self._console.print(
            f"{load.mix} at {load.rate_per_s:g} requests per second for {load.duration_s:g} s, "
            f"seed {load.seed}, to {self._address}",
            markup=False,
            soft_wrap=True,
        )
        uvloop.run(self._bench.send(planned, str(load.mix)))
        tally = self._bench.tally
        checks = checks_of(tally, self._min_attained_ratio)
        passed = all(check.passed for check in checks)
        self._bench.print_report(str(load.mix))
        self._console.print(_table(checks))
        self._console.print(f"verify: {'PASS' if passed else 'FAIL'}")
        report = self._bench.report()
        if json_path is not None:
            json_path.parent.mkdir(parents=True, exist_ok=True)
            json_path.write_text(json.dumps(self._json(report, checks), indent=2) + "\n")
        if junit_path is not None:
            write_junit(checks, _SUITE, report["duration_s"], junit_path)
        return passed

    def _json(self, report: dict[str, object], checks: list[Check]) -> dict[str, object]:
        return {
            "passed": all(check.passed for check in checks),
            "address": self._address,
            "mix": str(self._load.mix),
            "rate_per_s": self._load.rate_per_s,
            "sent_for_s": self._load.duration_s,
            "min_attained_ratio": self._min_attained_ratio,
            "checks": [
                {
                    "name": check.name,
                    "passed": check.passed,
                    "skipped": check.skipped,
                    "seen": check.seen,
                }
                for check in checks
            ],
            **report,
        }


def checks_of(tally: Tally, min_attained_ratio: float) -> list[Check]:
    """What must hold of a load, tier by tier.

    Args:
        tally: of the load, after its end.
        min_attained_ratio: of the requests of a tier that were promised bounds, the share that
            must have met them.
    """
    num_promised = tally.total("num_guaranteed")
    checks = [
        Check(
            "something was promised",
            num_promised > 0,
            f"{num_promised} of {tally.total('num_asked')} requests",
        )
    ]
    for name, tier in sorted(tally.tiers.items()):
        shown = name or "(no tier)"
        checks += [
            _kept(shown, tier, min_attained_ratio),
            Check(
                f"{shown}: streams follow the rules",
                not tier.violations,
                _counts(tier.violations) or f"{tier.num_asked} streams",
            ),
            Check(
                f"{shown}: what was admitted was served",
                not tier.failures,
                _counts(tier.failures) or f"{tier.num_succeeded} requests",
            ),
        ]
    return checks


def _kept(name: str, tier: TierTally, min_attained_ratio: float) -> Check:
    title = f"{name}: promises kept"
    if tier.num_guaranteed == 0:
        return Check(title, passed=True, seen="nothing was promised", skipped=True)
    ratio = tier.num_attained / tier.num_guaranteed
    return Check(
        title,
        ratio >= min_attained_ratio,
        f"{tier.num_attained} of {tier.num_guaranteed}, {ratio:.1%} (>= {min_attained_ratio:.1%})",
    )


def _counts(reasons: dict[str, int]) -> str:
    return ", ".join(f"{count} x {reason}" for reason, count in sorted(reasons.items()))


def _table(checks: list[Check]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    for check in checks:
        word = "FAIL" if not check.passed else "-" if check.skipped else "ok"
        table.add_row(word, check.name, check.seen)
    return table
