"""Events and effects of the controller as JSON, and events back.

An event is written whole. In an effect a request stands as its id: the event that brought it
has the rest.
"""

from __future__ import annotations

import base64
import types
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache
from typing import Any, Union, get_args, get_origin, get_type_hints

from headway.core import events
from headway.core.effects import Effect
from headway.core.events import Event
from headway.core.request import RequestSpec

_EVENTS: Mapping[str, type] = {kind.__name__: kind for kind in get_args(events.Event)}


def event_to_json(event: Event) -> list[Any]:
    """`[name, fields]`."""
    return [type(event).__name__, _encode(event, _whole)]


def effects_to_json(effects: list[Effect]) -> list[list[Any]]:
    """`[name, fields]` of each."""
    return [[type(effect).__name__, _encode(effect, _request_by_id)] for effect in effects]


def event_from_json(data: Any) -> Event:
    """Raises ValueError for what `event_to_json` did not write."""
    try:
        name, values = data
        event: Event = _decode(_EVENTS[name], values)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"no event: {error!r}") from error
    return event


def _whole(value: Any) -> Any:
    return {field.name: _encode(getattr(value, field.name), _whole) for field in fields(value)}


def _request_by_id(value: Any) -> Any:
    if isinstance(value, RequestSpec):
        return value.request_id
    return {
        field.name: _encode(getattr(value, field.name), _request_by_id) for field in fields(value)
    }


def _encode(value: Any, dataclass_to_json: Callable[[Any], Any]) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, tuple):
        return [_encode(item, dataclass_to_json) for item in value]
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    if is_dataclass(value):
        return dataclass_to_json(value)
    return value


@cache
def _types_of(kind: type) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind)}


def _decode(kind: Any, data: Any) -> Any:  # noqa: PLR0911 - one for each kind of type
    """Raises KeyError, TypeError or ValueError where the data is not of this type."""
    origin = get_origin(kind)
    if origin in {Union, types.UnionType}:
        if data is None and type(None) in get_args(kind):
            return None
        (kind,) = (option for option in get_args(kind) if option is not type(None))
        return _decode(kind, data)
    if origin is tuple:
        item_kind, _ = get_args(kind)
        return tuple(_decode(item_kind, item) for item in _checked(list, data))
    if is_dataclass(kind):
        hints = _types_of(kind)  # type: ignore[arg-type]
        values = _checked(dict, data)
        if values.keys() != hints.keys():
            raise ValueError(f"{sorted(values.keys() ^ hints.keys())} in a {kind}")
        return kind(**{name: _decode(hint, values[name]) for name, hint in hints.items()})  # type: ignore[operator]
    if issubclass(kind, Enum):
        return kind(data)
    if kind is bytes:
        return base64.b64decode(_checked(str, data), validate=True)
    if kind is float:
        return float(data) if isinstance(data, int) else _checked(float, data)
    return _checked(kind, data)


def _checked(kind: type, data: Any) -> Any:
    if type(data) is not kind:
        raise TypeError(f"{data!r} is no {kind.__name__}")
    return data
