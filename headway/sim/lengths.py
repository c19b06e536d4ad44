"""How long prompts and outputs are: laws fitted to public traces, drawn by the session.

A law is a table of quantiles for each quantity and, for two that belong together, a grid that
says how often a rank of the one meets a rank of the other. Everything is drawn from uniform
numbers by table look-up, so a session depends on its row of uniforms and on nothing else.

The tables are in `data/`, each with its source; `python -m bench.derive_lengths` makes them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np

from headway.core.batch_state import Floats, Ints

# Text in front of the tool schema. The recorded sessions' first prompts are about so much longer
# than the schemas and queries of the 600 tasks.
NUM_SYSTEM_TOKENS = 600
# How long a tool takes is recorded nowhere; these are assumed, of the order of an HTTP API.
TOOL_FLOOR_S = 0.2
TOOL_MEAN_EXTRA_S = 0.5


@dataclass(frozen=True, slots=True)
class Quantiles:
    """One quantity's distribution: `value[i]` is its quantile at `probability[i]`."""

    probability: Floats
    value: Floats

    def at(self, rank: Floats) -> Floats:
        """Values at these ranks, each in [0, 1)."""
        return np.interp(rank, self.probability, self.value)


@dataclass(frozen=True, slots=True)
class Joint:
    """Two quantities that belong together: a checkerboard copula over their quantiles.

    Attributes:
        grid: K x K; how often rank i/K of the first meets rank j/K of the second.
    """

    first: Quantiles
    second: Quantiles
    grid: Floats

    def cells(self, uniform: Floats) -> tuple[Ints, Ints]:
        """Row and column of a cell of the grid for each uniform; as often as the grid says."""
        cumulative = np.cumsum(self.grid)
        cell = np.searchsorted(cumulative / cumulative[-1], uniform, side="right")
        row, column = np.divmod(cell, len(self.grid))
        return row, column

    def at(self, uniforms: Floats) -> tuple[Floats, Floats]:
        """Both, of shape [N], from uniforms of shape [N, 3]: the cell, and the place in it."""
        row, column = self.cells(uniforms[:, 0])
        return (
            self.first.at((row + uniforms[:, 1]) / len(self.grid)),
            self.second.at((column + uniforms[:, 2]) / len(self.grid)),
        )


