from headway.cli.demo import load_checks
from headway.cli.tally import Tally
from headway.client import KvTransfer
from headway.core.request import RequestState
from tests.unit.cli.test_tally import finished
from tests.unit.client.test_meter import metered

KV = KvTransfer(4096, 0.1, 0.5, 2, 0)


def tallied(
    *,
    state: RequestState = RequestState.SUCCEEDED,
    kv_transfer: KvTransfer | None = KV,
    num_recomputed: int = 1,
    first_at_s: float = 10.5,
) -> Tally:
    """One request of tier chat."""
    tally = Tally()
    tier = tally.tier("chat")
    tier.num_asked = 1
    tier.admitted(guaranteed=True)
    meter = metered(first_at_s, first_at_s + 0.1)
    end = finished(state, kv_transfer=kv_transfer, num_recomputed=num_recomputed)
    meter.event(end, first_at_s + 0.1)
    tally.kv.ended(end)
    tier.ended(meter, None)
    return tally


def failed(tally: Tally) -> list[str]:
    return [check.name for check in load_checks(tally, ["chat"]) if not check.passed]


def test_demo_passes_when_all_went_well() -> None:
    assert failed(tallied()) == []


def test_demo_fails_when_nothing_was_asked() -> None:
    assert len(failed(Tally())) == 4


def test_demo_fails_when_a_request_failed() -> None:
    assert "every request succeeded" in failed(tallied(state=RequestState.FAILED))


def test_demo_fails_when_a_request_moved_no_kv() -> None:
    assert failed(tallied(kv_transfer=None)) == ["KV moved for every request"]


def test_demo_fails_when_decode_recomputed_the_prompt() -> None:
    name = "decode recomputed at most one prompt token per request"
    assert failed(tallied(num_recomputed=3)) == [name]


def test_demo_fails_when_a_tier_kept_no_promise() -> None:
    assert failed(tallied(first_at_s=12.0)) == ["tier chat was promised, and kept"]
