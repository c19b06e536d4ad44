import pytest

from bench.live_report import merged, rate_at, summary


def row(
    system: str, rate: float, attained: int, *, kept: int = 0, number: int = 0
) -> dict[str, object]:
    percentiles = {"p50": 0.1 * (number + 1), "p90": None, "p99": None}
    return {
        "system": system,
        "workload": "calm",
        "rate": rate,
        "tier": "chat",
        "round": number,
        "asked": 20,
        "guaranteed": 10 if kept else 0,
        "kept": kept,
        "attained": attained,
        "attained_mean_tpot": attained,
        "failed": 0,
        "goodput_per_s": attained / 10,
        "ttft_s": percentiles,
        "tpot_s": percentiles,
    }


def test_the_rate_is_read_off_the_line_between_two_measurements() -> None:
    assert rate_at({1.0: 1.0, 2.0: 0.8}, 0.9) == pytest.approx(1.5)
    assert rate_at({1.0: 0.5}, 0.9) == pytest.approx(0.2)
    assert rate_at({1.0: 1.0, 2.0: 0.95}, 0.9) == 2.0
    # What comes after the first failure does not count.
    assert rate_at({1.0: 0.8, 2.0: 1.0}, 0.9) == pytest.approx(0.5)


def test_rounds_are_summed_and_their_goodputs_spread() -> None:
    (found,) = merged([row("plain", 1.0, 8), row("plain", 1.0, 20, number=1)])
    assert (found["asked"], found["attained"], found["rounds"]) == (40, 28, 2)
    assert found["goodput_per_s"] == pytest.approx(1.4)
    assert found["goodput_spread"] == [0.8, 2.0]
    assert found["ttft_s"] == {"p50": pytest.approx(0.15), "p90": None, "p99": None}


def test_the_best_of_ours_is_compared_with_the_best_plain_one() -> None:
    found = summary(
        [
            *(row("plain", rate, attained) for rate, attained in ((1.0, 19), (2.0, 10))),
            *(row("plain-256", rate, attained) for rate, attained in ((1.0, 18), (2.0, 10))),
            *(row("split", rate, attained, kept=9) for rate, attained in ((1.0, 20), (2.0, 18))),
            *(row("hybrid", rate, attained, kept=10) for rate, attained in ((1.0, 20), (2.0, 5))),
        ]
    )
    # plain: 1 + 0.05 / 0.45; split: 2, as far as was measured.
    assert found["goodput_ratio_vs_best_plain"] == pytest.approx(2.0 / (1 + 0.05 / 0.45))
    assert found["admitted_attainment_min"] == pytest.approx(0.9)
    assert found["admitted_attainment"] == pytest.approx(38 / 40)
