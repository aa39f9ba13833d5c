"""The command line: one short function per command; the heavy imports happen inside it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from lsm_cli import __version__
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
    recipe: RecipeName,
    data: Data,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the run.", show_default=False)],
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")] = False,
    seed: Annotated[int | None, typer.Option(help="Seed of initialisation and order.", show_default=False)] = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train a recipe on a store, then test it."""

    def work(console: Any) -> dict[str, Any]:
        from lsm_cli.commands import train as command

        return command.train(console, recipe, data, out, overrides or [], resume, seed)

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
    user_vectors: Annotated[
        Path | None,
        typer.Option("--user-vectors", help="Folder for the vectors of users and items (sasrec).", show_default=False),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Test a run: AUC, GAUC, log loss and calibration, overall and by slice; of two towers, also recall and NDCG."""

    def work(console: Any) -> dict[str, Any]:
        from lsm_cli.commands import evaluation

        return evaluation.eval_run(console, run, data, split, shuffle_history, vectors=user_vectors)

    _run(work, json, quiet, debug)


@app.command()
def synth(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the new logs.", show_default=False)],
    world: Annotated[str, typer.Option(help="Which world.")] = "base",
    users: Annotated[int, typer.Option(help="Number of users.", min=1)] = 5000,
    seed: Annotated[int, typer.Option(help="Seed of the world.", min=0)] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing world.")] = False,
    behaviours: Annotated[
        float | None, typer.Option(help="Mean content behaviours per user.", show_default="the world's", min=0)
    ] = None,
    impressions: Annotated[
        float | None, typer.Option(help="Mean impressions per user.", show_default="the world's", min=0)
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write the logs of a small advertising world whose true probabilities are known."""

    def work(console: Any) -> dict[str, Any]:
        from lsm_cli.commands import synth as command

        return command.synth(console, out, world, users, seed, overwrite, behaviours, impressions)

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
