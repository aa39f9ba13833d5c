"""A target seen on few samples: temporal tables of its own, a residual of its own on shared ones, or only shared ones.

    python benchmarks/few_shot.py --out benchmarks/results/few_shot.json

The world `tempos`, where installs follow the last hours and orders weekdays of the last weeks; of the training samples
only a share, drawn with the seed, tells whether it was an order (`null` elsewhere, so it does not count). Everything
else is as in `worlds.py`; test AUC of orders, all test samples labelled. Finished entries of the result file are kept.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

import polars as pl

from accuracy import opened
from lsm_cli.commands.build import build_sequences
from worlds import IDEAS, USERS, Worlds, measured, quiet

TABLES = ("shared", "own", "residual")


def hide(folder: Path, share: float, seed: int) -> None:
    """Leave the order label on a share of the samples before the validation day."""
    path, days = folder / "impressions.parquet", (folder / "dataset.toml").read_text().split('valid = "')[1][:10]
    samples = pl.read_parquet(path)
    end = pl.lit(days).str.to_datetime("%Y-%m-%d").dt.epoch("ms")
    drawn = pl.int_range(pl.len()).shuffle(seed) < share * pl.len()
    samples.with_columns(order=pl.when(drawn | (pl.col("time_ms") >= end)).then("order")).write_parquet(path)


def table(results: dict[str, dict[str, float]], shares: list[float]) -> str:
    lines = [f"| order labels | {' | '.join(TABLES)} | truth |", "|---|---|---|---|---|"]
    for share in shares:
        cells = []
        for name in (*TABLES, "truth"):
            values = [entry["order"] for key, entry in results.items() if key.startswith(f"{share}/{name}@")]
            spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.4f}{spread}" if values else "")
        lines.append(f"| {share:.1%} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shares", nargs="+", type=float, default=[1.0, 0.02, 0.005])
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--users", type=int, default=USERS)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    results, save = opened(arguments.out, 1)
    for seed in arguments.seeds:
        for share in arguments.shares:
            if all(f"{share}/{name}@{seed}" in results for name in (*TABLES, "truth")):
                continue
            with tempfile.TemporaryDirectory() as folder:
                worlds, world = Worlds(Path(folder), arguments.users), Path(folder) / f"tempos-{seed}"
                truth = worlds.scores("tempos", seed)["order"]["test"]["true"]["auc"]
                results[f"{share}/truth@{seed}"] = {"order": truth}
                hide(world, share, seed)
                build_sequences(quiet(), str(world / "dataset.toml"), world / "store", None, "1GiB", index=False)
                for name in TABLES:
                    found = measured(
                        world / "store", f"tin model.time_tables={name}", IDEAS["tempos"].settings, seed, 1
                    )
                    results[f"{share}/{name}@{seed}"] = found["targets"]
                    print(share, name, seed, found["targets"], file=sys.stderr, flush=True)
            save()
    print(table(results, arguments.shares))


if __name__ == "__main__":
    main()
