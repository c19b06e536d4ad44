"""`headway replay`: gives a fresh controller what a live one was given, and compares."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console

from headway.adapters.build_controller import build_controller
from headway.adapters.event_codec import effects_to_json, event_to_json
from headway.adapters.event_log import LoggedEvent, read_event_log
from headway.errors import ConfigError

_LONGEST_TEXT = 2000


def replay(path: Path, console: Console) -> bool:
    """Re-run an event log; whether all effects are the same. Ends at the first difference.

    Raises:
        ConfigError: the file cannot be read, or is not an event log.
    """
    num_events = num_effects = 0
    try:
        with path.open(encoding="utf-8") as file:
            recorded = read_event_log(path, file)
            controller = build_controller(recorded.config)
            for logged in recorded.events:
                effects = _as_read(effects_to_json(controller.handle(logged.event, logged.now_s)))
                if effects != logged.effects:
                    _tell(logged, effects, console)
                    return False
                num_events += 1
                num_effects += len(effects)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from error
    console.print(f"identical: {num_events} events, {num_effects} effects")
    return True


def _as_read(effects: list[Any]) -> Any:
    """As they would be after writing and reading; numbers survive that exactly."""
    return json.loads(json.dumps(effects))


def _tell(logged: LoggedEvent, effects: list[Any], console: Console) -> None:
    console.print(f"different from line {logged.line} on, at {logged.now_s!r} s")
    for title, what in (
        ("event", event_to_json(logged.event)),
        ("logged", logged.effects),
        ("replayed", effects),
    ):
        text = json.dumps(what)
        shown = text if len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT]}..."
        console.print(f"{title}: {shown}", markup=False, highlight=False, soft_wrap=True)
