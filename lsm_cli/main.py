"""The command line: one short function per command; the heavy imports happen inside it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from lsm_cli import __version__
from lsm_cli.data.synth.worlds import WORLDS
from lsm_cli.errors import InputError, LsmError

app = typer.Typer(
    name="lsm",
    help="Long user-behaviour sequence modelling for advertising: from raw logs to a trained and tested ranking model.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich help would cost three times the start-up
    context_settings={"help_option_names": ["-h", "--help"]},
)
recipes_app = typer.Typer(help="List, show, copy and check recipes.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(recipes_app, name="recipes")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else there.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No decisions and no progress.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Data = Annotated[Path, typer.Option("--data", help="Store made by `lsm build-sequences`.", show_default=False)]
RecipeName = Annotated[
    str, typer.Option("--recipe", "-r", help="Shipped recipe (`lsm recipes ls`) or a TOML file.", show_default=False)
]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Recipe options as key=value, such as model.layers=3.", show_default=False)
]


def _run(work: Callable[[Any], dict[str, Any]], json: bool, quiet: bool, debug: bool) -> None:
    """Run one command; turn its outcome into output and exit code."""
    from lsm_cli.report.console import Console

    console = Console(json=json, quiet=quiet)
    try:
        console.result(work(console))
    except LsmError as error:
        if debug:
            raise
        for line in str(error).splitlines():
            console.error(line)
        raise typer.Exit(error.exit_code) from None
    except KeyboardInterrupt:
        console.error("stopped")
        raise typer.Exit(130) from None
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(1) from None
    except Exception as error:
        if debug:
            raise
        console.error(
            f"{type(error).__name__}: {error} (this is a fault of lsm or of the machine; --debug shows where)"
        )
        raise typer.Exit(1) from None


@app.command("build-sequences")
def build_sequences(
    dataset: Annotated[
        str | None, typer.Argument(help="Dataset description (TOML), or the name of a shipped one.", show_default=False)
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder of the new store.", show_default=False)
    ] = None,
    root: Annotated[
        Path | None, typer.Option(help="Folder that the description's paths start from.", show_default="its own folder")
    ] = None,
    memory: Annotated[str, typer.Option(help="Memory to stay within.")] = "2GiB",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing store.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Only read the head of each file and show every column.")
    ] = False,
    no_index: Annotated[bool, typer.Option("--no-index", help="Leave out the orders that searches go by.")] = False,
    index_only: Annotated[
        bool, typer.Option("--index-only", help="Add these orders to the existing store --out; reads no logs.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Turn raw logs into a store of trajectories."""

    def work(console: Any) -> dict[str, Any]:
        from lsm_cli.commands import build

        if index_only:
            return build.add_index(console, out)
        if dataset is None:
            raise InputError("DATASET is missing: name a dataset.toml, or one of the shipped descriptions")
        return build.build_sequences(console, dataset, out, root, memory, overwrite, check, not no_index)

    _run(work, json, quiet, debug)


