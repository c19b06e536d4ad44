"""The subcommands of `headway`. Each loads what it needs only when it runs."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from headway.adapters.model_files import MODEL_NAME
from headway.profiles import load_profile

if TYPE_CHECKING:
    from headway.cli.workload import PlannedRequest

DEFAULT_ADDRESS = "127.0.0.1:7400"

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Serve one language model to many applications, with a latency promise to each.",
)
Address = Annotated[str, typer.Option(help="Of the controller, host:port.")]


@app.command()
def chat(
    question: Annotated[
        str | None, typer.Argument(help="Ask this and exit; without it, talk.")
    ] = None,
    *,
    address: Address = DEFAULT_ADDRESS,
    tier: Annotated[str, typer.Option(help="Promise to ask for.")] = "chat",
    max_tokens: Annotated[int, typer.Option(help="Longest answer.", min=1)] = 256,
    temperature: Annotated[float, typer.Option(help="0 always takes the likeliest token.")] = 0.0,
    refuse: Annotated[
        bool, typer.Option("--refuse", help="No answer rather than one without a promise.")
    ] = False,
) -> None:
    """Talk to the model, and see what was promised and what came of it."""
    from headway.cli.chat import Chat  # noqa: PLC0415  # keeps --help fast

    Chat(address, tier=tier, max_tokens=max_tokens, temperature=temperature, refuse=refuse).run(
        question
    )


@app.command()
def bench(
    *,
    address: Address = DEFAULT_ADDRESS,
    workload: Annotated[
        Path | None, typer.Option(help="What to ask for; see configs/workloads/.")
    ] = None,
    trace: Annotated[
        Path | None, typer.Option(help="Replay an Azure LLM trace instead, .csv or .csv.gz.")
    ] = None,
    rate: Annotated[float, typer.Option(help="Requests per second of a workload.")] = 1.0,
    duration_s: Annotated[
        float | None, typer.Option(help="Send for so long. 30 unless --requests is given.")
    ] = None,
    requests: Annotated[int | None, typer.Option(help="Send so many.", min=1)] = None,
    seed: Annotated[int, typer.Option(help="Same seed, same load.")] = 0,
    tier: Annotated[str, typer.Option(help="Of every request of a trace.")] = "",
    time_scale: Annotated[float, typer.Option(help="2 replays a trace twice as fast.")] = 1.0,
    connections: Annotated[int, typer.Option(help="Connections to the controller.", min=1)] = 4,
    against: Annotated[
        list[str] | None,
        typer.Option(help="URL of a plain `vllm serve` to compare with; several take turns."),
    ] = None,
    rounds: Annotated[int, typer.Option(help="Of a comparison.", min=1)] = 3,
    profile: Annotated[
        Path | None, typer.Option(help="For a comparison with tiers that bound the slow-down.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write the results here as JSON.")] = None,
) -> None:
    """Send an open-loop load and report, tier by tier, which promises were kept."""
    from headway.cli.bench import Bench, planned_requests  # noqa: PLC0415  # keeps --help fast

    if (workload is None) == (trace is None):
        raise typer.BadParameter("give --workload FILE.toml or --trace FILE.csv")
    if rate <= 0 or time_scale <= 0:
        raise typer.BadParameter("--rate and --time-scale must be above 0")

    def planned(number: int) -> Iterable[PlannedRequest]:
        return planned_requests(
            workload,
            trace,
            rate_per_s=rate,
            time_scale=time_scale,
            tier=tier,
            seed=seed + number,
            end_s=30.0 if duration_s is None and requests is None else duration_s,
            num_requests=requests,
        )

    if against:
        from headway.cli.against import Against  # noqa: PLC0415

        model = load_profile(profile) if profile is not None else None
        comparison = Against(address, against, connections=connections, profile=model)
        comparison.run([list(planned(number)) for number in range(rounds)], seed, out)
        return
    bench = Bench(address, connections, seed)
    if not bench.run(planned(0), title=str(workload or trace), out=out):
        raise typer.Exit(130)


@app.command()
def verify(
    *,
    address: Address = DEFAULT_ADDRESS,
    mix: Annotated[Path, typer.Option(help="What to ask for; see configs/workloads/.")] = Path(
        "configs/workloads/mixed.toml"
    ),
    rate: Annotated[float, typer.Option(help="Requests per second.")] = 0.5,
    duration_s: Annotated[float, typer.Option(help="Send for so long.")] = 60.0,
    seed: Annotated[int, typer.Option(help="Same seed, same load.")] = 0,
    attainment: Annotated[
        float, typer.Option(help="Share of each tier's promises to be kept.", min=0.0, max=1.0)
    ] = 0.99,
    json: Annotated[Path | None, typer.Option(help="Write the results here as JSON.")] = None,
    junit: Annotated[
        Path | None, typer.Option(help="Write the checks here as JUnit XML, for CI.")
    ] = None,
) -> None:
    """Check that a running stack keeps its promises and the API's rules; exit status 1 if not."""
    from headway.cli.verify import DeclaredLoad, Verify  # noqa: PLC0415  # keeps --help fast

    if rate <= 0 or duration_s <= 0:
        raise typer.BadParameter("--rate and --duration-s must be above 0")
    load = DeclaredLoad(mix, rate, duration_s, seed)
    if not Verify(address, load, attainment).run(json, junit):
        raise typer.Exit(1)


@app.command()
def model(
    path: Annotated[Path, typer.Argument(help="Folder to write it to.")] = Path("models")
    / MODEL_NAME,
) -> None:
    """Make the demo's model ready: SmolLM2-135M-Instruct, from an installed package."""
    from headway.cli.model import prepare  # noqa: PLC0415  # keeps --help fast

    prepare(path, Console())


