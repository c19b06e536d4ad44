"""`headway model`: makes the demo's model ready."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from headway.adapters.model_files import is_prepared, prepare_model


def prepare(model_dir: Path, console: Console) -> None:
    """Write the model to `model_dir`, unless it is there, with progress.

    Raises:
        ConfigError: the package with the weights is not installed.
    """
    if is_prepared(model_dir):
        console.print(f"model ready in {model_dir}", markup=False)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("starting", total=1.0)
        told: list[str] = []

        def show(step: str, done_ratio: float) -> None:
            bar.update(task, description=step, completed=done_ratio)
            # Where nothing can be overwritten, each step is told once.
            if not console.is_terminal and step not in told:
                told.append(step)
                console.print(f"model: {step}", markup=False)

        prepare_model(model_dir, show)
    console.print(f"model written to {model_dir}", markup=False)
