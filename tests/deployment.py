"""Config files of deployments with emulated engines, for tests that start processes."""

from __future__ import annotations

import json
import socket
from pathlib import Path

from tests.emulated_workers import write_profile


def free_port() -> int:
    """A port that nobody listens on now: a controller needs one that its workers know."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


def write_deployment(
    folder: Path, address: str, more: str, *, step_s: float, token_s: float = 0.0
) -> Path:
    """Write a config and its profile; returns the config's path.

    Args:
        address: the controller's.
        more: follows it, so that it may start with keys of `[controller]`.
        step_s: what every step of an engine takes.
        token_s: that each token in it makes it take at least.
    """
    profile = write_profile(folder / "profile.toml", step_s=step_s, token_s=token_s)
    path = folder / "deployment.toml"
    path.write_text(
        f"""
[model]
name = "emulated"
tokenizer = "bytes"
[engine]
kind = "emulated"
profile = {json.dumps(str(profile))}
[controller]
listen = "{address}"
{more}
""",
        encoding="utf-8",
    )
    return path
