"""Reads TOML files into pydantic models that refuse what they do not know."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from headway.errors import ConfigError

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
RootT = TypeVar("RootT", bound=BaseModel)


class Section(BaseModel):
    """A table; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def read_toml(path: Path, root: type[RootT]) -> RootT:
    """Read a TOML file into `root`.

    Raises:
        ConfigError: one line for each thing wrong, with the key's path.
    """
    try:
        return root.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: {error}") from error
    except ValidationError as error:
        lines = [
            f"{path}: {'.'.join(str(part) for part in e['loc']) or '(file)'}: {e['msg']}"
            for e in error.errors()
        ]
        raise ConfigError("\n".join(lines)) from error
