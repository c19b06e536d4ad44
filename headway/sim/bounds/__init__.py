"""Upper bounds on what any schedule can serve. A capacity above its bound is a bug."""

from __future__ import annotations


class BoundViolated(Exception):
    """A measured capacity exceeds what is possible: the simulator or the bound is wrong."""


def check(capacity_per_gpu: float, bound_per_gpu: float) -> None:
    """Hold a capacity against its bound, both in requests per second and GPU.

    Raises:
        BoundViolated: it is above, or one of both is no number.
    """
    if not capacity_per_gpu <= bound_per_gpu:
        raise BoundViolated(
            f"{capacity_per_gpu:.4g} requests/s per GPU, where at most {bound_per_gpu:.4g} can be"
        )
