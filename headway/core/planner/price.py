"""Which requests to turn away first when not all can be served."""

from __future__ import annotations

import math
from dataclasses import dataclass

# Displacement per cost and share of misses while these are rare, and the factor on the cost when
# they are not. Not derived: six scenarios at loads near 90 % and 98 % attained were tried with the
# first form alone (6), the second alone (2), and both (8 and 2; 12 and 2).
_SENSITIVITY = 8.0
_CONVEX_SENSITIVITY = 2.0
_GAIN = 0.005
# Below so many requests the average cost is not known.
_MIN_REQUESTS = 32


@dataclass(slots=True)
class ShadowPrice:
    """Turns away the costliest requests while too many others find no room.

    All requests count the same. With a share p of the affordable ones finding no room, one that
    costs c times the average displaces about c * sensitivity * p others; if that is more than
    one, serving it loses more than it gains. Where misses are frequent, what it displaces grows
    with the square of c, since it delays others for longer, and each of them by more: then it is
    (convex sensitivity * c)^2 * p. The milder of the two counts. Without contention p is 0 and
    nobody is turned away.

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
        linear = _SENSITIVITY * self.miss_ratio
        convex = _CONVEX_SENSITIVITY * math.sqrt(self.miss_ratio)
        return self.mean_cost / min(linear, convex)

    def found_room(self, found: bool) -> None:
        """Note what became of an affordable request."""
        self.miss_ratio += _GAIN * (float(not found) - self.miss_ratio)
