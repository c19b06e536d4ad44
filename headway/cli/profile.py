"""`headway profile`: measures a real engine's steps, and how well a perf model tells them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from headway.adapters.profile_file import write_profile
from headway.adapters.vllm_profile.engine import NUM_STEPS, EngineFacts, SteppedEngine
from headway.adapters.vllm_profile.measure import NUM_REPEATS, Repeats, measure, spread
from headway.config import Config, VllmConfig, load_config
from headway.core.batch_state import Floats
from headway.core.perf_fit import FittedModel, StepSample, fit, median_sample, predicted_s
from headway.core.step_design import StepPoint, design
from headway.errors import ConfigError
from headway.profiles import DraftConfig, MeasurementConfig, Profile, load_full_profile

# Of the points that the model is fitted to.
_HELD_OUT_RATIO = 0.5
_NUM_CHECK_POINTS = 12
# What is believed of a model before its first step (core.residual) is worth so much: beyond it
# the first promises are made on wrong times.
_MEDIAN_LIMITS = (0.8, 1.25)
_MAX_P90_ERROR_RATIO = 0.25
# A fit that is worse is worth a warning.
_GOOD_R2, _GOOD_P90_ERROR_RATIO = 0.95, 0.15


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a profile compares with steps measured now.

    Attributes:
        median_ratio: measured / predicted time.
        p90_error_ratio: of |ratio / median - 1|, what is left when all steps are scaled alike.
    """

    num_steps: int
    median_ratio: float
    p90_error_ratio: float

    @property
    def fits(self) -> bool:
        """Whether promises made from the profile would be right from the first on."""
        least, most = _MEDIAN_LIMITS
        return least <= self.median_ratio <= most and self.p90_error_ratio <= _MAX_P90_ERROR_RATIO


class ProfileCommand:
    """Measures the engine of one deployment."""

    def __init__(self, config_path: Path, *, max_drafted: int, seed: int, console: Console) -> None:
        """Read the deployment.

        Raises:
            ConfigError: it is wrong, or has no real engine.
        """
        self._config = load_config(config_path)
        self._engine = _vllm_engine(self._config, config_path)
        self._max_drafted = max_drafted
        self._seed = seed
        self._console = console
        drafts = f" --drafts {max_drafted}" if max_drafted else ""
        self._command = f"headway profile --config {config_path}{drafts}"

    def measure(self, num_points: int, out: Path) -> Profile:
        """Measure, fit, and write the profile, with a plot beside it.

        Raises:
            ConfigError: the engine cannot run as configured, or its steps tell nothing.
            EngineFailed: it did not run.
        """
        counts = (num_points, round(_HELD_OUT_RATIO * num_points))
        measured, facts = self._measure(counts)
        # Before all else: they took the time.
        _write_steps(measured, out.with_suffix(".steps.jsonl"))
        fitted, held_out = ([median_sample(steps) for steps in part] for part in measured)
        p50_spread = float(np.median([spread(steps) for part in measured for steps in part]))
        try:
            model = fit(fitted, held_out)
        except ValueError as error:
            raise ConfigError(f"no model can be fitted to these steps: {error}") from error
        command = f"{self._command} --points {num_points} --seed {self._seed} --out {out}"
        profile = _profile(self._config, facts, model, p50_spread, command)
        write_profile(profile, out)
        self._say(_summary(model))
        if model.r2 < _GOOD_R2 or model.p90_error_ratio > _GOOD_P90_ERROR_RATIO:
            self._say(
                f"That is a poor fit. Steps of one shape differed by {p50_spread:.0%} (median); "
                "much more than 10 % means that the machine was busy with something else"
            )
        plotted = self._plot(profile, held_out, out.with_suffix(".svg"))
        beside = ".steps.jsonl and .svg" if plotted else ".steps.jsonl"
        self._say(f"written to {out}, with {beside} beside it")
        return profile

    def check(self) -> Verdict:
        """Measure some steps, and say whether the deployment's profile tells them.

        Raises:
            ConfigError: the engine cannot run as configured.
            EngineFailed: it did not run.
        """
        path = Path(self._engine.profile)
        profile = load_full_profile(path)
        (measured,), _ = self._measure((_NUM_CHECK_POINTS,))
        verdict = judge(profile, [median_sample(steps) for steps in measured])
        self._say(
            f"{verdict.num_steps} steps: measured / predicted is {verdict.median_ratio:.2f} "
            f"(median), and {100 * verdict.p90_error_ratio:.0f} % off from that at p90"
        )
        if verdict.fits:
            self._say(f"{path} fits this machine")
        else:
            self._say(
                f"{path} does not fit this machine: {_what_is_wrong(verdict)}. If nothing else "
                f"is running here, measure it anew with `{self._command} --out FILE` and name "
                "FILE as engine.profile"
            )
        return verdict

    def _measure(self, counts: Sequence[int]) -> tuple[list[list[Repeats]], EngineFacts]:
        """Measure that many points of designs of their own."""
        self._say(f"starting vLLM with {self._config.model.name}")
        with SteppedEngine(self._config, self._max_drafted) as engine:
            designs = [
                design(engine.limits, count, NUM_STEPS, np.random.default_rng((self._seed, number)))
                for number, count in enumerate(counts)
            ]
            measured = iter(self._run(engine, [point for points in designs for point in points]))
        return [
            [steps for steps in islice(measured, len(points)) if steps] for points in designs
        ], engine.facts

    def _run(self, engine: SteppedEngine, points: Sequence[StepPoint]) -> list[Repeats]:
        """Measure with a progress bar."""
        columns = (
            TextColumn("measuring"),
            BarColumn(),
            TextColumn("{task.completed:.0f} of {task.total:.0f} steps"),
            TimeRemainingColumn(),
        )
        with Progress(
            *columns,
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        ) as progress:
            task = progress.add_task("measuring", total=None)
            return measure(
                engine,
                points,
                np.random.default_rng(self._seed),
                lambda num_made, total: progress.update(task, completed=num_made, total=total),
            )

    def _plot(self, profile: Profile, steps: Sequence[StepSample], path: Path) -> bool:
        try:
            from headway.cli.profile_plot import plot  # noqa: PLC0415  # matplotlib is an extra
        except ImportError:
            self._say("no plot: it needs the extra headway[sim]")
            return False
        assert profile.measurement is not None
        title = f"{profile.measurement.model}, {profile.measurement.dtype}"
        plot(steps, _predicted_s(profile, steps), path, title)
        return True

    def _say(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)


