"""Makes the first call of a kernel cheaper."""

from __future__ import annotations

import sys


def load_numba() -> None:
    """Load what numba loads at the first call of a kernel, but for SciPy's linear algebra.

    It looks there for a BLAS, which no kernel of ours calls, and only to see whether there is
    one; importing it takes as long as all the rest. Where that part of SciPy is loaded already,
    nothing is hidden.
    """
    hide = "scipy.linalg" not in sys.modules
    if hide:
        # What stands in sys.modules as None cannot be imported.
        sys.modules["scipy.linalg"] = None  # type: ignore[assignment]
    try:
        import numba.np.arraymath  # noqa: F401, PLC0415 - the module that looks for the BLAS
    finally:
        if hide:
            del sys.modules["scipy.linalg"]
