"""Training DIN at length 200 end to end beside FuxiCTR's DIN with its own loader, on the same samples and widths.

    python benchmarks/fuxictr.py

makes an environment of its own for FuxiCTR (`--venv`, once), generates a store, exports its samples to the files that
FuxiCTR's loader for long sequences reads, and trains both on the CPU, one thread each, in turn. Samples per second are
those of each side's own loop, loader included, start and validation excluded. Where FuxiCTR cannot be installed, lsm is
measured alone. Results go to benchmarks/results/fuxictr.json.

Equal on both sides: samples, batch size, item and category with one embedding width, attention network (PReLU), the
head's input (candidate and pooled history), tower widths, Adam, clipping, single precision. What differs is what is
compared: histories padded or not, attention spelled out or factored, Adam on whole tables or on the rows of the step.
CPU-seconds tell the same as seconds where nothing else runs, and the truth where something does.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from reports import heading, write

HERE = Path(__file__).parent
PINS = ["fuxictr==2.3.10", "numpy==2.4.6", "pandas==3.1.1", "polars==2.1.0", "pyarrow==26.0.1", "scikit-learn==1.9.1"]
DIM, ATTENTION, TOWER, RATE, CLIP = 16, 64, 128, 1e-3, 10.0


COLUMNS = ("samples_per_second", "samples_per_cpu_second", "loader_samples_per_cpu_second", "parameters")


def install(venv: Path) -> str | None:
    """Make the environment unless it is there; returns why it cannot be made, in one sentence."""
    done = venv / "installed"
    if done.exists() and done.read_text() == "\n".join(PINS):
        return None
    import torch

    wanted = [f"torch=={torch.__version__.split('+')[0]}", *PINS]
    for command in (
        [sys.executable, "-m", "venv", "--clear", venv],
        [venv / "bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *wanted],
        [venv / "bin/python", "-c", "import fuxictr, torch, model_zoo.LongCTR.DIN"],
    ):
        ran = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
        if ran.returncode:
            lines = [line for line in ran.stderr.splitlines() if line.strip()]
            return f"FuxiCTR cannot be installed in {venv} ({lines[-1].strip() if lines else ran.returncode})"
    done.write_text("\n".join(PINS))
    return None


def export(path: Path, out: Path) -> None:
    """The samples of a store as FuxiCTR's loader for long sequences wants them: items by user, attributes by item."""
    import numpy as np
    import polars as pl

    from lsm_cli.data.store import Store

    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    store = Store.open(path)
    samples, offsets = store.samples("train"), store.offsets
    items = store.fields["item"].rows
    category = np.zeros(items, np.int64)
    for ids, values in (
        (store.column("item"), store.column("category")),
        (samples.column("item"), samples.column("category")),
    ):
        category[ids] = values
    user = samples.column("user").astype(np.int64)
    pl.DataFrame(
        {
            "user_index": user,
            "item_index": samples.column("item").astype(np.int64),
            "seq_len": samples.column("end") - offsets[user],
            "label": samples.column("label.click").astype(np.int64),
        }
    ).write_parquet(out / "train.parquet")
    event = store.column("item").astype(np.int64)
    full = [event[start:stop].tolist() for start, stop in pairwise(offsets)]
    pl.DataFrame({"full_item_seq": full}).write_parquet(out / "user_info.parquet")
    number = np.arange(items)
    pl.DataFrame({"item_index": number, "item_id": number, "cate_id": category}).write_parquet(
        out / "item_info.parquet"
    )
    attribute = {"source": "item", "type": "categorical", "padding_idx": 0}
    features: list[dict[str, Any]] = [{name: {"type": "meta"}} for name in ("user_index", "item_index", "seq_len")]
    features.append({"item_id": {**attribute, "vocab_size": items}})
    features.append({"cate_id": {**attribute, "vocab_size": int(store.fields["category1"].rows)}})
    feature_map = {"dataset_id": "generated", "labels": ["label"], "features": features}
    (out / "feature_map.json").write_text(json.dumps(feature_map))


