"""Things that must hold, and how to tell a CI job about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree as ET


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that must hold.

    Attributes:
        seen: what was seen, in words, whether it held or not.
        skipped: there was nothing to check it on; it counts as passed.
    """

    name: str
    passed: bool
    seen: str
    skipped: bool = False


def write_junit(checks: Sequence[Check], suite: str, duration_s: float, path: Path) -> None:
    """Write the checks as test cases in JUnit's XML, which CI systems show.

    The format is that of the Jenkins JUnit plug-in's schema (junit-10.xsd); `duration_s` is all
    the time that the checks took together.
    """
    element = ET.Element(
        "testsuite",
        name=suite,
        tests=str(len(checks)),
        failures=str(sum(not check.passed for check in checks)),
        skipped=str(sum(check.skipped for check in checks)),
        errors="0",
        time=f"{duration_s:.3f}",
    )
    for check in checks:
        case = ET.SubElement(element, "testcase", classname=suite, name=check.name)
        if not check.passed:
            ET.SubElement(case, "failure", message=check.seen)
        elif check.skipped:
            ET.SubElement(case, "skipped", message=check.seen)
        else:
            ET.SubElement(case, "system-out").text = check.seen
    path.parent.mkdir(parents=True, exist_ok=True)
    ET.ElementTree(element).write(path, encoding="utf-8", xml_declaration=True)
