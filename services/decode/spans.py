"""What one decode looked like, for traces: predicted beside measured."""

from __future__ import annotations

import time

from headway.ports.engine import DecodeJob, EngineFinished, EngineInfo, KvTransferRecord
from headway.ports.telemetry import AttributeValue, Telemetry

# Of the newest transfer, in the mean of all before it.
_NEWEST_WEIGHT = 0.2


class TransferPace:
    """How fast this worker received pages lately, in bytes per second; an exponential mean."""

    def __init__(self) -> None:
        self._bytes_per_s = 0.0

    def predict(self, num_bytes: int) -> float | None:
        """Seconds `num_bytes` would take; None before the first transfer."""
        return num_bytes / self._bytes_per_s if self._bytes_per_s else None

    def measured(self, record: KvTransferRecord) -> None:
        if record.num_bytes == 0 or record.duration_s <= 0:
            return
        bytes_per_s = record.num_bytes / record.duration_s
        weight = _NEWEST_WEIGHT if self._bytes_per_s else 1.0
        self._bytes_per_s += weight * (bytes_per_s - self._bytes_per_s)


class DecodeSpans:
    """Follows one decode; all spans are recorded when it has finished."""

    def __init__(
        self, telemetry: Telemetry, info: EngineInfo, job: DecodeJob, pace: TransferPace
    ) -> None:
        self._telemetry = telemetry
        self._info = info
        self._job = job
        self._pace = pace
        self._num_tokens = 0
        self._first_unix_ns = 0
        self._last_unix_ns = 0

    def tokens(self, num_tokens: int) -> None:
        """The engine has put out so many more, just now."""
        self._last_unix_ns = time.time_ns()
        if self._num_tokens == 0:
            self._first_unix_ns = self._last_unix_ns
        self._num_tokens += num_tokens

    def finished(self, finished: EngineFinished) -> None:
        record = finished.kv_transfer
        if record is not None:
            self._telemetry.kv_transferred(record)
            self._transfer(record)
            self._pace.measured(record)
            queued_s = (self._first_unix_ns - record.ended_unix_ns) / 1e9
            self._add(
                "decode.queue",
                record.ended_unix_ns,
                self._first_unix_ns,
                {"headway.actual_s": queued_s},
            )
        self._add("decode", self._first_unix_ns, self._last_unix_ns, self._pace_of_tokens())

    def _transfer(self, record: KvTransferRecord) -> None:
        attributes: dict[str, AttributeValue] = {
            "headway.kv.num_bytes": record.num_bytes,
            "headway.kv.overlapped_ratio": record.overlapped_ratio,
            "headway.actual_s": record.duration_s,
        }
        predicted_s = self._pace.predict(record.num_bytes)
        if predicted_s is not None:
            attributes["headway.predicted_s"] = predicted_s
        # The pages were sent on behalf of the prefill worker's span.
        self._add(
            "kv.transfer",
            record.started_unix_ns,
            record.ended_unix_ns,
            attributes,
            record.traceparent,
        )

    def _pace_of_tokens(self) -> dict[str, AttributeValue]:
        num_gaps = max(0, self._num_tokens - 1)
        # Alone on the engine and at its mean length: what load adds is what a trace shows.
        context = len(self._job.prompt_token_ids) + self._num_tokens // 2
        return {
            "headway.predicted_s": num_gaps * self._info.perf_model.decode_step_s((context,)),
            "headway.actual_s": (self._last_unix_ns - self._first_unix_ns) / 1e9,
            "headway.num_output_tokens": self._num_tokens,
        }

    def _add(
        self,
        name: str,
        start_unix_ns: int,
        end_unix_ns: int,
        attributes: dict[str, AttributeValue],
        parent: str = "",
    ) -> None:
        self._telemetry.add_span(
            name,
            parent=parent or self._job.traceparent,
            start_unix_ns=start_unix_ns,
            end_unix_ns=end_unix_ns,
            attributes=attributes,
        )
