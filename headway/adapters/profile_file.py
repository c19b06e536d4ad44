"""Writes what was measured and fitted as a profile: a TOML file that `profiles.Profile` reads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from headway.profiles import Profile

# More digits than the fit is good for, fewer than would hide that.
_SIGNIFICANT_DIGITS = 4


def write_profile(profile: Profile, path: Path) -> None:
    """Write it, with its folder.

    Raises:
        ValueError: it has the tables that only a simulation needs.
    """
    if profile.truth is not None or profile.memory is not None:
        raise ValueError("a measured profile has neither truth nor memory")
    sections: list[tuple[str, Mapping[str, Any]]] = [
        ("", {"source": profile.source, "measured_on": profile.measured_on}),
        ("perf_model", asdict(profile.perf_model)),
    ]
    if profile.draft is not None:
        sections.append(("draft", profile.draft.model_dump()))
    if profile.measurement is not None:
        sections.append(("measurement", profile.measurement.model_dump()))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(_section(*section) for section in sections), encoding="utf-8")


def _section(name: str, values: Mapping[str, Any]) -> str:
    lines = [f"[{name}]"] if name else []
    lines += [f"{key} = {_value(value)}" for key, value in values.items()]
    return "\n".join(lines) + "\n"


def _value(value: str | float) -> str:
    match value:
        case str():
            # TOML's basic strings have JSON's escapes.
            return json.dumps(value)
        case int():
            return str(value)
        case _:
            return repr(float(f"{value:.{_SIGNIFICANT_DIGITS}g}"))