def judge(profile: Profile, steps: Sequence[StepSample]) -> Verdict:
    """Compare a profile with measured steps."""
    ratios = np.array([step.duration_s for step in steps]) / _predicted_s(profile, steps)
    median = float(np.median(ratios))
    errors = np.abs(ratios / median - 1.0)
    return Verdict(len(steps), median, float(np.quantile(errors, 0.9)))


def _write_steps(measured: Sequence[Sequence[Repeats]], path: Path) -> None:
    """One line for each point, so that anybody can fit them again."""
    lines = [
        json.dumps(
            {"held_out": number > 0}
            | asdict(steps[0])
            | {"duration_s": [round(step.duration_s, 6) for step in steps]}
        )
        for number, points in enumerate(measured)
        for steps in points
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _predicted_s(profile: Profile, steps: Sequence[StepSample]) -> Floats:
    draft = profile.draft or DraftConfig(floor_s=0.0, sequence_s=0.0)
    return predicted_s(profile.perf_model, draft.floor_s, draft.sequence_s, steps)


def _vllm_engine(config: Config, path: Path) -> VllmConfig:
    if not isinstance(config.engine, VllmConfig):
        raise ConfigError(f"{path}: only an engine of kind vllm has steps to measure")
    return config.engine


def _what_is_wrong(verdict: Verdict) -> str:
    least, most = _MEDIAN_LIMITS
    if verdict.p90_error_ratio > _MAX_P90_ERROR_RATIO:
        return "steps of different shapes are off by different ratios"
    if verdict.median_ratio > most:
        return f"steps take {verdict.median_ratio:.2f} times as long as it says"
    assert verdict.median_ratio < least
    return f"steps take only {verdict.median_ratio:.2f} of the time that it says"


def _profile(
    config: Config, facts: EngineFacts, model: FittedModel, p50_spread: float, command: str
) -> Profile:
    with_drafts = facts.max_drafted > 0
    speculation = ", with n-gram speculation" if with_drafts else ""
    return Profile(
        source=(
            f"{model.num_fitted} steps of vLLM {facts.vllm_version}{speculation}, each the median "
            f"of {NUM_REPEATS} or more, timed inside the engine from schedule to output; "
            "non-negative least squares of the relative error. On "
            f"{model.num_held_out} other steps: R2 {model.r2:.3f}, absolute error: mean "
            f"{model.mean_error_ratio:.1%}, 90th percentile {model.p90_error_ratio:.1%}."
        ),
        measured_on=facts.device,
        perf_model=model.perf_model,
        draft=(
            DraftConfig(floor_s=model.draft_floor_s, sequence_s=model.draft_sequence_s)
            if with_drafts
            else None
        ),
        measurement=MeasurementConfig(
            date=datetime.now(UTC).date().isoformat(),
            command=command,
            model=config.model.name,
            dtype=facts.dtype,
            vllm=facts.vllm_version,
            torch=facts.torch_version,
            num_cores=facts.num_cores,
            num_fitted=model.num_fitted,
            num_held_out=model.num_held_out,
            p50_spread_ratio=p50_spread,
            r2=model.r2,
            mean_error_ratio=model.mean_error_ratio,
            p50_error_ratio=model.p50_error_ratio,
            p90_error_ratio=model.p90_error_ratio,
            p99_error_ratio=model.p99_error_ratio,
        ),
    )


def _summary(model: FittedModel) -> str:
    return (
        f"{model.num_fitted} steps fitted. On {model.num_held_out} others: R2 {model.r2:.4f}, "
        f"error p50 {model.p50_error_ratio:.1%}, p90 {model.p90_error_ratio:.1%}, "
        f"p99 {model.p99_error_ratio:.1%}"
    )
