"""Compiles the planner's inner loops, and keeps the machine code between runs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar, cast

import numba

_Function = TypeVar("_Function", bound=Callable[..., object])

_PACKAGE = Path(__file__).parent.parent


def _cache_folder() -> Path:
    """A folder that belongs to exactly these sources.

    numba looks only at the file of a function to see whether its stored machine code is still
    good, not at the functions that were compiled into it from other files.
    """
    digest = hashlib.sha256()
    for folder in ("core", "sim"):
        for path in sorted((_PACKAGE / folder).rglob("*.py")):
            source = path.read_bytes()
            if b"@kernel" in source or path.name == "kernel.py":
                digest.update(source)
    return Path(__file__).parent / "__pycache__" / f"kernels-{digest.hexdigest()[:16]}"


_CACHE_FOLDER = str(_cache_folder())


def kernel(function: _Function) -> _Function:
    """Compile `function` with numba on its first call; later processes load the result.

    The compiled function may call other kernels, and work on the records of
    `headway.core.batch_state`. It cannot run as plain Python (NUMBA_DISABLE_JIT=1): numpy's own
    records have no fields as attributes.
    """
    # Read when the function is decorated; other users of numba in this process keep theirs.
    others = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = _CACHE_FOLDER
    try:
        return cast("_Function", numba.njit(cache=True, error_model="numpy")(function))
    finally:
        numba.config.CACHE_DIR = others
