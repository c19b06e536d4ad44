"""Which requests to turn away first when not all can be served."""

from __future__ import annotations

import math
from dataclasses import dataclass

# How much likelier the next request finds no room when a worker's work grows by a request of
# average cost, relative to the share that finds none now. Not derived: of 3, 8, 20 and 60, 3 was
# best in mixed and summarizer, 8 in chat and 20 in coder (one run each); this lies between.
_SENSITIVITY = 6.0
_GAIN = 0.005
# Below so many requests the average cost is not known.
_MIN_REQUESTS = 32


@dataclass(slots=True)
class ShadowPrice:
    """Turns away the costliest requests while too many others find no room.

    All requests count the same. With a share p of the affordable ones finding no room, one that
    costs c times the average displaces about c * sensitivity * p others; if that is more than
    one, serving it loses more than it gains. Without contention p is 0 and nobody is turned away.

    Attributes:
        miss_ratio: share p, an exponential average over the last 200 affordable requests.
        mean_cost: of all requests asked, likewise, in worker seconds.
    """

    miss_ratio: float = 0.0
    mean_cost: float = 0.0
    num_asked: int = 0

    def is_affordable(self, cost: float) -> bool:
        """Count a request of this cost, in worker seconds; False if it should be turned away."""
        self.num_asked += 1
        self.mean_cost += (cost - self.mean_cost) * max(_GAIN, 1.0 / self.num_asked)
        return cost <= self.limit()

    def limit(self) -> float:
        """The highest affordable cost, in worker seconds."""
        if self.num_asked < _MIN_REQUESTS or self.miss_ratio == 0.0:
            return math.inf
        return self.mean_cost / (_SENSITIVITY * self.miss_ratio)

    def found_room(self, found: bool) -> None:
        """Note what became of an affordable request."""
        self.miss_ratio += _GAIN * (float(not found) - self.miss_ratio)
