"""`headway chat`: ask, stream the answer, and show the promise beside what came of it."""

from __future__ import annotations

import time
from contextlib import closing

from rich.console import Console

from headway.cli.display import milliseconds
from headway.client import Admission, AsyncClient, Client, Event, Finished, RequestMeter, Tokens
from headway.core.request import RequestState
from headway.errors import HeadwayError

_SHORT_ANSWER_TOKENS = 48
_WHY = {
    "PREFILL_TIME": "the prompt would not be computed in time",
    "DECODE_RATE": "tokens would not come fast enough",
    "KV_BLOCKS": "there is no KV memory left for it",
    "TOO_COSTLY": "it would take the room of several other requests",
    "NOT_ASKED": "none was asked for",
}


class Transcript:
    """Shows one request as it goes: the promise, the answer, and what came of the promise."""

    def __init__(self, notes: Console) -> None:
        """Args: notes: where all but the answer goes; the answer goes to standard output."""
        self.answer = ""
        self._notes = notes
        self._meter = RequestMeter(time.monotonic())

    def show(self, event: Event) -> None:
        self._meter.event(event, time.monotonic())
        match event:
            case Admission():
                self._note(promise_text(event))
            case Tokens():
                self.answer += event.text
                print(event.text, end="", flush=True)
            case Finished():
                print(flush=True)
                self._note(outcome_text(self._meter, event))

    def _note(self, text: str) -> None:
        self._notes.print(text, style="dim", markup=False, soft_wrap=True)


async def ask(client: AsyncClient, question: str, tier: str, notes: Console) -> None:
    """Ask one question and show it as it goes.

    Raises:
        HeadwayError: it was not answered.
    """
    transcript = Transcript(notes)
    async for event in client.generate(
        messages=[("user", question)], tier=tier, max_tokens=_SHORT_ANSWER_TOKENS
    ):
        transcript.show(event)


class Chat:
    """One conversation; answers go to standard output, everything else to standard error."""

    def __init__(
        self, address: str, *, tier: str, max_tokens: int, temperature: float, refuse: bool
    ) -> None:
        self._address = address
        self._tier = tier
        self._max_tokens = max_tokens
        self._temperature = temperature
        self._refuse = refuse
        self._messages: list[tuple[str, str]] = []
        self._notes = Console(stderr=True, highlight=False, soft_wrap=True)

    def run(self, question: str | None) -> None:
        """Ask one question, or with None go on until the end of input.

        Raises:
            HeadwayError: a single question was not answered, or nobody serves.
        """
        with Client(self._address) as client:
            if question is not None:
                self._ask(client, question)
            else:
                client.list_tiers()
                self._talk(client)

    def _talk(self, client: Client) -> None:
        self._notes.print(f"Tier {self._tier}. An empty line or Ctrl-D ends.", markup=False)
        while question := self._read():
            try:
                self._ask(client, question)
            except HeadwayError as error:
                self._notes.print(f"{error.reason}: {error}", style="red", markup=False)
            except KeyboardInterrupt:
                self._notes.print("\n(cancelled)")

    def _read(self) -> str:
        try:
            return input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            return ""

    def _ask(self, client: Client, question: str) -> None:
        messages = [*self._messages, ("user", question)]
        transcript = Transcript(self._notes)
        events = client.generate(
            messages=messages,
            tier=self._tier,
            when_not_promised="refuse" if self._refuse else "best_effort",
            max_tokens=self._max_tokens,
            temperature=self._temperature,
        )
        with closing(events):
            for event in events:
                transcript.show(event)
        self._messages = [*messages, ("assistant", transcript.answer)]


def promise_text(admission: Admission) -> str:
    """What was promised and what is expected, in a line."""
    if admission.predicted_ttft_s is None:
        predicted = "no forecast while it waits"
    else:
        predicted = (
            f"predicted {milliseconds(admission.predicted_ttft_s)} to the first token, "
            f"{milliseconds(admission.predicted_tpot_s)} per token"
        )
    if not admission.guaranteed:
        constraint = admission.binding_constraint
        return f"[best effort: no promise, {_WHY.get(constraint, constraint)}; {predicted}]"
    return (
        f"[guaranteed, tier {admission.tier}: first token within "
        f"{milliseconds(admission.ttft_s)}, then {milliseconds(admission.tpot_s)} per token; "
        f"{predicted}]"
    )


def outcome_text(meter: RequestMeter, finished: Finished) -> str:
    """What the caller got, on the caller's clock, in a line."""
    got = (
        f"{meter.num_output_tokens} tokens: the first after {milliseconds(meter.ttft_s)}, "
        f"then {milliseconds(meter.tpot_s)} per token"
    )
    if meter.admission is not None and meter.admission.guaranteed:
        got += ", promise kept" if meter.attained else ", promise BROKEN"
    if (kv := finished.kv_transfer) is not None:
        got += (
            f"; {kv.num_bytes / 1e3:,.0f} kB of KV moved in {milliseconds(kv.duration_s)}, "
            f"{kv.overlapped_ratio:.0%} of it while the prompt was still computed"
        )
    if finished.state is not RequestState.SUCCEEDED:
        ended = f"{finished.error_reason} {finished.error_message}".strip()
        got = f"{finished.state} {ended}; {got}"
    return f"[{got}]"
