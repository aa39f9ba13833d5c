"""Writing the samples: ids of the candidate, labels, value and truth, split by split, in the order of the logs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import polars as pl

from lsm_cli.data.building.cells import BAD_LABEL, NUMBERS, as_label, as_number, as_text
from lsm_cli.data.building.encoding import Encoded
from lsm_cli.data.building.requests import Requests
from lsm_cli.data.building.scan import Source
from lsm_cli.data.building.workspace import ColumnFile, Workspace
from lsm_cli.data.description import SPLITS
from lsm_cli.data.parts import Label
from lsm_cli.data.store import MISSING
from lsm_cli.errors import InputError

UNOBSERVED = -1


@dataclass
class Sampled:
    """What the later steps need of all samples, in the order of the files.

    Attributes:
        user: int32 [samples]. time: int64 [samples], ticks since base. split: int8 [samples].
        positives: target -> split -> {"observed", "positive"}.
        placeless: how many have no category, as no event before the request tells it.
        notes: what the user should know of how they were made.
    """

    user: np.ndarray
    time: np.ndarray
    split: np.ndarray
    targets: list[str]
    truth: list[str] = field(default_factory=list)
    value: bool = False
    positives: dict[str, dict[str, dict[str, int]]] = field(default_factory=dict)
    placeless: int = 0
    notes: list[str] = field(default_factory=list)

    def count(self, tally: np.ndarray) -> None:
        """Note how often each target was observed and positive; int64 [targets, splits, 2]."""
        for target, by_split in zip(self.targets, tally.tolist(), strict=True):
            rows = zip(SPLITS, by_split, strict=True)
            self.positives[target] = {split: {"observed": seen, "positive": ones} for split, (seen, ones) in rows}


class SampleWriter:
    """The columns of every split, appended to batch by batch."""

    def __init__(self, work: Workspace, counts: dict[str, int]) -> None:
        self.work, self.counts = work, counts
        self.files: dict[tuple[str, str], ColumnFile] = {}

    def append(self, split: np.ndarray, columns: dict[str, np.ndarray]) -> None:
        for code, name in enumerate(SPLITS):
            mine = split == code
            for column, values in columns.items():
                if (name, column) not in self.files:
                    file = f"samples/{name}/{column}.npy"
                    self.files[name, column] = self.work.column(file, values.dtype, self.counts[name])
                self.files[name, column].append(values[mine])

    def close(self) -> None:
        self.work.close(*self.files.values())


def encode_samples(encoded: Encoded, requests: Requests, work: Workspace) -> Sampled:
    """Read the samples a second time and write everything but their pointers and statistics.

    Raises:
        InputError: a label that is neither 0, 1 nor missing, or a target with one class in training.
    """
    plan = encoded.plan
    source, block = plan.samples, plan.description.samples
    assert source is not None
    targets = list(block.labels) or _targets(source, plan.kinds, plan.resolution, plan.rows)
    writer = SampleWriter(work, requests.counts())
    split = requests.split[requests.split >= 0]
    sampled = Sampled(
        np.zeros(len(split), np.int32),
        np.zeros(len(split), np.int64),
        split,
        targets,
        list(block.truth),
        bool(block.value),
    )
    fields = [name for name in plan.fields if plan.in_sample(name)]
    row = done = 0
    tally = np.zeros((len(targets), len(SPLITS), 2), np.int64)
    for frame in source.batches(plan.kinds, plan.resolution, plan.rows):
        code = requests.split[row : row + frame.height]
        row += frame.height
        used = code >= 0
        frame, code = frame.filter(used), code[used]
        if not frame.height:
            continue
        labels = _labels(source, frame, targets)
        user, time = encoded.users.encode(frame["user"]), encoded.ticks(frame)
        here = slice(done, done + frame.height)
        sampled.user[here], sampled.time[here] = user, time
        done += frame.height
        columns = {"user": user.astype(np.int32), "time": time}
        columns |= {name: encoded.encode(source, frame, name) for name in fields}
        if encoded.tree is not None:
            columns["category"] = _nodes(encoded, source, frame, columns["item"], time, code == 0)
            if encoded.known_items is not None:
                sampled.placeless += int((columns["category"] == MISSING).sum())
        columns |= {f"label.{target}": labels[target] for target in targets}
        tally += tally_labels([labels[target] for target in targets], code)
        for name in source.numbers:
            if name != "propensity" and not frame[name].is_finite().fill_null(True).all():
                raise InputError(_bad_number(source, name))
            missing = 0.0 if name == "value" else np.nan
            columns[name] = frame[name].fill_null(missing).to_numpy().astype(np.float32)
        if "propensity" in columns:
            _check_propensity(source, columns["propensity"])
        writer.append(code, columns)
        plan.progress.advance(len(used))
    writer.close()
    sampled.count(tally)
    check_classes(str(plan.description.file), sampled.positives)
    return sampled


def tally_labels(labels: list[np.ndarray], split: np.ndarray) -> np.ndarray:
    """int64 [targets, splits, 2]: how many labels were observed, and how many are positive."""
    tally = np.zeros((len(labels), len(SPLITS), 2), np.int64)
    for target, values in enumerate(labels):
        tally[target, :, 0] = np.bincount(split[values >= 0], minlength=len(SPLITS))
        tally[target, :, 1] = np.bincount(split[values == 1], minlength=len(SPLITS))
    return tally


def check_classes(file: str, positives: dict[str, dict[str, dict[str, int]]]) -> None:
    """Refuse a target whose training labels are all the same.

    Raises:
        InputError: names the target and what its labels are.
    """
    for target, by_split in positives.items():
        observed, positive = by_split["train"]["observed"], by_split["train"]["positive"]
        if positive in (0, observed):
            what = (
                "observed in no training sample" if not observed else f"{1 if positive else 0} in every training sample"
            )
            raise InputError(
                f"{file}: samples: target {target!r} is {what}: there is nothing to learn;"
                " check its column and the split"
            )


def _nodes(
    encoded: Encoded, source: Source, frame: pl.DataFrame, item: np.ndarray, time: np.ndarray, trained: np.ndarray
) -> np.ndarray:
    """The candidate's category: its own columns, else what events before the request say about the item: that it has a
    category at all may be known from an event that only a positive has."""
    assert encoded.tree is not None and encoded.paths is not None
    if encoded.known_items is not None:
        return encoded.known_items.before(item, time)
    place = encoded.paths.places(frame, encoded.plan.domain_of(source))
    encoded.sample_paths += np.bincount(place, minlength=len(encoded.sample_paths))
    encoded.trained_paths[place[trained]] = True
    return encoded.tree.node_of_path.astype(encoded.tree.dtype)[place]


def _labels(source: Source, frame: pl.DataFrame, targets: list[str]) -> dict[str, np.ndarray]:
    """int8 [rows] for each target: 0, 1, or -1 where it was not observed."""
    found = {}
    for name, label in source.labels.items():
        values = frame[name].fill_null(UNOBSERVED).to_numpy()
        if (values == BAD_LABEL).any():
            raise InputError(_bad_label(source, label))
        found[name.removeprefix("label.")] = values
    if "target" not in source.columns:
        return found
    which = frame["target"]
    return {
        t: np.where((which == t).fill_null(False).to_numpy(), found["label"], UNOBSERVED).astype(np.int8)
        for t in targets
    }


def _check_propensity(source: Source, values: np.ndarray) -> None:
    """Refuse anything that is no probability of having been shown."""
    bad = ~((values > 0) & (values <= 1))
    if bad.any():
        raise InputError(
            f"{source.table.files[0]}: column {source.numbers['propensity']!r} is a propensity and says "
            f"{values[bad][0]:g}; it is the probability with which the log's policy shows this candidate, above 0 and "
            "at most 1, in every row"
        )


def _bad_label(source: Source, label: Label) -> str:
    column = label.column
    position, cell = _first(source, column, lambda dtype: as_label(label, dtype) == BAD_LABEL)
    file, value = source.table.files[position], cell.select(as_text(column, cell[column].dtype)).item()
    return (
        f"{file}: column {column!r} is a label and says {value!r}; labels are 0, 1 or empty (not observed),"
        f' or name what counts: {{ column = "{column}", positive = {value!r} }}'
    )


def _bad_number(source: Source, name: str) -> str:
    column = source.numbers[name]
    position, cell = _first(source, column, lambda dtype: as_number(column, dtype).is_finite().not_())
    return f"{source.table.files[position]}: column {column!r} (samples.{name}) says {cell.item()!r}; {NUMBERS}"


def _first(source: Source, column: str, wrong: Callable[[pl.DataType], pl.Expr]) -> tuple[int, pl.DataFrame]:
    """Which file has the first cell of a column that is wrong, and the cell; `wrong` goes by the type. There is one."""
    for position, schema in enumerate(source.table.schemas):
        found = source.table.scan(position).filter(wrong(schema[column])).select(pl.col(column).head(1)).collect()
        if found.height:
            return position, found
    raise AssertionError(f"no wrong value in {column}")


def _targets(source: Source, kinds: dict[str, str], resolution: int, rows: int) -> list[str]:
    """Long form: the distinct targets, in order of their names."""
    found: set[str] = set()
    for frame in source.batches(kinds, resolution, rows, ["target"]):
        found.update(frame["target"].drop_nulls().unique().to_list())
    if not found:
        raise InputError(
            f"{source.table.files[0]}: column {source.columns['target']!r} (samples.target) is empty in every row; "
            "name another column"
        )
    for name in found:
        if not name.replace("-", "_").isidentifier():
            raise InputError(
                f"{source.table.files[0]}: target {name!r} cannot name a file: use letters, digits, _ and -"
            )
    return sorted(found)
