"""When a conformance run passes, and what it tells a CI job."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree as ET

from headway.cli.checks import Check, write_junit
from headway.cli.tally import Tally
from headway.cli.verify import checks_of
from headway.client import RequestMeter
from headway.errors import Refused
from tests.unit.client.test_meter import metered


def tallied(*, num_kept: int, num_broken: int) -> Tally:
    """Requests of tier chat, all promised."""
    tally = Tally()
    tier = tally.tier("chat")
    for number in range(num_kept + num_broken):
        tier.num_asked += 1
        tier.admitted(guaranteed=True)
        first_at_s = 10.5 if number < num_kept else 20.0
        tier.ended(metered(first_at_s, first_at_s + 0.1), None)
    return tally


def failed(tally: Tally, min_attained_ratio: float = 0.99) -> list[str]:
    return [check.name for check in checks_of(tally, min_attained_ratio) if not check.passed]


def test_one_broken_promise_in_a_hundred_is_allowed_and_two_are_not() -> None:
    assert failed(tallied(num_kept=99, num_broken=1)) == []
    assert failed(tallied(num_kept=98, num_broken=2)) == ["chat: promises kept"]
    assert failed(tallied(num_kept=98, num_broken=2), min_attained_ratio=0.9) == []


def test_each_tier_answers_for_itself() -> None:
    tally = tallied(num_kept=1000, num_broken=0)
    small = tally.tier("summarize")
    small.num_asked = 1
    small.admitted(guaranteed=True)
    small.ended(metered(20.0, 20.1), None)
    assert failed(tally) == ["summarize: promises kept"]


def test_a_tier_without_promises_is_skipped_and_a_stack_without_any_fails() -> None:
    tally = Tally()
    tier = tally.tier("chat")
    tier.num_asked = 1
    tier.ended(RequestMeter(10.0), Refused("KV_BLOCKS", "full", 1.0))
    checks = {check.name: check for check in checks_of(tally, 0.99)}
    assert checks["chat: promises kept"].skipped
    assert failed(tally) == ["something was promised"]


def test_a_broken_stream_fails_whatever_the_times() -> None:
    tally = tallied(num_kept=100, num_broken=0)
    tally.tier("chat").violations["TOKEN_INDEX_GAP"] += 2
    (check,) = [check for check in checks_of(tally, 0.99) if not check.passed]
    assert (check.name, check.seen) == (
        "chat: streams follow the rules",
        "2 x TOKEN_INDEX_GAP",
    )


def test_a_request_that_failed_fails_even_without_a_promise() -> None:
    tally = tallied(num_kept=100, num_broken=0)
    tally.tier("best-effort").failures["WORKER_LOST"] += 1
    assert failed(tally) == ["best-effort: what was admitted was served"]


def test_junit_counts_and_carries_what_was_seen(tmp_path: Path) -> None:
    path = tmp_path / "new" / "verify.xml"
    checks = [
        Check("good", passed=True, seen="12 of 12"),
        Check('bad & "odd"', passed=False, seen="1 < 2"),
        Check("nothing", passed=True, seen="no promise", skipped=True),
    ]
    write_junit(checks, "headway.verify", 1.5, path)
    suite = ET.parse(path).getroot()
    assert suite.tag == "testsuite"
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("3", "1", "1")
    assert suite.get("time") == "1.500"
    cases = {case.get("name"): case for case in suite}
    assert [child.tag for child in cases["good"]] == ["system-out"]
    failure = cases['bad & "odd"'].find("failure")
    assert failure is not None
    assert failure.get("message") == "1 < 2"
    assert [child.tag for child in cases["nothing"]] == ["skipped"]