def run_fuxictr(data: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Inside its environment: FuxiCTR's model, loader and loop, as its own scripts put them together."""
    import torch
    from fuxictr.features import FeatureMap
    from fuxictr.pytorch.torch_utils import seed_everything
    from model_zoo.LongCTR.DIN.DIN import DIN
    from model_zoo.LongCTR.longctr_dataloader import LongCTRDataLoader

    class Timed(DIN):
        """Its loop over one epoch, with clocks around it."""

        def train_epoch(self, data_generator: Any) -> None:
            started = clocks()
            super().train_epoch(data_generator)
            self.spent = since(started)

    torch.set_num_threads(1)
    seed_everything(0)
    feature_map = FeatureMap("generated", str(data))
    feature_map.load(str(data / "feature_map.json"), {"embedding_dim": DIM})
    model = Timed(
        feature_map, model_root=str(data), model_id="din", metrics=["logloss"], monitor="logloss", monitor_mode="min",
        task="binary_classification", loss="binary_crossentropy", optimizer="adam", learning_rate=RATE, verbose=0,
        embedding_dim=DIM, attention_hidden_units=[ATTENTION], attention_hidden_activations="prelu",
        dnn_hidden_units=[TOWER, TOWER], dnn_activations="relu", eval_steps=1 << 40,
    )  # fmt: skip
    loader = LongCTRDataLoader(
        feature_map, str(data / "train.parquet"), str(data / "user_info.parquet"), str(data / "item_info.parquet"),
        batch_size=options.batch, shuffle=True, num_workers=options.workers, max_len=options.length,
    )  # fmt: skip
    started = clocks()
    samples = sum(len(mask) for _, _, mask in loader)
    alone = since(started)
    Path(model.model_dir).mkdir(exist_ok=True)
    model.save_weights(model.checkpoint)  # its `fit` reads a checkpoint at the end, and nothing is validated here
    model.fit(loader, epochs=1, max_gradient_norm=CLIP)
    return result(samples, model.spent, alone, sum(parameter.numel() for parameter in model.parameters()))


def run_lsm(path: Path, options: argparse.Namespace) -> dict[str, Any]:
    """A recipe of the same shape in the loop of `lsm train`."""
    import tempfile

    import numpy as np

    from lsm_cli import recipe as recipes
    from lsm_cli.data.store import Store
    from lsm_cli.engine.run import RunFolder
    from lsm_cli.engine.setup import Setup, parameters
    from lsm_cli.engine.train import Trainer

    class Timed(Trainer):
        """Its loop over one epoch, with clocks around it and no validation within."""

        def _epoch(self, validate_at: set[int]) -> None:
            started = clocks()
            super()._epoch(set())
            self.spent = since(started)

    overrides = [
        'data.fields=["item","category1"]', "data.statistics=false", "data.calendar=false",
        f"model.max_len={options.length}", f"model.dim={DIM}", "model.temporal=[]", "model.match_bias=false",
        "model.evidence=false", "model.bins=0", "model.cross=0", f"model.hidden=[{TOWER}, {TOWER}]",
        f"model.attention_hidden=[{ATTENTION}]", "train.table_optimizer=adam", f"train.table_lr={RATE}",
        f"train.lr={RATE}", "train.weight_decay=0", "train.unknown=0", f"train.clip={CLIP}", "train.epochs=1",
        f"train.batch_size={options.batch}", "train.precision=fp32", "train.device=cpu", "train.threads=1",
    ]  # fmt: skip
    recipe = recipes.load("din", overrides)
    store = Store.open(path)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Timed(Setup.of(recipe, store), RunFolder.start(f"{folder}/run", recipe, store, resume=False))
        order = np.random.default_rng(0).permutation(len(trainer.train))
        started = clocks()
        for first in range(0, len(order), options.batch):
            trainer.train.batch(order[first : first + options.batch], trainer.model)
        alone = since(started)
        trainer.fit()
        return result(len(order), trainer.spent, alone, parameters(trainer.model))


def clocks() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def since(started: tuple[float, float]) -> tuple[float, float]:
    """(wall seconds, CPU seconds of this process)."""
    return time.perf_counter() - started[0], time.process_time() - started[1]


def result(samples: int, spent: tuple[float, float], loader: tuple[float, float], parameters: int) -> dict[str, Any]:
    return {
        "samples_per_second": round(samples / spent[0], 1),
        "samples_per_cpu_second": round(samples / spent[1], 1),
        "loader_samples_per_second": round(samples / loader[0], 1),
        "loader_samples_per_cpu_second": round(samples / loader[1], 1),
        "parameters": parameters,
    }


def measure(python: Path, side: str, data: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Run one side in a process of its own, on one thread."""
    command = [python, "-P", __file__, "--side", side, "--data", data, "--length", options.length]
    command += ["--batch", options.batch, "--workers", options.workers]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    if side == "lsm":
        environment["PYTHONPATH"] = str(HERE.parent)
    ran = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, env=environment)
    if ran.returncode:
        raise SystemExit(f"{side} failed\n{ran.stderr}")
    return json.loads(ran.stdout.splitlines()[-1])


SIDES = {"lsm": run_lsm, "fuxictr": run_fuxictr}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--venv", type=Path, default=Path("build/fuxictr-venv"))
    parser.add_argument("--samples", type=int, default=30_000)
    parser.add_argument("--length", type=int, default=200)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=0, help="loader processes of FuxiCTR, beside its one thread")
    parser.add_argument("--work", type=Path, default=Path("build/benchmark-fuxictr"))
    parser.add_argument("--result", type=Path, default=HERE / "results/fuxictr.json")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(SIDES[options.side](options.data, options)))
        return
    from stores import write_store

    missing = install(options.venv)
    if missing:
        print(missing + "; only lsm is measured.")
    lengths = (options.length * 7 // 10, options.length)
    splits = {"train": options.samples, "valid": 1_000}
    store = write_store(options.work / "store", max(options.samples // 10, 1), lengths, splits, options.items)
    sides = {"lsm": (Path(sys.executable), store)}
    if not missing:
        export(store, options.work / "fuxictr")
        sides["fuxictr"] = (options.venv / "bin/python", options.work / "fuxictr")
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for _ in range(options.rounds):  # in turn, so that a busy machine slows both
        for side, (python, data) in sides.items():
            runs[side].append(measure(python, side, data, options))
            print(side, runs[side][-1], file=sys.stderr, flush=True)
    keys = runs["lsm"][0]
    middle = {side: {key: statistics.median(one[key] for one in found) for key in keys} for side, found in runs.items()}
    report: dict[str, Any] = {
        **heading(),
        "samples": options.samples, "length": options.length, "mean_length": sum(lengths) / 2, "batch": options.batch,
        "threads": 1, "workers": options.workers, "fuxictr": PINS, "skipped": missing,
        "median": middle, "runs": runs,
    }  # fmt: skip
    print("| DIN | samples/s | samples per CPU-second | its loader alone, per CPU-second | parameters |")
    print("|---|---|---|---|---|")
    for side, found in middle.items():
        print(f"| {side} | {' | '.join(f'{found[key]:,.0f}' for key in COLUMNS)} |")
    if not missing:
        report["ratio"] = {
            key: round(statistics.median(a[key] / b[key] for a, b in zip(*runs.values(), strict=True)), 2)
            for key in COLUMNS[:2]
        }
        print("ratio", report["ratio"])
    write(options.result, report)
    shutil.rmtree(options.work)


if __name__ == "__main__":
    main()
