"""A trained ranking model as a program of torch.export: no Python of ours in it, batches and histories of any size.

The embedding tables are arguments of the program. They may then be stored in fewer bits and mapped into memory from one
file by all processes of a machine, and the program itself is a few megabytes, whatever the number of items.

    program(inputs, tables) -> logits float32 [B, targets]

    inputs   offsets int64 [B + 1], age float32 [N], rank int32 [N], calendar int64 [B, 2], statistics float32 [B, S],
             matches float32 [B, M] (may be missing), history and target: field -> int32 [N], [B]; as `batches.Batch`
    tables   see `tables`

Export takes sizes of 0 and 1 as special; whoever calls the program appends a sample with two behaviours of padding, see
`scorer.padded`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from lsm_cli.data.batches import Batch
from lsm_cli.embedding.tables import Table
from lsm_cli.errors import InputError
from lsm_cli.kernels import ragged
from lsm_cli.models.ranking import RankingModel
from lsm_cli.options import BY_ATTENTION, SORTING, Recipe
from lsm_cli.serving.scorer import padded

Inputs = dict[str, Any]
DTYPES = ("fp32", "bf16", "int8")


def check(recipe: Recipe) -> None:
    """Raise InputError where there is no exported form."""
    sequence, method = recipe.model.sequence, recipe.search.method
    if sequence == "sasrec":
        raise InputError("two towers are served by their vectors: `lsm eval RUN --user-vectors DIR` writes them")
    if sequence in SORTING:
        raise InputError(
            f"model.sequence = {sequence!r} sorts what it reads, which a program of fixed steps cannot; export a run "
            "of tin, stacked_tin, mhta, din, stca, mean or none"
        )
    if method in BY_ATTENTION and not recipe.search.source:
        raise InputError(
            f"search.method = {method!r} scores whole histories before the model reads some of them, and that first "
            "stage has no exported form; export a run that reads the most recent behaviours or searches by `hard`"
        )


def tables(model: RankingModel, dtype: str) -> dict[str, Tensor]:
    """The embedding tables, `<space>.<field>` -> [rows, dim], and for int8 `<space>.<field>.scale` -> float32 [rows];
    in the order of their names.

    int8: row r holds round(w / scale_r), scale_r = max |w| / 127 of its row.
    """
    found: dict[str, Tensor] = {}
    for place, space in enumerate(model.spaces):
        for name, table in zip(space.bank.names, space.bank.tables, strict=True):
            weight = cast(Table, table).weight.detach().float().cpu()
            key = f"{place}.{name}"
            if dtype == "int8":
                scale = weight.abs().amax(1) / 127
                found[key] = (weight / scale.clamp(min=1e-30).unsqueeze(1)).round().to(torch.int8)
                found[f"{key}.scale"] = scale
            else:
                found[key] = weight if dtype == "fp32" else weight.bfloat16()
    return dict(sorted(found.items()))


class Program(nn.Module):
    """What is exported. Takes a model for itself: its tables are emptied."""

    def __init__(self, model: RankingModel) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        for space in model.spaces:
            for table in space.bank.tables:
                cast(Table, table).weight = torch.empty(0, space.bank.dim)
            space.bank.optimizers = nn.ModuleList()

    def forward(self, inputs: Inputs, tables: dict[str, Tensor]) -> Tensor:
        """Logits, float32 [B, targets]."""
        nothing = inputs["offsets"][:0]
        batch = Batch(**{"matches": None, **inputs}, labels=nothing, user=nothing)
        rows = []
        for place, space in enumerate(self.model.spaces):
            names = [f"{place}.{name}" for name in space.bank.names]
            stored = [(tables[name], tables.get(f"{name}.scale")) for name in names]
            rows.append(space.bank.gather(batch, stored, space.reads))
        return self.model(batch, rows).float()


def export(model: RankingModel, example: Inputs, tables: dict[str, Tensor]) -> ExportedProgram:
    """Trace the model, which is used up.

    Args:
        example: inputs of some samples; what a program does never depends on their number and values.
    """
    example = padded(example)
    samples, behaviours = Dim("samples"), Dim("behaviours")
    by_name = {"offsets": {0: samples + 1}, "age": {0: behaviours}, "rank": {0: behaviours}}
    shapes: Inputs = {
        name: {field: {0: behaviours if name == "history" else samples} for field in value}
        if isinstance(value, dict)
        else by_name.get(name, {0: samples})
        for name, value in example.items()
    }
    with plainly(), torch.no_grad():
        return torch.export.export(
            Program(model), (example, tables), dynamic_shapes=(shapes, dict.fromkeys(tables)), strict=False
        )


@contextmanager
def plainly() -> Iterator[None]:
    """Inside, models use torch's own operations alone, and sizes do not decide which."""
    before = ragged.preferred()
    ragged.prefer("eager")
    try:
        with ragged.fixed_shapes():
            yield
    finally:
        ragged.prefer(before)


def inputs_of(batch: Batch) -> Inputs:
    """What the program is given of a batch."""
    found = {name: value for name, value in vars(batch).items() if name not in ("labels", "user") and value is not None}
    return {name: dict(value) if isinstance(value, dict) else value for name, value in found.items()}