@dataclass(frozen=True, slots=True)
class Sessions:
    """S sessions of up to R rounds; arrays of shape [S, R], where rounds not held are 0.

    Attributes:
        num_rounds: of shape [S]; at least 1.
        gap_s: from the end of the round before to this one.
    """

    num_rounds: Ints
    num_prompt_tokens: Ints
    num_output_tokens: Ints
    num_thinking_tokens: Ints
    num_prefix_tokens: Ints
    gap_s: Floats

    def __len__(self) -> int:
        return len(self.num_rounds)

    @property
    def held(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Which of the [S, R] rounds there are."""
        return np.arange(self.num_prompt_tokens.shape[1]) < self.num_rounds[:, None]

    @property
    def max_total_tokens(self) -> Ints:
        """Of shape [S]: prompt and output of the session's longest round."""
        longest: Ints = (self.num_prompt_tokens + self.num_output_tokens).max(axis=1)
        return longest

    def select(self, index: Any) -> Sessions:
        """These sessions only."""
        return Sessions(*(getattr(self, name)[index] for name in self.__dataclass_fields__))


def tokens(value: Floats) -> Ints:
    """Whole tokens, at least one."""
    whole: Ints = np.maximum(np.rint(value), 1).astype(np.int64)
    return whole


@cache
def load(name: str) -> dict[str, Any]:
    """The file `data/<name>.json`, with `Quantiles` and grids still as lists."""
    text = (files("headway.sim") / "data" / f"{name}.json").read_text(encoding="utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def quantiles(table: dict[str, list[float]]) -> Quantiles:
    """A table as it stands in a data file."""
    return Quantiles(np.array(table["p"]), np.array(table["q"]))


@dataclass(frozen=True, slots=True)
class Law:
    """Draws sessions: `draw` makes S of them from uniforms of shape [S, num_uniforms]."""

    num_uniforms: int
    draw: Callable[[Floats], Sessions]


def one_round(num_prompt_tokens: Ints, num_output_tokens: Ints, thinking: Ints) -> Sessions:
    """Sessions of one request each, from three arrays of shape [S]."""
    none = np.zeros((len(num_prompt_tokens), 1), dtype=np.int64)
    return Sessions(
        num_rounds=np.ones(len(num_prompt_tokens), dtype=np.int64),
        num_prompt_tokens=num_prompt_tokens[:, None],
        num_output_tokens=num_output_tokens[:, None],
        num_thinking_tokens=thinking[:, None],
        num_prefix_tokens=none,
        gap_s=none.astype(np.float64),
    )


def joint_of(data: dict[str, Any], first: str, second: str) -> Joint:
    """Two tables of a data file with the grid between them."""
    return Joint(quantiles(data[first]), quantiles(data[second]), np.array(data["grid"]))


@cache
def plain(name: str) -> Law:
    """One prompt and one output, for example of `azure-chat`."""
    joint = joint_of(load(name), "prompt", "output")

    def draw(uniforms: Floats) -> Sessions:
        prompt, output = (tokens(value) for value in joint.at(uniforms))
        return one_round(prompt, output, np.zeros_like(prompt))

    return Law(3, draw)


@cache
def thinking(name: str) -> Law:
    """One prompt and one output of which a first share is thinking: `servegen-r1`.

    The share depends on the prompt through the output only. Both stages have a token at least.
    """
    data = load(name)
    joint = joint_of(data, "prompt", "output")
    share_law = quantiles(data["thinking_share"])
    # Row: rank of the output. Rows sum to 1, so that a row is the share's law given the output.
    share_grid = np.cumsum(np.array(data["thinking_grid"], dtype=np.float64), axis=1)
    share_grid /= share_grid[:, -1:]

    def draw(uniforms: Floats) -> Sessions:
        num_cells = len(joint.grid)
        prompt, output = joint.at(uniforms[:, :3])
        _, output_rank = joint.cells(uniforms[:, 0])
        column = (share_grid[output_rank] <= uniforms[:, 3:4]).sum(axis=1)
        share = share_law.at((column + uniforms[:, 4]) / num_cells)
        num_output_tokens = np.maximum(tokens(output), 2)
        num_thinking = np.minimum(tokens(share * num_output_tokens), num_output_tokens - 1)
        return one_round(tokens(prompt), num_output_tokens, num_thinking)

    return Law(5, draw)


@cache
def tool_loop(name: str) -> Law:
    """Rounds of tool calls and a final answer: `toolbench`.

    A round's prompt is the round before's prompt and output and what the tool returned. All of
    that prompt and output but the last token, which is never fed back, has KV already.
    """
    data = load(name)
    schema, query, call, answer, growth = (
        quantiles(data[key]) for key in ("schema", "query", "call", "answer", "growth")
    )
    rounds_at_most = np.cumsum(data["rounds"])
    num_max = len(rounds_at_most)

    def draw(uniforms: Floats) -> Sessions:
        num_sessions = len(uniforms)
        per_round = uniforms[:, 3:].reshape(num_sessions, num_max, 3)
        below = np.searchsorted(rounds_at_most, uniforms[:, 0] * rounds_at_most[-1], side="right")
        num_rounds = (below + 1).astype(np.int64)
        number = np.arange(num_max)
        held = number < num_rounds[:, None]
        is_answer = number == num_rounds[:, None] - 1
        output = np.where(
            is_answer, tokens(answer.at(per_round[..., 0])), tokens(call.at(per_round[..., 0]))
        )
        first = NUM_SYSTEM_TOKENS + tokens(schema.at(uniforms[:, 1]) + query.at(uniforms[:, 2]))
        grown = output[:, :-1] + tokens(growth.at(per_round[:, 1:, 1]))
        prompt = first[:, None] + np.pad(np.cumsum(grown, axis=1), ((0, 0), (1, 0)))
        prefix = np.pad((prompt + output)[:, :-1] - 1, ((0, 0), (1, 0)))
        gap_s = TOOL_FLOOR_S - TOOL_MEAN_EXTRA_S * np.log1p(-per_round[..., 2])
        return Sessions(
            num_rounds=num_rounds,
            num_prompt_tokens=prompt * held,
            num_output_tokens=output * held,
            num_thinking_tokens=np.zeros_like(prompt),
            num_prefix_tokens=prefix * held,
            gap_s=gap_s * (held & (number > 0)),
        )

    return Law(3 + 3 * num_max, draw)