@app.command()
def train(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the run.", show_default=False)],
    recipe: Annotated[
        str | None,
        typer.Option("--recipe", "-r", help="Shipped recipe (`lsm recipes ls`) or a TOML file.", show_default=False),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option("--data", help="Store made by `lsm build-sequences`.", show_default="that of --from"),
    ] = None,
    again: Annotated[
        Path | None,
        typer.Option("--from", help="Run to repeat: its recipe, and its store unless --data.", show_default=False),
    ] = None,
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")] = False,
    seed: Annotated[int | None, typer.Option(help="Seed of initialisation and order.", show_default=False)] = None,
    seeds: Annotated[
        str | None, typer.Option(help="Train with several: how many, or which (0,1,7).", show_default=False)
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train a recipe on a store, then test it."""

    def work(console: Any) -> dict[str, Any]:
        from lsm_cli.commands import sweep
        from lsm_cli.commands import train as command

        options = [*(overrides or []), *([] if seed is None else [f"train.seed={seed}"])]
        if seeds is None:
            return command.train(console, recipe, data, out, options, resume, again)
        if seed is not None:
            raise InputError("--seed and --seeds: give only one of them")
        return sweep.train_seeds(console, recipe, data, out, options, seeds, resume, again)

    _run(work, json, quiet, debug)


@app.command()
def search(
    recipe: Annotated[
        str | None,
        typer.Option("--recipe", "-r", help="Shipped recipe or a TOML file.", show_default="the run's own"),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option("--data", help="Store made by `lsm build-sequences`.", show_default="the run's own"),
    ] = None,
    run: Annotated[
        Path | None, typer.Option("--run", help="Run whose attention searches (soft) and judges.", show_default=False)
    ] = None,
    split: Annotated[str, typer.Option(help="Samples to search for, or all.")] = "test",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for pointers and report.", show_default=False)
    ] = None,
    overrides: Overrides = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier result in --out.")] = False,
    sample: Annotated[int, typer.Option(help="Samples judged by the run's attention.", min=1)] = 5000,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Run a recipe's search by itself: what it finds, how far back, how fast; write pointers for training."""

    def work(console: Any) -> dict[str, Any]:
        from lsm_cli.commands import search as command

        return command.search(console, recipe, data, run, split, out, overrides or [], overwrite, sample)

    _run(work, json, quiet, debug)


@app.command("eval")
def evaluate(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    data: Annotated[Path | None, typer.Option("--data", help="Store to score.", show_default="the run's own")] = None,
    split: Annotated[str, typer.Option(help="Samples to score.")] = "test",
    shuffle_history: Annotated[
        bool, typer.Option("--shuffle-history", help="Also score with other users' histories, as a control.")
    ] = False,
    baseline: Annotated[
        Path | None,
        typer.Option(help="Run to compare with: differences with intervals, and what they are worth."),
    ] = None,
    ads_only: Annotated[
        bool, typer.Option("--ads-only", help="Also score with behaviours in the candidates' domains only.")
    ] = False,
    drop_domain: Annotated[
        list[str] | None, typer.Option(help="Also score without behaviours in this domain; may be repeated.")
    ] = None,
    replicates: Annotated[int, typer.Option(help="Bootstrap replicates.", min=200, max=1_000_000)] = 1000,
    seed: Annotated[int, typer.Option(help="Seed of bootstrap and shuffling.", min=0)] = 0,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder of the page.", show_default="the run's")
    ] = None,
    shown: Annotated[int, typer.Option(help="GMV: candidates of a request that are shown (replay).", min=1)] = 1,
    clip: Annotated[float, typer.Option(help="GMV: largest inverse propensity.", min=1)] = 100.0,
    gmv_target: Annotated[
        str | None, typer.Option(help="GMV: target that ranks.", show_default="the one that is paid for")
    ] = None,
    attention: Annotated[
        bool,
        typer.Option("--attention", help="Also show where attention goes; pictures in attention.html of the run."),
    ] = False,
    sample: Annotated[int, typer.Option(help="Samples on which attention is looked at.", min=1)] = 5000,
    user_vectors: Annotated[
        Path | None,
        typer.Option("--user-vectors", help="Folder for the vectors of users and items (sasrec).", show_default=False),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Test a run, overall and by slice; with --baseline: is it really better, where, and what is it worth."""

    def work(console: Any) -> dict[str, Any]:
        from lsm_cli.commands import comparison, evaluation

        asked = comparison.Asked(
            baseline, shuffle_history, ads_only, drop_domain or [], replicates, seed, out, shown, clip, gmv_target
        )
        if asked.compares and (attention or user_vectors):
            raise InputError(
                f"--{'attention' if attention else 'user-vectors'} looks at one run by itself: leave out --baseline, "
                "--ads-only and --drop-domain, or ask for them in a second command"
            )
        if asked.compares:
            return comparison.compare_runs(console, run, data, split, asked)
        if out is not None:
            raise InputError(
                "--out is where the page of a comparison goes: add --baseline, --ads-only or --drop-domain"
            )
        looked_at = sample if attention else 0
        return evaluation.eval_run(console, run, data, split, shuffle_history, seed, looked_at, user_vectors)

    _run(work, json, quiet, debug)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the exported model.", show_default=False)],
    data: Annotated[
        Path | None, typer.Option("--data", help="Store to check it on.", show_default="the run's own")
    ] = None,
    tables: Annotated[str, typer.Option(help="How embedding rows are kept: fp32, bf16 or int8.")] = "fp32",
    compiled: Annotated[
        bool | None,
        typer.Option("--compile/--no-compile", help="Also compile it (C++).", show_default="with a C++ compiler"),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an exported model.")] = False,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write a run as a folder that scores requests without lsm: program, tables, vocabularies, scorer.py."""

    def work(console: Any) -> dict[str, Any]:
        from lsm_cli.commands import export as command

        return command.export(console, run, out, data, tables, compiled, overwrite)

    _run(work, json, quiet, debug)


@app.command()
def score(
    model: Annotated[Path, typer.Argument(help="Folder made by `lsm export`.")],
    data: Annotated[Path | None, typer.Option("--data", help="Store to score.", show_default="the run's own")] = None,
    split: Annotated[str, typer.Option(help="Samples to score.")] = "test",
    compiled: Annotated[
        bool | None,
        typer.Option("--compiled/--portable", help="Which program.", show_default="compiled where there is one"),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Test an exported model on a store."""

    def work(console: Any) -> dict[str, Any]:
        from lsm_cli.commands import export as command

        return command.score(console, model, data, split, compiled)

    _run(work, json, quiet, debug)


@app.command()
def profile(
    recipe: RecipeName,
    data: Data,
    overrides: Overrides = None,
    phase: Annotated[str, typer.Option(help="What to profile: train or infer.")] = "train",
    steps: Annotated[int, typer.Option(help="Steps to time.", min=1)] = 20,
    sweep: Annotated[
        list[str] | None,
        typer.Option(help="Values to go through, as key=v1,v2; further ones may follow.", show_default=False),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Where: auto, cpu or cuda.", show_default="the recipe's train.device")
    ] = None,
    ablate: Annotated[bool, typer.Option("--ablate", help="Switch each technique of the engine off in turn.")] = False,
    rounds: Annotated[int, typer.Option(help="Rounds of --ablate.", min=1)] = 7,
    estimate: Annotated[bool, typer.Option("--estimate", help="Only predict memory; run no step of it.")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for report, JSON and traces.", show_default=False)
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Measure a recipe: speed, where time and memory go, and what each technique of the engine is worth."""

    def work(console: Any) -> dict[str, Any]:
        from lsm_cli.commands import profile as command

        options = [*(overrides or []), *([f"train.device={device}"] if device else [])]
        return command.profile(console, recipe, data, options, phase, steps, sweep or [], ablate, estimate, out, rounds)

    _run(work, json, quiet, debug)


@app.command()
def tune(
    recipe: RecipeName,
    data: Data,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the study.", show_default=False)],
    overrides: Overrides = None,
    trials: Annotated[int, typer.Option(help="Trials that the study shall have in all.", min=1)] = 30,
    timeout: Annotated[
        str | None,
        typer.Option(help="Stop after so long, such as 90m or 2h; the same command goes on.", show_default=False),
    ] = None,
    workers: Annotated[int, typer.Option(help="Processes that train trials.", min=1, max=256)] = 1,
    space: Annotated[
        list[str] | None,
        typer.Option(
            "--space",
            help="An option that varies: key=low:high[:log|:step=N] or key=a,b,c, with ' when key=value'.",
            show_default="[tune] of the recipe",
        ),
    ] = None,
    objective: Annotated[
        str | None,
        typer.Option(
            help="What is sought, comma-separated: gauc, auc, logloss, samples_per_second, memory, parameters.",
            show_default="train.metric",
        ),
    ] = None,
    sampler: Annotated[str, typer.Option(help="tpe, random, cmaes, gp or nsga2.")] = "tpe",
    pruner: Annotated[str, typer.Option(help="median, halving, hyperband or none.")] = "median",
    storage: Annotated[
        str | None,
        typer.Option(
            help="Journal file, sqlite:///FILE or postgresql://… for several machines.", show_default="in --out"
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the search.", min=0)] = 0,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Search for a better recipe: options and variants, judged on the validation samples."""

    def work(console: Any) -> dict[str, Any]:
        from lsm_cli.commands import tune as command

        wanted = command.Wanted(trials, timeout, workers, objective, sampler, pruner, storage, seed)
        return command.tune(console, recipe, data, out, overrides or [], space or [], wanted)

    _run(work, json, quiet, debug)


@app.command()
def synth(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the new logs.", show_default=False)],
    world: Annotated[str, typer.Option(help=f"Which world: {', '.join(WORLDS)}.")] = "base",
    users: Annotated[int, typer.Option(help="Number of users.", min=1)] = 5000,
    seed: Annotated[int, typer.Option(help="Seed of the world.", min=0)] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing world.")] = False,
    behaviours: Annotated[
        float | None, typer.Option(help="Mean content behaviours per user.", show_default="the world's", min=0)
    ] = None,
    impressions: Annotated[
        float | None, typer.Option(help="Mean impressions per user.", show_default="the world's", min=0)
    ] = None,
    slate: Annotated[
        int | None,
        typer.Option(
            help="Candidates of a request in the test days, of which a known policy shows one.",
            show_default="no slates",
        ),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write the logs of a small advertising world whose true probabilities are known."""

    def work(console: Any) -> dict[str, Any]:
        from lsm_cli.commands import synth as command

        return command.synth(console, out, world, users, seed, overwrite, behaviours, impressions, slate)

    _run(work, json, quiet, debug)


@app.command()
def simulate(
    run: Annotated[str, typer.Argument(help="Folder of a run, or random, popularity or truth.")],
    baseline: Annotated[
        str, typer.Option(help="The other: a run, or random, popularity or truth.", show_default=False)
    ],
    world_dir: Annotated[Path, typer.Option(help="World made by `lsm synth --slate K`.", show_default=False)],
    data: Annotated[
        Path | None, typer.Option("--data", help="Store built from the world.", show_default="the run's own")
    ] = None,
    replicates: Annotated[int, typer.Option(help="Bootstrap replicates.", min=200, max=1_000_000)] = 1000,
    seed: Annotated[int, typer.Option(help="Seed of the users' luck and of the bootstrap.", min=0)] = 0,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Let two policies serve a synthetic world: who earns more, and did the log foretell it?"""

    def work(console: Any) -> dict[str, Any]:
        from lsm_cli.commands import simulate as command

        return command.simulate(console, run, baseline, world_dir, data, replicates, seed)

    _run(work, json, quiet, debug)


@recipes_app.command("ls")
def recipes_ls(json: Json = False, quiet: Quiet = False, debug: Debug = False) -> None:
    """List the shipped recipes."""

    def work(console: Any) -> dict[str, Any]:
        from lsm_cli.commands import recipes

        return recipes.ls(console)

    _run(work, json, quiet, debug)


@recipes_app.command("show")
def recipes_show(
    name: Annotated[str, typer.Argument(help="Shipped recipe or a TOML file.")],
    overrides: Overrides = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Show every option of a recipe with its value, range and meaning."""

    def work(console: Any) -> dict[str, Any]:
        from lsm_cli.commands import recipes

        return recipes.show(console, name, overrides or [])

    _run(work, json, quiet, debug)


@recipes_app.command("cp")
def recipes_cp(
    name: Annotated[str, typer.Argument(help="Shipped recipe.")],
    to: Annotated[Path, typer.Argument(help="New file.")],
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Copy a shipped recipe, to change it."""

    def work(console: Any) -> dict[str, Any]:
        from lsm_cli.commands import recipes

        return recipes.cp(console, name, to)

    _run(work, json, quiet, debug)


@recipes_app.command("check")
def recipes_check(
    names: Annotated[list[str], typer.Argument(help="Recipes or TOML files.")],
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Check recipes; every error is reported at once."""

    def work(console: Any) -> dict[str, Any]:
        from lsm_cli.commands import recipes

        return recipes.check(console, names)

    _run(work, json, quiet, debug)


class _Runs(typer.core.TyperGroup):
    """`lsm runs [DIR]` is short for `lsm runs ls [DIR]`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        known = (*self.commands, "-h", "--help")
        return super().parse_args(ctx, args if args and args[0] in known else ["ls", *args])


runs_app = typer.Typer(help="List, show and compare runs; `lsm runs` lists.", cls=_Runs, rich_markup_mode=None)
app.add_typer(runs_app, name="runs")


@runs_app.command("ls")
def runs_ls(
    folder: Annotated[
        Path | None, typer.Argument(metavar="[DIR]", help="Folder of runs.", show_default="runs, else here")
    ] = None,
    sort: Annotated[
        str, typer.Option(help="when, name, click.auc, auc (mean of targets), samples_per_second, model.layers …")
    ] = "when",
    reverse: Annotated[bool, typer.Option("--reverse", help="Worst, oldest or last first.")] = False,
    filters: Annotated[
        list[str] | None,
        typer.Option("--filter", "-f", help="key=value or a comparison, as 'click.auc>0.8'; may be repeated."),
    ] = None,
    limit: Annotated[int, typer.Option(help="Most runs shown; 0 = all.", min=0)] = 50,
    trials: Annotated[bool, typer.Option("--trials", help="Show the trials of studies, too.")] = False,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """List runs: recipe, data, result, cost, state."""

    def work(console: Any) -> dict[str, Any]:
        from lsm_cli.commands import runs

        return runs.ls(console, folder, sort, reverse, filters, limit, trials)

    _run(work, json, quiet, debug)


@runs_app.command("show")
def runs_show(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Show all that a run says of itself."""

    def work(console: Any) -> dict[str, Any]:
        from lsm_cli.commands import runs

        return runs.show(console, run)

    _run(work, json, quiet, debug)


@runs_app.command("diff")
def runs_diff(
    folders: Annotated[list[Path], typer.Argument(metavar="RUN RUN …", help="Folders of runs.")],
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """What differs between runs: options, data, code, machine, result, cost."""

    def work(console: Any) -> dict[str, Any]:
        from lsm_cli.commands import runs

        return runs.diff(console, folders)

    _run(work, json, quiet, debug)


@app.command()
def doctor(json: Json = False, quiet: Quiet = False, debug: Debug = False) -> None:
    """Check this machine: versions, device, kernels, memory, and a ten-second self-test; to paste into an issue."""

    def work(console: Any) -> dict[str, Any]:
        from lsm_cli.commands import doctor

        return doctor.doctor(console)

    _run(work, json, quiet, debug)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"lsm {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    pass


def main() -> None:
    # threads that spin while they wait make a shared machine many times slower; read when torch is first imported
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    app()


if __name__ == "__main__":
    main()
