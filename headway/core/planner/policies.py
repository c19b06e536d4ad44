"""The policies a deployment runs: the controller's, and those that a replay builds anew."""

from __future__ import annotations

from dataclasses import dataclass

from headway.core.planner.admission import PlannedAdmission
from headway.core.planner.interface import AdmissionPolicy, PlannerParams


@dataclass(frozen=True, slots=True)
class Policies:
    """One policy for each question."""

    admission: AdmissionPolicy


def build_policies(params: PlannerParams) -> Policies:
    """The policies a deployment with these parameters runs; they know of no worker yet."""
    return Policies(admission=PlannedAdmission(params))
