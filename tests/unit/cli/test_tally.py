import pytest

from headway.cli.display import load_line, load_table
from headway.cli.tally import KvTally, Tally, TierTally, percentiles
from headway.client import Finished, KvTransfer, RequestMeter, Timings, Tokens, Usage
from headway.core.request import RequestState
from headway.errors import Refused, Unavailable
from tests.unit.client.test_meter import metered


def finished(
    state: RequestState = RequestState.SUCCEEDED,
    *,
    error_reason: str = "",
    num_recomputed: int = 1,
    kv_transfer: KvTransfer | None = None,
) -> Finished:
    return Finished(
        state=state,
        finish_reason=None,
        error_reason=error_reason,
        error_message="",
        usage=Usage(3, 3, 0, num_recomputed),
        timings=Timings(None, None, None, None, None, None, None, None),
        kv_transfer=kv_transfer,
    )


def test_percentiles_interpolate_between_order_statistics() -> None:
    # Position of p in n sorted values: (n - 1) * p, so 2, 3.6 and 3.96 here.
    assert percentiles([5.0, 1.0, 3.0, 2.0, 4.0]) == pytest.approx(
        {"p50": 3.0, "p90": 4.6, "p99": 4.96}
    )


def test_percentiles_of_one_value_are_that_value_and_of_none_are_none() -> None:
    assert percentiles([2.5]) == {"p50": 2.5, "p90": 2.5, "p99": 2.5}
    assert percentiles([]) == {"p50": None, "p90": None, "p99": None}


def test_attainment_is_counted_among_asked_and_among_guaranteed() -> None:
    tier = TierTally()
    tier.num_asked = 5
    for meter, guaranteed in [
        (metered(10.5, 10.9), True),
        (metered(12.0, 12.1), True),
        (metered(10.5, 10.9, guaranteed=False), False),
    ]:
        tier.admitted(guaranteed)
        tier.ended(meter, None)
    tier.ended(RequestMeter(10.0), Refused("KV_BLOCKS", "full", 1.0))
    report = tier.report()
    assert (report["asked"], report["guaranteed"], report["best_effort"]) == (5, 2, 1)
    assert (report["refused"], report["failed"], report["attained"]) == (1, 0, 1)
    assert report["attained_of_asked_ratio"] == 0.2
    assert report["attained_of_guaranteed_ratio"] == 0.5
    assert report["refusals"] == {"KV_BLOCKS": 1}
    assert report["ttft_s"] == pytest.approx({"p50": 0.5, "p90": 1.7, "p99": 1.97})
    assert tier.num_running == 1


def test_failed_request_counts_under_its_reason_and_never_as_attained() -> None:
    tier = TierTally(num_asked=3)
    lost = metered(10.5, 10.9)
    lost.event(finished(RequestState.FAILED, error_reason="WORKER_LOST"), 11.0)
    late = metered(10.5, 10.9)
    late.event(finished(RequestState.DEADLINE_EXCEEDED), 11.0)
    tier.ended(lost, None)
    tier.ended(late, None)
    tier.ended(RequestMeter(10.0), Unavailable("gone"))
    assert (tier.num_failed, tier.num_attained, tier.num_running) == (3, 0, 0)
    assert tier.failures == {"WORKER_LOST": 1, "DEADLINE_EXCEEDED": 1, "UNAVAILABLE": 1}


def test_kv_overlap_is_weighted_by_bytes() -> None:
    kv = KvTally()
    kv.ended(finished(kv_transfer=KvTransfer(3000, 0.2, 0.9, 3, 0)))
    kv.ended(finished(kv_transfer=KvTransfer(1000, 0.1, 0.1, 1, 0), num_recomputed=2))
    report = kv.report()
    assert (report["transfers"], report["bytes"]) == (2, 4000)
    assert report["seconds"] == pytest.approx(0.3)
    assert report["overlapped_ratio"] == pytest.approx((2700 + 100) / 4000)
    assert kv.recomputed_report() == {"max": 2, "total": 3, "histogram": {"1": 1, "2": 1}}


def test_request_that_moved_no_kv_is_not_counted_as_a_transfer() -> None:
    kv = KvTally()
    kv.ended(finished(num_recomputed=3))
    kv.ended(finished(RequestState.CANCELLED))
    assert (kv.num_transfers, sum(kv.recomputed.values())) == (0, 1)


def test_table_and_line_show_every_tier() -> None:
    tally = Tally()
    for name in ("chat", ""):
        tier = tally.tier(name)
        tier.num_asked += 1
        tier.admitted(name == "chat")
    meter = RequestMeter(0.0)
    meter.event(Tokens(0, (1,), "a"), 0.25)
    meter.event(finished(), 0.3)
    tally.tier("chat").ended(meter, None)
    table = load_table(tally, "title")
    assert list(table.columns[0].cells) == ["(none)", "chat"]
    assert list(table.columns[8].cells) == ["-", "250/250"]
    assert load_line(tally).startswith("asked 2, guaranteed 1, best effort 1, refused 0, failed 0")
