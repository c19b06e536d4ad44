"""Time."""

from __future__ import annotations

from typing import Protocol


class Clock(Protocol):
    """Monotonic time of this process, in seconds."""

    def now_s(self) -> float: ...
