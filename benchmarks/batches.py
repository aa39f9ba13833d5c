"""Assembling batches beside a row-by-row Dataset and DataLoader, on the same generated store.

    python benchmarks/batches.py

Both read the same memory-mapped columns in the same random order, in one process on one thread, with freed memory kept:
three fields of the history and of the candidate, ages, label, user. The Dataset slices one history per sample into
tensors and pads them to the length, the default collation stacks them (`rows`); `lean` is the same Dataset with the
padding written in numpy, the fastest way found. The Assembler also makes ranks and the calendar. Every history fills
the length, the hardest case for batches without padding. All take turns, so that a busy machine slows all; medians
count. CPU-seconds tell the same as seconds where nothing else runs, and the truth where something does. Results go to
benchmarks/results/batches.json.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset

from lsm_cli.data.assembling import Assembler
from lsm_cli.data.store import Store
from lsm_cli.engine.pools import keep_freed_memory
from reports import heading, write
from stores import write_store

HERE = Path(__file__).parent
SIDES = ("lsm", "rows", "lean")
UNITS = ("samples_per_second", "samples_per_cpu_second")
FIELDS = ("item", "category", "scenario")  # with one category level, the node is the category


class RowByRow(Dataset):
    """One sample at a time, padded at the end to `max_len`."""

    def __init__(self, store: Store, split: str, max_len: int, lean: bool) -> None:
        self.lean = lean
        samples = store.samples(split)
        self.offsets, self.time, self.max_len = store.offsets, store.column("time"), max_len
        self.history = {name: store.column(name) for name in FIELDS}
        self.target = {name: samples.column(name) for name in FIELDS}
        self.user, self.end, self.at = (samples.column(name) for name in ("user", "end", "time"))
        self.label = samples.column("label.click")

    def __len__(self) -> int:
        return len(self.user)

    def __getitem__(self, index: int) -> dict[str, Any]:
        end, user = self.end[index], self.user[index]
        first = max(self.offsets[user], end - self.max_len)
        sample: dict[str, Any] = {}
        for name, column in self.history.items():
            sample[f"history.{name}"] = self.pad(column[first:end], np.int64)
        sample["age"] = self.pad(self.at[index] - self.time[first:end], np.float32)
        for name, column in self.target.items():
            sample[name] = int(column[index])
        return {**sample, "length": int(end - first), "user": int(user), "label": float(self.label[index])}

    def pad(self, values: np.ndarray, dtype: type) -> torch.Tensor:
        if not self.lean:
            tensor = torch.from_numpy(values.astype(dtype))
            return F.pad(tensor, (0, self.max_len - len(tensor)))
        padded = np.zeros(self.max_len, dtype)
        padded[: len(values)] = values
        return torch.from_numpy(padded)


def assembled(assembler: Assembler, order: np.ndarray, size: int) -> torch.Tensor:
    """Make all batches; the items of the last one."""
    for start in range(0, len(order), size):
        items = assembler.batch(order[start : start + size]).history["item"]
    return items


def collated(dataset: RowByRow, order: np.ndarray, size: int) -> torch.Tensor:
    for batch in DataLoader(dataset, batch_size=size, sampler=order.tolist()):
        items = batch["history.item"]
    return items


def compare(store: Store, max_len: int, size: int, batches: int, rounds: int) -> dict[str, Any]:
    """Samples per second of both, in turn."""
    fields = [store.fields[name] for name in ("item", "category1", "scenario")]
    assembler = Assembler(store, "train", fields, ["click"], max_len, [])
    rows = {name: RowByRow(store, "train", max_len, lean=name == "lean") for name in SIDES[1:]}
    rng = np.random.default_rng(max_len)
    speeds: dict[str, list[tuple[float, float]]] = {name: [] for name in SIDES}
    for number in range(rounds + 1):
        order = rng.permutation(len(assembler))[: size * batches]
        sums = []
        for name in speeds:
            started, worked = time.perf_counter(), time.process_time()
            made = assembled(assembler, order, size) if name == "lsm" else collated(rows[name], order, size)
            spent = time.perf_counter() - started, time.process_time() - worked
            sums.append(int(made.sum()))
            if number:  # the first round only reads the files into memory
                speeds[name].append((len(order) / spent[0], len(order) / spent[1]))
        if len(set(sums)) > 1:
            raise SystemExit("they read different histories")
    found: dict[str, Any] = {}
    for place, unit in enumerate(UNITS):
        found[unit] = {name: round(statistics.median(one[place] for one in taken)) for name, taken in speeds.items()}
        for name in SIDES[1:]:
            ratios = [fast[place] / slow[place] for fast, slow in zip(speeds["lsm"], speeds[name], strict=True)]
            found[unit][f"ratio to {name}"] = round(statistics.median(ratios), 1)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", nargs="+", type=int, default=[50, 256, 1024])
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--batches", type=int, default=4, help="per round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--work", type=Path, default=Path("build/benchmark-batches"))
    parser.add_argument("--result", type=Path, default=HERE / "results/batches.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    longest = max(options.lengths)
    path = write_store(options.work / "store", 4_000, (longest, longest + longest // 4), {"train": 50_000})
    store = Store.open(path)
    found = {}
    print("| length | unit | lsm | rows | lean | lsm / rows | lsm / lean |\n|---|---|---|---|---|---|---|")
    for length in options.lengths:
        found[length] = compare(store, length, options.batch, options.batches, options.rounds)
        for unit, values in found[length].items():
            print(f"| {length} | {unit} | {' | '.join(f'{value:,}' for value in values.values())} |", flush=True)
    report = {
        **heading(),
        "batch": options.batch, "fields": FIELDS, "threads": 1,
        "lengths": found,
    }  # fmt: skip
    write(options.result, report)
    shutil.rmtree(options.work)


if __name__ == "__main__":
    main()
