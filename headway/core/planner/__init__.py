"""The policies that can be chosen, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from headway.core.planner.feasibility import FeasibilityPolicy
from headway.core.planner.interface import AdmissionPolicy, PlannerParams

ADMISSION_POLICIES: dict[str, Callable[[PlannerParams], AdmissionPolicy]] = {
    "feasibility": FeasibilityPolicy,
}


@dataclass(frozen=True, slots=True)
class Policies:
    """One policy for each question."""

    admission: AdmissionPolicy


def build_policies(params: PlannerParams) -> Policies:
    """The policies a deployment with these parameters runs."""
    return Policies(admission=ADMISSION_POLICIES["feasibility"](params))
