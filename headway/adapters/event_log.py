"""The event log: everything that happened to a controller, and what it did about it.

A file of JSON lines. The first one holds the controller's config, each other one
`{"now_s", "event", "effects"}`. A controller is deterministic: one that is built from the same
config and given the same events at the same times has the same effects.
"""

from __future__ import annotations

import json
import logging
import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from pydantic import ValidationError

from headway.adapters.event_codec import effects_to_json, event_from_json, event_to_json
from headway.config import ControllerConfig
from headway.core.effects import Effect
from headway.core.events import Event
from headway.errors import ConfigError

_log = logging.getLogger(__name__)

FORMAT = 1
# Events that wait for the disk; beyond it the log ends rather than eat the memory.
_MAX_WAITING = 100_000

_Entry = tuple[Event, float, list[Effect]]


class EventLog:
    """Writes in a thread of its own. Where that fails the log ends, and serving goes on."""

    def __init__(self, file: TextIO) -> None:
        """Args: file: open; holds the first line already."""
        self._file = file
        self._entries: queue.SimpleQueue[_Entry | None] = queue.SimpleQueue()
        self._failed = False
        self._thread = threading.Thread(target=self._write_all, name="event-log", daemon=True)
        self._thread.start()

    def add(self, event: Event, now_s: float, effects: list[Effect]) -> None:
        """Log one call of `Controller.handle`; never waits."""
        if self._failed:
            return
        if self._entries.qsize() >= _MAX_WAITING:
            self._failed = True
            _log.error("the event log ends here: the disk is too slow for it")
            return
        self._entries.put((event, now_s, effects))

    def close(self) -> None:
        """Write what is left."""
        self._entries.put(None)
        self._thread.join()

    def _write_all(self) -> None:
        try:
            with self._file:
                while (entry := self._entries.get()) is not None:
                    self._file.write(_line(*entry))
                    if self._entries.empty():
                        self._file.flush()
        except (OSError, ValueError):
            self._failed = True
            _log.exception("the event log ends here")


def open_event_log(config: ControllerConfig) -> EventLog | None:
    """The log that the config asks for; None if it asks for none.

    Raises:
        ConfigError: the file cannot be written.
    """
    if not config.event_log:
        return None
    path = Path(config.event_log)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w", encoding="utf-8")
        header = {"headway_event_log": FORMAT, "controller": config.model_dump(mode="json")}
        file.write(json.dumps(header) + "\n")
    except OSError as error:
        raise ConfigError(f"controller.event_log: {error}") from error
    return EventLog(file)


def _line(event: Event, now_s: float, effects: list[Effect]) -> str:
    entry = {"now_s": now_s, "event": event_to_json(event), "effects": effects_to_json(effects)}
    return json.dumps(entry, separators=(",", ":")) + "\n"


@dataclass(frozen=True, slots=True)
class LoggedEvent:
    """`line`: its number in the file, from 1. `effects`: as `event_codec.effects_to_json`."""

    line: int
    now_s: float
    event: Event
    effects: list[Any]


@dataclass(frozen=True, slots=True)
class RecordedEvents:
    """An event log that is being read."""

    config: ControllerConfig
    events: Iterator[LoggedEvent]


def read_event_log(path: Path, file: TextIO) -> RecordedEvents:
    """Read a log.

    Args:
        path: of the file, for messages.
        file: open, at its beginning; the events are read from it as they are asked for.

    Raises:
        ConfigError: a line is not what was written, or was not written whole; also while the
            events are asked for.
    """
    try:
        header = json.loads(file.readline())
        if header["headway_event_log"] != FORMAT:
            raise ConfigError(f"{path}: written in format {header['headway_event_log']}")
        config = ControllerConfig.model_validate(header["controller"])
    except (ValueError, KeyError, TypeError, ValidationError) as error:
        raise ConfigError(f"{path}: line 1: not an event log: {error}") from error
    return RecordedEvents(config, _events(path, file))


def _events(path: Path, file: TextIO) -> Iterator[LoggedEvent]:
    for line, text in enumerate(file, start=2):
        try:
            entry = json.loads(text)
            now_s, effects = entry["now_s"], entry["effects"]
            if not isinstance(now_s, float) or not isinstance(effects, list):
                raise TypeError("now_s or effects is of another type")  # noqa: TRY301
            event = event_from_json(entry["event"])
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{path}: line {line}: {error}") from error
        yield LoggedEvent(line, now_s, event, effects)
