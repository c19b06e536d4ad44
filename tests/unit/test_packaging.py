"""What is shipped, and what the lock files promise about an installation."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hatchling.builders.wheel import WheelBuilder
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
LOCKS = sorted((ROOT / "requirements").glob("*.lock"))
PINNED = re.compile(r"^([A-Za-z0-9._-]+)==([^ \\\n]+)", re.MULTILINE)


@pytest.fixture(scope="module")
def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def wheel_names(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("dist")
    path = next(WheelBuilder(str(ROOT)).build(directory=str(folder), versions=["standard"]))
    with zipfile.ZipFile(path) as wheel:
        return wheel.namelist()


def pins(lock: str) -> dict[str, str]:
    """Version by canonical name of all that a lock file installs."""
    text = (ROOT / "requirements" / f"{lock}.lock").read_text()
    return {canonicalize_name(name): version for name, version in PINNED.findall(text)}


def unmet(requirements: list[str], pinned: dict[str, str]) -> list[str]:
    parsed = [Requirement(text) for text in requirements]
    return [
        str(wanted)
        for wanted in parsed
        if not wanted.specifier.contains(pinned.get(canonicalize_name(wanted.name), "0"))
    ]


def test_the_wheel_brings_the_headway_package_and_nothing_else(wheel_names: list[str]) -> None:
    top_level = {name.split("/")[0] for name in wheel_names}
    metadata = {name for name in top_level if name.endswith(".dist-info")}
    assert top_level - metadata == {"headway"}


def test_the_wheel_brings_generated_code_types_and_the_licence(wheel_names: list[str]) -> None:
    assert {
        "headway/v1/inference_service_pb2.py",
        "headway/v1/inference_service_pb2.pyi",
        "headway/py.typed",
    } <= set(wheel_names)
    assert any(name.endswith("licenses/LICENSE") for name in wheel_names)


@pytest.mark.parametrize(
    "module", ["headway.client", "headway.cli.main", "services.controller.__main__"]
)
def test_neither_clients_nor_the_controller_load_an_engine(module: str) -> None:
    code = (
        f"import sys, importlib; importlib.import_module({module!r})\n"
        "print(*sorted({'vllm', 'torch', 'transformers'} & set(sys.modules)))"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, cwd=ROOT)
    assert loaded.stdout.decode().split() == []


def test_locks_meet_what_pyproject_asks_for(pyproject: dict[str, Any]) -> None:
    base = pyproject["project"]["dependencies"]
    extras = pyproject["project"]["optional-dependencies"]
    assert unmet(base, pins("runtime")) == []
    assert unmet([*base, *extras["gpu"]], pins("gpu")) == []
    assert unmet([*base, *extras["cpu"], *extras["dev"]], pins("cpu") | pins("torch")) == []


def test_excluded_packages_are_in_no_lock_of_ours(pyproject: dict[str, Any]) -> None:
    excluded = set(pyproject["tool"]["uv"]["exclude-dependencies"])
    assert not excluded & (pins("cpu").keys() | pins("gpu").keys() | pins("runtime").keys())


def test_torch_is_pinned_without_hash_and_only_in_its_own_lock() -> None:
    assert "torch" not in pins("cpu")
    assert list(pins("torch")) == ["torch"]


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.stem)
def test_locks_install_from_any_mirror(lock: Path) -> None:
    assert "://" not in lock.read_text()


@pytest.mark.parametrize(
    "lock", [lock for lock in LOCKS if lock.stem != "torch"], ids=lambda lock: lock.stem
)
def test_every_pin_has_a_hash(lock: Path) -> None:
    unhashed = [
        match.group(1)
        for match in PINNED.finditer(lock.read_text())
        if not lock.read_text()[match.end() :].lstrip(" \\\n").startswith("--hash=sha256:")
    ]
    assert unhashed == []


def test_the_node_lock_installs_from_any_registry() -> None:
    lock = (ROOT / "examples" / "node" / "package-lock.json").read_text()
    assert '"resolved"' not in lock
    assert "://" not in lock
