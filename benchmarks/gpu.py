"""What the engine is worth on a GPU: steps against a plain padded model, attention against the bytes it must move.

    python benchmarks/gpu.py [--data STORE]
    python benchmarks/gpu.py --tiny                    # no GPU: by Triton's interpreter, to see that it runs
    python benchmarks/gpu.py --cpu --lengths 256       # the steps alone, by the CPU's own kernels, one thread

steps       training and inference of stacked_tin at every length, the same batches, already on the device, for all:
            this engine's kernels, and `padded.PaddedModel` with nn.Embedding and Adam, eager, in fp32 and in bf16.
            Histories are uniform between a tenth of the length and the length; items follow a Zipf law.
attention   the fused kernels alone, at several shapes and tunings: time over the time that the bytes they must move
            take at the copy bandwidth measured beside.
selection   the best 50 of each history: the kernel and two sorts over the bytes of the scores and of what is marked.
cache       tables in host memory and in a file, their most used rows on the device: see cache.py.
pools       what ragged work takes from the GPU, by what the allocator is told: see pools.py.
engine      what each technique of the engine is worth at every length, as `lsm profile --ablate` has it, batches made
            from the store: gathering on the device, pinned buffers, CUDA graphs in small scoring batches, and the rest;
            then training and scoring of stacked_tin and sasrec with eight candidates a request that share its history.
precision   test AUC of runs on STORE in fp32, in bf16, and with bf16 tables: only with --data.

Times are medians of rounds in which everything compared takes turns. Results go to benchmarks/results/gpu.json, or
padded_cpu.json with --cpu; of --tiny to build/gpu_tiny.json: its times say nothing.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when the kernels are first imported

from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

import cache
import pools
from accuracy import call
from lsm_cli import recipe as recipes
from lsm_cli.data.store import Store
from lsm_cli.engine.run import RunFolder
from lsm_cli.engine.setup import Setup
from lsm_cli.engine.train import Trainer
from lsm_cli.kernels import fused, ragged, topk
from lsm_cli.kernels.ragged import Occurrences, Part, Segments
from padded import PaddedBatch, copied
from reports import heading, write
from stores import write_store

HERE = Path(__file__).parent
CANDIDATES = 8  # of a request
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PLAIN = ["model.evidence=false", "data.statistics=false", "train.ema=0", "train.unknown=0"]
PLAIN += ["train.clip=0", "model.quiet=false"]  # not quiet, so that the scores show what was read


def turns(work: dict[str, Callable[[], Any]], rounds: int, repeats: int) -> dict[str, float]:
    """name -> median milliseconds of one call."""
    taken: dict[str, list[float]] = {name: [] for name in work}
    for number in range(rounds + 1):
        for name, one in work.items():
            wait()
            started = time.perf_counter()
            for _ in range(repeats):
                one()
            wait()
            if number:  # the first round compiles and warms
                taken[name].append(1e3 * (time.perf_counter() - started) / repeats)
    return {name: round(statistics.median(values), 4) for name, values in taken.items()}


def wait() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def peak(work: Callable[[], Any]) -> int | None:
    """Bytes allocated at most while working; None where that is not known."""
    if DEVICE != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats()
    work()
    wait()
    return torch.cuda.max_memory_allocated()


# steps


def steps(length: int, options: argparse.Namespace) -> dict[str, Any]:
    """One length: milliseconds a step of everything, and ratios to the padded model in the same precision."""
    with tempfile.TemporaryDirectory() as folder:
        path = write_store(
            Path(folder) / "store", options.users, (length // 10, length),
            {"train": 4 * options.batch, "valid": options.batch}, options.rows, options.rows,
        )  # fmt: skip
        found = {precision: _steps(path, Path(folder), length, precision, options) for precision in options.precisions}
    return found


def _steps(path: Path, out: Path, length: int, precision: str, options: argparse.Namespace) -> dict[str, Any]:
    made: dict[str, Trainer] = {}
    for kernels in options.kernels:
        asked = [*PLAIN, f"model.max_len={length}", f"train.batch_size={options.batch}", f"train.precision={precision}"]
        recipe = recipes.load("stacked_tin", [*asked, f"engine.kernels={kernels}", f"train.device={DEVICE}"])
        store = Store.open(path)
        made[kernels] = Trainer(
            Setup.of(recipe, store), RunFolder.start(out / f"{precision}.{kernels}", recipe, store, False)
        )
    first = next(iter(made.values()))
    order = np.random.default_rng(0).permutation(len(first.train)).reshape(4, -1)
    batches = [first.train.batch(index, first.model) for index in order]
    padded = [PaddedBatch.of(batch) for batch in batches]
    first.setup.activate()
    plain, apart = copied(first.model, batches[0])
    if apart > 1e-3:
        sys.exit(f"the padded model scores differently, by {apart}: what follows would compare nothing")
    adam = torch.optim.Adam(plain.parameters(), lr=1e-3)
    autocast = first.setup.compute.autocast
    turn = 0

    def trains(trainer: Trainer) -> Callable[[], None]:
        def one() -> None:
            nonlocal turn
            turn += 1
            ragged.prefer(trainer.setup.recipe.engine.kernels)
            trainer._step(batches[turn % 4])

        return one

    def scores(trainer: Trainer) -> Callable[[], None]:
        @torch.no_grad()
        def one() -> None:
            nonlocal turn
            turn += 1
            ragged.prefer(trainer.setup.recipe.engine.kernels)
            trainer.model.eval()
            with autocast():
                trainer.model(batches[turn % 4], trainer.model.fetch(batches[turn % 4]))

        return one

    def train_padded() -> None:
        nonlocal turn
        turn += 1
        plain.train()
        adam.zero_grad(set_to_none=True)
        with autocast():
            logits = plain(padded[turn % 4])
        binary_cross_entropy_with_logits(logits.float(), padded[turn % 4].batch.labels).backward()
        adam.step()

    @torch.no_grad()
    def score_padded() -> None:
        nonlocal turn
        turn += 1
        plain.eval()
        with autocast():
            plain(padded[turn % 4])

    found: dict[str, Any] = {"largest difference of the scores": apart}
    for phase, ours, theirs in (("train", trains, train_padded), ("infer", scores, score_padded)):
        work = {"padded": theirs} | {name: ours(trainer) for name, trainer in made.items()}
        taken = turns(work, options.rounds, options.repeats)
        memory = {name: peak(one) for name, one in work.items()}
        times = {name: round(taken["padded"] / one, 2) for name, one in taken.items()}
        found[phase] = {"ms": taken, "times as fast": times, "peak bytes": memory}
        print(
            f"| {length} | {precision} | {phase} | " + " | ".join(map(str, [*taken.values(), *times.values()])) + " |"
        )
    return found


# attention


def attention(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The kernels alone, shape by shape and tuning by tuning."""
    bandwidth = copy_bandwidth(options.copy)
    found = []
    for fields, dim, heads, length in options.shapes:
        case = _case(fields, dim, heads, length, options)
        for dtype in (torch.float32, torch.bfloat16):
            found.append(_attention(case, dtype, bandwidth, options) | {"heads": heads, "dim": dim, "length": length})
            best = min(found[-1]["tunings"], key=lambda one: one["ratio"]["forward"] + one["ratio"]["both"])
            print(
                f"| {fields} x {dim} | {heads} | {length} | {dtype} | {best['ratio']} | {best['tuning']} |", flush=True
            )
    return found