@app.command()
def demo(
    config: Annotated[Path, typer.Option(help="Deployment to start.")] = Path("configs/local.toml"),
    workload: Annotated[Path, typer.Option(help="Load to send.")] = Path(
        "configs/workloads/mixed.toml"
    ),
    out: Annotated[Path, typer.Option(help="Write the results here as JSON.")] = Path(
        "out/demo.json"
    ),
) -> None:
    """Start real engines, keep promises under load, and check the output against plain vLLM."""
    from headway.cli.demo import Demo  # noqa: PLC0415  # keeps --help fast

    if not Demo(config, workload, out).run():
        raise typer.Exit(1)


@app.command()
def profile(
    *,
    config: Annotated[
        Path, typer.Option(help="Deployment whose engine is measured; stop the stack first.")
    ] = Path("configs/local.toml"),
    out: Annotated[
        Path, typer.Option(help="Write the profile here; a plot goes beside it.")
    ] = Path("out/profile.toml"),
    points: Annotated[
        int, typer.Option(help="Steps to fit to; half as many more check the fit.", min=30)
    ] = 60,
    drafts: Annotated[
        int, typer.Option(help="Longest draft of n-gram speculation; 0 for none.", min=0)
    ] = 0,
    seed: Annotated[int, typer.Option(help="Same seed, same steps.", min=0)] = 0,
    check: Annotated[
        bool, typer.Option("--check", help="Only say whether engine.profile fits this machine.")
    ] = False,
) -> None:
    """Measure how long the steps of a real engine take, and fit what the planner predicts by."""
    from headway.cli.profile import ProfileCommand  # noqa: PLC0415  # keeps --help fast

    if out.suffix != ".toml":
        raise typer.BadParameter("--out must end in .toml")
    command = ProfileCommand(
        config, max_drafted=drafts, seed=seed, console=Console(highlight=False)
    )
    if not check:
        command.measure(points, out)
    elif not command.check().fits:
        raise typer.Exit(1)


@app.command()
def simulate(
    *,
    config: Annotated[
        Path | None, typer.Option(help="A cluster and its load; see configs/simulate/.")
    ] = None,
    scenario: Annotated[str | None, typer.Option(help="What is asked; `list` names them.")] = None,
    policy: Annotated[str | None, typer.Option(help="Who decides; `list` names them.")] = None,
    gpus: Annotated[int | None, typer.Option(help="Of all workers together.")] = None,
    rate: Annotated[float | None, typer.Option(help="Requests per second.")] = None,
    rates: Annotated[str | None, typer.Option(help="Several of them, as in 2,4,8.")] = None,
    seed: Annotated[int | None, typer.Option(help="Same seed, same run.")] = None,
    duration_s: Annotated[float | None, typer.Option(help="Requests come for so long.")] = None,
    arrivals: Annotated[
        str | None, typer.Option(help="poisson, azure-chat, azure-code or trace.")
    ] = None,
    trace: Annotated[
        Path | None, typer.Option(help="Replay its arrivals: an Azure LLM trace, .csv[.gz].")
    ] = None,
    profile: Annotated[Path | None, typer.Option(help="Of model and device; profiles/.")] = None,
    roles: Annotated[
        str | None, typer.Option(help="colocated; P:D prefill and decode workers; or C+P:D.")
    ] = None,
    lengths: Annotated[
        str | None, typer.Option(help="known or unknown: whether policies see output lengths.")
    ] = None,
    token_budget: Annotated[int | None, typer.Option(help="Of a baseline's steps.")] = None,
    exact: Annotated[
        bool | None, typer.Option("--exact", help="Steps take just the predicted time.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the logs, the results and a report.")
    ] = None,
) -> None:
    """Run a policy on a simulated cluster in virtual time, and score it. Repeatable."""
    from headway.cli import simulate as command  # noqa: PLC0415  # keeps --help fast

    console = Console(highlight=False)
    for what, name in (("policy", policy), ("scenario", scenario)):
        if name == "list":
            command.print_names(what, console)
            return
    if rate is not None and rates is not None:
        raise typer.BadParameter("give --rate or --rates")
    options = {
        "scenario": scenario,
        "policy": policy,
        "gpus": gpus,
        "rates": (rate,) if rate is not None else rates and command.parse_rates(rates),
        "seed": seed,
        "duration_s": duration_s,
        "arrivals": arrivals or ("trace" if trace else None),
        "trace": trace and str(trace),
        "profile": profile and str(profile),
        "roles": roles,
        "lengths": lengths,
        "token_budget": token_budget,
        "exact": exact,
    }
    command.Simulate(command.choose(config, options), console).run(out)


@app.command()
def explain(
    *,
    run: Annotated[Path, typer.Option(help="Folder that `simulate --out` wrote.")],
    request: Annotated[int, typer.Option(help="Its number in requests.jsonl.", min=0)],
) -> None:
    """Tell why a request of a simulated run was promised or not, and what would have fitted."""
    from headway.cli.explain import explain as command  # noqa: PLC0415  # keeps --help fast

    command(run, request, Console(highlight=False))


@app.command()
def replay(
    log: Annotated[Path, typer.Argument(help="A file that `controller.event_log` named.")],
) -> None:
    """Re-run what a controller was told, and check that it would do the same again."""
    from headway.cli.replay import replay as command  # noqa: PLC0415  # keeps --help fast

    if not command(log, Console()):
        raise typer.Exit(1)
