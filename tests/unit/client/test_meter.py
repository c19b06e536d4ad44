from headway.client import Admission, Finished, RequestMeter, Timings, Tokens, Usage
from headway.core.request import FinishReason, RequestState


def admission(*, guaranteed: bool) -> Admission:
    return Admission(
        request_id="r1",
        guaranteed=guaranteed,
        tier="chat",
        ttft_s=1.0 if guaranteed else None,
        tpot_s=0.1 if guaranteed else None,
        predicted_ttft_s=None,
        predicted_tpot_s=None,
        slack_s=None,
        plan_id="",
        prefill_worker_id="",
        decode_worker_id="",
        num_prompt_tokens=3,
        binding_constraint="",
    )


FINISHED = Finished(
    state=RequestState.SUCCEEDED,
    finish_reason=FinishReason.LENGTH,
    error_reason="",
    error_message="",
    usage=Usage(3, 3, 0, 1),
    timings=Timings(None, None, None, None, None, None, None, None),
    kv_transfer=None,
)


def metered(first_at_s: float, last_at_s: float, *, guaranteed: bool = True) -> RequestMeter:
    """A request of three tokens, sent at 10.0; two of them arrive together at the end."""
    meter = RequestMeter(10.0)
    meter.event(admission(guaranteed=guaranteed), 10.1)
    meter.event(Tokens(0, (1,), "a"), first_at_s)
    meter.event(Tokens(1, (2, 3), "bc"), last_at_s)
    meter.event(FINISHED, last_at_s + 1.0)
    return meter


def test_ttft_and_tpot_are_measured_from_the_instant_of_sending() -> None:
    meter = metered(10.5, 10.9)
    assert meter.ttft_s == 0.5
    assert meter.tpot_s is not None
    assert abs(meter.tpot_s - 0.2) < 1e-9
    assert meter.num_output_tokens == 3


def test_promise_is_kept_when_every_token_is_on_its_demand_line() -> None:
    # Due at 11.0, 11.1 and 11.2.
    assert metered(11.0, 11.2).attained


def test_promise_is_broken_by_a_late_first_token() -> None:
    assert not metered(11.01, 11.02).attained


def test_promise_is_broken_by_a_late_last_token() -> None:
    assert not metered(10.1, 11.21).attained


def test_best_effort_never_attains() -> None:
    assert not metered(10.1, 10.2, guaranteed=False).attained


def test_nothing_is_known_before_the_first_token() -> None:
    meter = RequestMeter(10.0)
    meter.event(admission(guaranteed=True), 10.1)
    assert (meter.ttft_s, meter.tpot_s, meter.attained) == (None, None, False)


def test_one_token_has_no_tpot() -> None:
    meter = RequestMeter(10.0)
    meter.event(Tokens(0, (1,), "a"), 11.0)
    assert (meter.ttft_s, meter.tpot_s) == (1.0, None)