def selection(options: argparse.Namespace) -> dict[str, Any]:
    """The best 50 of each history of a soft search: by the kernel and by two sorts, over the least that must move."""
    length = 10_000 if DEVICE == "cuda" else 40
    size = max(options.behaviours // length, 2)
    segments = Segments(torch.arange(0, (size + 1) * length, length, device=DEVICE))
    value = torch.randn(size * length, device=DEVICE)
    ragged.prefer("triton")
    ways = {"kernel": lambda: topk.best(value, segments, 50), "sorting": lambda: topk.by_sorting(value, segments, 50)}
    taken = turns(ways, options.rounds, options.repeats)
    ragged.prefer("auto")
    least = 1e3 * 5 * value.numel() / copy_bandwidth(options.copy)
    ratio = {name: round(spent / least, 2) for name, spent in taken.items()}
    print(f"| best 50 of {size} x {length} | time / least | {ratio} |", flush=True)
    return {"samples": size, "length": length, "ms": taken, "least ms": least, "ratio": ratio}


def copy_bandwidth(size: int) -> float:
    """Bytes per second, read and written."""
    source = torch.empty(size // 4, device=DEVICE)
    target = torch.empty_like(source)
    return 2 * size / (1e-3 * turns({"copy": lambda: target.copy_(source)}, 5, 5)["copy"])


def _case(fields: int, dim: int, heads: int, length: int, options: argparse.Namespace) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    lengths = rng.integers(length // 10, length + 1, max(1, options.behaviours * 2 // length))
    segments = Segments(torch.from_numpy(np.concatenate([[0], lengths.cumsum()])).to(DEVICE))

    def ids(rows: int) -> Tensor:  # Zipf
        return torch.from_numpy((rows ** rng.random(segments.total)).astype(np.int64).clip(max=rows) - 1).to(DEVICE)

    rows = [max(65, 2 * dim + 1, options.table // 10**field) for field in range(fields)]
    places = [Occurrences(ids(size), size, segments) for size in rows]
    times = [Occurrences(ids(33), 33, segments) for _ in range(2)]
    query = torch.randn(segments.size, heads, fields * dim, device=DEVICE) / (fields * dim) ** 0.5
    bias = torch.randn(heads, segments.total, device=DEVICE)
    return {"segments": segments, "places": places, "times": times, "query": query, "bias": bias, "dim": dim}


def _attention(
    case: dict[str, Any], dtype: torch.dtype, bandwidth: float, options: argparse.Namespace
) -> dict[str, Any]:
    segments, dim, width = case["segments"], case["dim"], case["query"].shape[2]
    tables = [torch.randn(at.rows, dim, device=DEVICE, dtype=dtype).requires_grad_() for at in case["places"]]
    times = [torch.randn(at.rows, width, device=DEVICE).requires_grad_() for at in case["times"]]
    query, bias = (case[name].clone().requires_grad_() for name in ("query", "bias"))
    side = fused.Side(
        [Part(table, at) for table, at in zip(tables, case["places"], strict=True)],
        [Part(table, at) for table, at in zip(times, case["times"], strict=True)],
    )

    @torch.no_grad()
    def forward() -> None:
        fused.attend(side, query, query, segments.reads, bias)

    def both() -> None:
        fused.attend(side, query, query, segments.reads, bias).sum().backward()

    reads = sum(8 + dim * table.element_size() for table in tables) + 8 * len(times) + 4 * len(bias)
    moved = {"forward": segments.total * reads}
    # forward and backward read, gradients of rows are added (read and written), those of the bias written
    moved["both"] = segments.total * (2 * reads + 8 * dim * len(tables) + 4 * len(bias))
    least = {name: 1e3 * size / bandwidth for name, size in moved.items()}
    tunings = []
    before = ragged.CHUNK, fused.TILE, fused.WARPS
    for chunk, tile, warps in options.tunings:
        ragged.CHUNK, fused.TILE, fused.WARPS = chunk, tile, warps
        segments.__dict__.pop("reads", None)
        taken = turns({"forward": forward, "both": both}, options.rounds, options.repeats)
        ratio = {name: round(taken[name] / least[name], 2) for name in taken}
        tunings.append({"tuning": {"chunk": chunk, "tile": tile, "warps": warps}, "ms": taken, "ratio": ratio})
    ragged.CHUNK, fused.TILE, fused.WARPS = before
    segments.__dict__.pop("reads", None)
    return {
        "fields": len(tables), "dtype": str(dtype), "samples": segments.size, "behaviours": segments.total,
        "copy GB/s": round(bandwidth / 1e9, 1), "bytes": moved, "least ms": least, "tunings": tunings,
    }  # fmt: skip


# engine


def engine(length: int, options: argparse.Namespace) -> dict[str, Any]:
    """One length: phase -> technique -> time without it over the time with it."""
    with tempfile.TemporaryDirectory() as folder:
        sizes = {"train": 4 * options.batch, "valid": options.batch, "test": 4 * options.batch}
        shape = [f"model.max_len={length}", f"train.batch_size={options.batch}", f"train.device={DEVICE}"]
        counts = ["--steps", options.repeats, "--rounds", options.rounds]

        def ablated(name: str, recipe: str, phase: str, path: Path, *more: str) -> None:
            asked = ["profile", "--recipe", recipe, "--data", path, "--phase", phase, "--ablate", "--json", "-q"]
            found[name] = call([*asked, *counts, *shape, *more])["ablation"]
            print(f"| {length} | {name} | {found[name]} |", flush=True)

        found: dict[str, Any] = {}
        history = (length // 10, length)
        path = write_store(Path(folder) / "store", options.users, history, sizes, options.rows, options.rows)
        for phase in ("train", "infer"):
            ablated(phase, "stacked_tin", phase, path)
        write_store(path, options.users, history, sizes, options.rows, options.rows, candidates=CANDIDATES)
        for recipe in ("stacked_tin", "sasrec"):
            for phase in ("train", "infer"):
                ablated(f"{recipe}, {CANDIDATES} candidates, {phase}", recipe, phase, path, "train.shuffle=requests")
    return found


# precision


def precision(store: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Runs that differ in precision alone: target -> test AUC."""
    found = {}
    variants = {"fp32": [], "bf16": ["train.precision=bf16"], "bf16 tables": ["train.table_dtype=bf16"]}
    for name, more in variants.items():
        with tempfile.TemporaryDirectory() as folder:
            asked = ["train", "--recipe", "stacked_tin", "--data", store, "--out", Path(folder) / "run", "--json", "-q"]
            base = ["train.precision=fp32", f"train.device={DEVICE}", f"train.epochs={options.epochs}"]
            done = call([*asked, *base, *more])
        found[name] = {target: values["auc"] for target, values in done["test"].items()}
        print(f"| {name} | {found[name]} |", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a store, for the precision")
    parser.add_argument("--lengths", type=int, nargs="+", default=[256, 512, 1024, 2048, 4096])
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the item table")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--repeats", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--result", type=Path)
    options = parser.parse_args()
    options.precisions, options.kernels, options.users = ["fp32", "bf16"], ["triton", "compiled", "eager"], 2_000
    options.shapes = [(1, 64, 1, 1024), (3, 16, 1, 256), (3, 16, 1, 4096), (3, 16, 4, 1024), (3, 64, 1, 1024)]
    options.behaviours, options.table, options.copy = 2_000_000, 1_000_000, 1 << 30
    options.tunings = [(512, tile, warps) for tile in (2048, 4096, 8192, 16384) for warps in (1, 2, 4, 8)]
    options.tunings += [(chunk, 8192, 4) for chunk in (128, 256, 1024, 4096)]
    if options.tiny:
        options.lengths, options.batch, options.rows, options.users = [24], 3, 500, 20
        options.rounds, options.repeats, options.precisions, options.kernels = 1, 1, ["fp32"], ["triton", "eager"]
        options.shapes, options.behaviours, options.table, options.copy = [(2, 8, 1, 40)], 80, 200, 1 << 20
        options.tunings = [(512, 8192, 4), (16, 512, 4)]
    elif options.cpu:
        options.precisions, options.kernels, options.shapes = ["fp32"], ["auto", "eager"], []
        torch.set_num_threads(1)
    if DEVICE == "cuda" and (options.tiny or options.cpu):
        parser.error("--tiny and --cpu are for machines without a GPU; set CUDA_VISIBLE_DEVICES= to hide it")
    if DEVICE != "cuda" and not (options.tiny or options.cpu):
        parser.error(
            "no CUDA device; --tiny runs small sizes through Triton's interpreter, --cpu the CPU's own kernels"
        )
    default = HERE / "results" / ("padded_cpu.json" if options.cpu else "gpu.json")
    result = options.result or (Path("build/gpu_tiny.json") if options.tiny else default)
    device = torch.cuda.get_device_name() if DEVICE == "cuda" else f"CPU{', interpreter' * options.tiny}"
    report: dict[str, Any] = {
        **heading(device=device, torch=torch.__version__),
        "batch": options.batch, "rows": options.rows,
    }  # fmt: skip
    names = ["padded", *options.kernels]
    columns = ["length", "precision", "phase", *(f"{name} ms" for name in names), *(f"{name} times" for name in names)]
    print("| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")
    report["steps"] = {length: steps(length, options) for length in options.lengths}
    if options.shapes:
        print("\n| fields | heads | length | tables | time / least | tuning |\n|---|---|---|---|---|---|")
        report["attention"] = attention(options)
        report["selection"] = selection(options)
    if not options.cpu:
        print()
        small = {"rows": 6000, "ids": 500, "users": 20, "length": 20, "batch": 16, "epoch": 8, "rounds": 1, "block": 2}
        with tempfile.TemporaryDirectory() as folder:
            asked = [
                "--device",
                DEVICE,
                "--work",
                folder,
                *(f"--{key}={n}" for key, n in small.items() if options.tiny),
            ]
            report["cache"] = cache.measure(cache.parse(asked))
        print()
        small = {"length": 20, "batch": 16, "rows": 500, "users": 20, "steps": 4, "every": 2}
        asked = ["--device", DEVICE, *(f"--{key}={n}" for key, n in small.items() if options.tiny)]
        report["pools"] = pools.measure(pools.parse(asked))
        print("\n| length | phase | time without / with |\n|---|---|---|")
        report["engine"] = {length: engine(length, options) for length in options.lengths}
    if options.data:
        print("\n| precision | test AUC |\n|---|---|")
        report["precision"] = precision(options.data, options)
    write(result, report)
    print(f"\n{result}")


if __name__ == "__main__":
    main()
