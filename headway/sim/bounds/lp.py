"""Builds a sparse linear programme piece by piece, and solves it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import linprog
from scipy.sparse import coo_matrix

from headway.core.batch_state import Floats, Ints

_INFEASIBLE = 2


@dataclass(slots=True)
class LinearProgram:
    """Maximise gain . x with rows . x <= their limits and 0 <= x <= upper.

    Entries of the same row and column add up.
    """

    num_columns: int = 0
    num_rows: int = 0
    _gain: list[Floats] = field(default_factory=list)
    _upper: list[Floats] = field(default_factory=list)
    _limit: list[Floats] = field(default_factory=list)
    _entries: list[tuple[Ints, Ints, Floats]] = field(default_factory=list)

    def columns(self, num: int, *, upper: ArrayLike = np.inf, gain: ArrayLike = 0.0) -> Ints:
        """The numbers of `num` new variables."""
        self._upper.append(np.broadcast_to(np.asarray(upper, np.float64), num))
        self._gain.append(np.broadcast_to(np.asarray(gain, np.float64), num))
        self.num_columns += num
        return np.arange(self.num_columns - num, self.num_columns)

    def rows(self, num: int, at_most: ArrayLike = 0.0) -> Ints:
        """The numbers of `num` new rows."""
        self._limit.append(np.broadcast_to(np.asarray(at_most, np.float64), num))
        self.num_rows += num
        return np.arange(self.num_rows - num, self.num_rows)

    def add(self, rows: ArrayLike, columns: ArrayLike, coefficients: ArrayLike) -> None:
        """Add entries; the three are broadcast against each other."""
        row, column, coefficient = np.broadcast_arrays(rows, columns, coefficients)
        self._entries.append((row.ravel(), column.ravel(), coefficient.ravel().astype(np.float64)))

    def solve(self) -> Floats | None:
        """An optimal x; None if no x keeps all rows.

        Raises:
            RuntimeError: the solver gave up.
        """
        row, column, coefficient = (
            np.concatenate(part) for part in zip(*self._entries, strict=True)
        )
        matrix = coo_matrix((coefficient, (row, column)), (self.num_rows, self.num_columns))
        upper = np.concatenate(self._upper)
        result = linprog(
            -np.concatenate(self._gain),
            A_ub=matrix.tocsr(),
            b_ub=np.concatenate(self._limit),
            bounds=np.column_stack([np.zeros_like(upper), upper]),
            method="highs",
        )
        if result.status == _INFEASIBLE:
            return None
        if result.status != 0:
            raise RuntimeError(f"the solver gave up: {result.message}")
        return np.asarray(result.x, np.float64)
