"""The folder of an exported model.

DIR/
  scorer.json            fields, targets, statistics, what is read of a history, where it comes from
  program.pt2            torch.export; runs wherever torch does
  compiled.pt2           the same by AOTInductor, for processors like the one that it was made on; may be absent
  tables.safetensors     the embedding tables, see `program.tables`
  vocabularies/<field>.json   raw value -> id; categories: path -> node
  scorer.py              scores requests with all this, without lsm
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import lsm_cli
from lsm_cli import recipe as recipes
from lsm_cli.data.aside import replacing, share
from lsm_cli.data.batches import Batch
from lsm_cli.data.store import Store
from lsm_cli.engine.feed import Feed
from lsm_cli.engine.run import RunFolder, identity
from lsm_cli.engine.setup import EVERYTHING, Setup
from lsm_cli.errors import InputError, LsmError
from lsm_cli.models.numeric import Numeric
from lsm_cli.models.ranking import RankingModel
from lsm_cli.models.scorer import Scorer as Model
from lsm_cli.options import EngineOptions, Recipe
from lsm_cli.serving import program, scorer

ABOUT = "scorer.json"
CHECKED = 512  # samples that both models score before a folder takes its name
CLOSE = 1e-4  # largest difference of a log-odds, in fp32; relative to 1 + its size


def has_compiler() -> bool:
    """Whether AOTInductor finds a C++ compiler here."""
    return any(shutil.which(name) for name in (os.environ.get("CXX") or "g++", "clang++"))


def write(
    run: RunFolder, setup: Setup, out: Path, dtype: str, compiled: bool, overwrite: bool, say: Callable[[str], None]
) -> dict[str, Any]:
    """Export a run; the folder is whole or absent.

    Args:
        setup: of the run's recipe, on the CPU and in fp32.
        dtype: of the tables, one of `program.DTYPES`.
        compiled: also compile.
        say: hears what takes long.

    Returns:
        {"bytes": {file: size}, "difference": largest difference of a log-odds from the run's own, "checked": samples}.

    Raises:
        InputError: it cannot be exported, or `out` cannot be used.
        LsmError: the program does not score as the run does.
    """
    program.check(setup.recipe)
    _check_free(out, overwrite)
    model, copy = (_filled(setup, run) for _ in range(2))
    split = next((name for name in ("test", "valid", "train") if setup.store.splits.get(name)), None)
    if split is None:
        raise InputError(f"{setup.store.path}: the store has no samples to check the exported model on")
    feed = Feed(setup, split)
    some = np.linspace(0, len(feed) - 1, min(CHECKED, len(feed))).astype(np.int64)
    batch = feed.batch(np.unique(some), model)
    tables = program.tables(model, dtype)
    exported = program.export(copy, program.inputs_of(batch), tables)
    with replacing(out, "export", lambda: _check_free(out, overwrite)) as folder:
        (folder / "vocabularies").mkdir()
        torch.export.save(exported, folder / "program.pt2")
        if compiled:
            say("compile    by AOTInductor, once for all sizes; a minute or so")
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # of torch, to itself
                torch._inductor.aoti_compile_and_package(exported, package_path=str(folder / "compiled.pt2"))
        save_file(tables, folder / "tables.safetensors")
        share(folder / "tables.safetensors")
        for name, values in _vocabularies(setup).items():
            (folder / "vocabularies" / f"{name}.json").write_text(json.dumps(values, ensure_ascii=False))
        (folder / ABOUT).write_text(json.dumps(_about(run, setup, dtype), indent=1) + "\n")
        shutil.copyfile(scorer.__file__, folder / "scorer.py")
        difference = _compared(model, batch, folder, compiled)
        if dtype == "fp32" and not difference <= CLOSE:
            raise LsmError(f"the exported model scores differently, by {difference:.2g}; nothing was written")
    files = {str(file.relative_to(out)): file.stat().st_size for file in sorted(out.rglob("*")) if file.is_file()}
    return {"bytes": files, "difference": difference, "checked": batch.size}


def _check_free(out: Path, overwrite: bool) -> None:
    if out.exists() and not (out.is_dir() and (not any(out.iterdir()) or (overwrite and (out / ABOUT).is_file()))):
        hint = "add --overwrite to replace it" if (out / ABOUT).is_file() else "choose another --out"
        raise InputError(f"{out}: is not empty; {hint}")


def _filled(setup: Setup, run: RunFolder) -> RankingModel:
    model = setup.model()
    run.fill(model)
    return cast(RankingModel, model.eval())


@torch.no_grad()
def _compared(model: RankingModel, batch: Batch, folder: Path, compiled: bool) -> float:
    """Largest difference of a log-odds between a model and what was written of it, relative to 1 + its size."""
    expected = model(batch, model.fetch(batch)).float()
    largest = 0.0
    for one in {False, compiled}:
        found = scorer.Scorer(folder, one).logits(program.inputs_of(batch))
        largest = max(largest, float(((found - expected).abs() / (1 + expected.abs())).max()))
    return largest


def _about(run: RunFolder, setup: Setup, dtype: str) -> dict[str, Any]:
    found, reach, search = setup.match_statistics(), setup.reach, setup.recipe.search
    reads = f"the most recent {reach:,} behaviours" if reach < EVERYTHING else "all behaviours before the request"
    searched = bool(search.source) or search.method != "none"
    if searched:
        found_by = "a search" if search.source else f"a {search.method} search"
        reads = f"what {found_by} found for the candidate: give that as the history, with its times and ranks"
    return {
        "format": scorer.FORMAT,
        "lsm": lsm_cli.__version__,
        "run": str(run.path.resolve()),
        "targets": setup.targets,
        "tables": dtype,
        "reads": reads,
        "ranked": searched,
        "max_len": reach,
        "fields": {
            field.name: {"level": field.level, "in_history": field.in_history, "in_sample": field.in_sample}
            for field in setup.fields
        },
        "statistics": setup.statistics,
        "matches": found.names if found else [],
        "recipe": setup.recipe.model_dump(by_alias=True),
        "data": run.data(),
    }


def _vocabularies(setup: Setup) -> dict[str, dict[str, int]]:
    """field -> {raw value: id}; for `category` {path: node}."""
    try:
        import polars as pl
    except ImportError:
        raise InputError("export reads the store's vocabularies with polars, which is not installed here") from None
    found = {}
    for name in dict.fromkeys("category" if field.level else field.name for field in setup.fields):
        frame = pl.read_parquet(setup.store.vocabulary_file(name))
        value, number = ("path", "node") if name == "category" else ("value", "id")
        found[name] = dict(zip(frame[value].cast(pl.String).to_list(), frame[number].to_list(), strict=True))
    return found


class Exported(Model):
    """An exported model in the place of the model that it was, so that the same evaluation tests it."""

    def __init__(self, folder: Path, compiled: bool | None = None) -> None:
        super().__init__()
        self.scorer = scorer.Scorer(folder, compiled)
        _ = self.scorer.program  # loaded now, so that scoring does not count it
        self.spaces, self.numeric = nn.ModuleList(), Numeric(0, 0)  # type: ignore[assignment]

    def forward(self, batch: Batch, rows: Any) -> Tensor:
        return self.scorer.logits(program.inputs_of(batch))


def opened(path: Path) -> dict[str, Any]:
    """What an exported folder says of itself.

    Raises:
        InputError: it is none, is damaged or was written by another version.
    """
    file = path / ABOUT
    if not file.is_file():
        raise InputError(f"{path}: not an exported model (no {ABOUT}); `lsm export RUN --out {path}` makes one")
    try:
        about = json.loads(file.read_text())
        if about["format"] != scorer.FORMAT:
            raise InputError(
                f"{file}: format {about['format']}, this version of lsm reads {scorer.FORMAT}; export again"
            )
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file}: damaged ({error}); export again") from None
    return about


def setup_of(about: dict[str, Any], path: Path, store: Store) -> Setup:
    """What makes batches for an exported model, on the CPU.

    Raises:
        InputError: ids of the store mean other things.
    """
    if about["data"]["vocabulary"] != identity(store)["vocabulary"]:
        raise InputError(
            f"{path}: was trained on another store ({about['data']['path']}); ids of {store.path} mean other things"
        )
    return Setup.of(on_cpu(recipes.parse(about["recipe"], str(path / ABOUT))), store)


def on_cpu(recipe: Recipe) -> Recipe:
    """The recipe as an exported model computes: on the CPU, in fp32, a history for every sample."""
    train = recipe.train.model_copy(update={"device": "cpu", "precision": "fp32"})
    return recipe.model_copy(update={"train": train, "engine": EngineOptions(share_histories=False)})
