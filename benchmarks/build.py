"""Building a store beside the same job in pandas and in DuckDB, and the memory of ever larger builds.

    python benchmarks/build.py --events 20000000 --impressions 2000000

generates the logs (parquet, two million rows a file, in no order), runs `lsm build-sequences`, pandas and DuckDB on
them, each in a process of its own, then lsm alone at 10, 20 and 50 million events (`--sweep ""` to skip). All three
encode every id, sort the events by user and time, write offsets and narrow columns, and point every impression at the
end of its history; the sum of all history lengths must agree. Results go to benchmarks/results/build.json.

    python benchmarks/build.py --no-index --events 5000000 --impressions 500000 --runs 4

instead builds with and without the search index in turn, and writes every order by itself; results go to
benchmarks/results/build_index.json.

Needs the extra `bench` (pandas, pyarrow, duckdb).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from reports import heading, write

HERE = Path(__file__).parent
DAY, START = 86_400, 1_700_000_000
LEVELS = (20, 200, 5_000)  # categories per level, strictly nested
DESCRIPTION = """
name = "generated"

[[events]]
path = "events-*.parquet"
user = "user"
item = "item"
time = { column = "ts", unit = "s" }
category = ["c1", "c2", "c3"]
scenario = { column = "scenario" }
action = { column = "action" }

[samples]
path = "impressions-*.parquet"
user = "user"
item = "item"
time = { column = "ts", unit = "s" }
category = ["c1", "c2", "c3"]
scenario = { column = "scenario" }
labels = { click = "label" }
"""


def generate(folder: Path, events: int, impressions: int, seed: int = 0, per_user: int = 40) -> None:
    """Write logs of so many events a user over 30 days; a million items of which few are popular."""
    import polars as pl

    folder.mkdir(parents=True)
    (folder / "dataset.toml").write_text(DESCRIPTION)
    users, items = max(events // per_user, 1), 1_000_000
    for name, rows in (("events", events), ("impressions", impressions)):
        for number, first in enumerate(range(0, rows, 2_000_000)):
            rng = np.random.default_rng([seed, number, rows])
            size = min(2_000_000, rows - first)
            item = np.minimum(items ** rng.random(size), items - 1).astype(np.int64)
            leaf = item * 7919 % LEVELS[2]
            columns = {
                "user": rng.integers(0, users, size),
                "item": item,
                "ts": START + rng.integers(0, 30 * DAY, size),
                "c1": leaf * LEVELS[0] // LEVELS[2],
                "c2": leaf * LEVELS[1] // LEVELS[2],
                "c3": leaf,
                "scenario": rng.integers(0, 4, size).astype(np.int32),
            }
            columns |= {"action": rng.integers(0, 3, size).astype(np.int32)} if name == "events" else {}
            columns |= {"label": rng.integers(0, 2, size).astype(np.int8)} if name == "impressions" else {}
            pl.DataFrame(columns).write_parquet(folder / f"{name}-{number:03}.parquet", row_group_size=1 << 19)


def run_lsm(logs: Path, out: Path, memory: str, index: bool = True) -> int:
    from lsm_cli.commands.build import build_sequences
    from lsm_cli.data.store import Store
    from lsm_cli.report.console import Console

    build_sequences(Console(quiet=True, json=True), str(logs / "dataset.toml"), out, memory=memory, index=index)
    store = Store.open(out)
    ends = [(s.column("end") - store.offsets[s.column("user")]).sum() for s in map(store.samples, store.splits)]
    return int(sum(ends))


def run_bare(logs: Path, out: Path, memory: str) -> int:
    """lsm without the search index."""
    return run_lsm(logs, out, memory, index=False)


def run_pandas(logs: Path, out: Path, memory: str) -> int:
    """Carefully: narrow types early, one factorize an id, one packed key for sorting and for the pointers."""
    import pandas as pd

    out.mkdir()
    events = pd.read_parquet(sorted(logs.glob("events-*.parquet")))
    rows = pd.read_parquet(sorted(logs.glob("impressions-*.parquet")))
    size = len(events)
    stored = {}
    for name in ("user", "item", "scenario"):
        codes, values = pd.factorize(pd.concat([events.pop(name), rows.pop(name)], ignore_index=True))
        stored[name] = codes.astype(np.int32) + 2
        np.save(out / f"vocab.{name}.npy", values)
    codes, values = pd.factorize(events.pop("action"))
    action = codes.astype(np.int8) + 2
    paths = pd.concat([events[["c1", "c2", "c3"]], rows[["c1", "c2", "c3"]]], ignore_index=True)
    stored["category"] = paths.groupby(["c1", "c2", "c3"], sort=True).ngroup().to_numpy().astype(np.int16) + 2
    del paths
    base = int(events["ts"].min())
    time_, at = (events["ts"] - base).to_numpy(), (rows["ts"] - base).to_numpy()
    label = rows["label"].to_numpy()
    del events, rows
    user = stored["user"][:size].astype(np.int64)
    key = user << 32 | time_
    order = np.argsort(key, kind="stable")
    key = key[order]
    np.save(out / "offsets.npy", np.append(0, np.cumsum(np.bincount(user, minlength=stored["user"].max() + 1))))
    np.save(out / "time.npy", time_.astype(np.int32)[order])
    np.save(out / "action.npy", action[order])
    for name, dtype in (("item", np.int32), ("scenario", np.int8), ("category", np.int16)):
        np.save(out / f"{name}.npy", stored[name][:size].astype(dtype)[order])
        np.save(out / f"sample.{name}.npy", stored[name][size:].astype(dtype))
    who = stored["user"][size:].astype(np.int64)
    end = np.searchsorted(key, who << 32 | at, side="left")
    for name, values in (("user", who), ("end", end), ("time", at), ("label", label)):
        np.save(out / f"sample.{name}.npy", values)
    return int((end - np.searchsorted(key, who << 32, side="left")).sum())


def run_duckdb(logs: Path, out: Path, memory: str) -> int:
    """In SQL: dictionaries as tables, one ordered copy, an as-of join for the pointers."""
    import duckdb

    out.mkdir()
    db = duckdb.connect(str(out / "work.duckdb"))
    db.execute(f"SET memory_limit = '{memory}'")
    db.execute(f"SET threads = {os.cpu_count()}")
    db.execute(f"SET temp_directory = '{out / 'spill'}'")
    db.execute(f"CREATE VIEW ev AS SELECT * FROM read_parquet('{logs}/events-*.parquet')")
    db.execute(f"CREATE VIEW im AS SELECT * FROM read_parquet('{logs}/impressions-*.parquet')")
    for name in ("user", "item", "scenario"):
        db.execute(
            f'CREATE TABLE v_{name} AS SELECT "{name}" AS value, '
            f'(row_number() OVER (ORDER BY count(*) DESC, "{name}") + 1)::INT AS id '
            f'FROM (SELECT "{name}" FROM ev UNION ALL SELECT "{name}" FROM im) GROUP BY 1'
        )
    db.execute(
        "CREATE TABLE v_action AS SELECT action AS value, (row_number() OVER (ORDER BY action) + 1)::TINYINT AS id "
        "FROM ev GROUP BY 1"
    )
    db.execute(
        "CREATE TABLE v_cat AS SELECT c1, c2, c3, (row_number() OVER (ORDER BY c1, c2, c3) + 1)::SMALLINT AS id "
        "FROM (SELECT c1, c2, c3 FROM ev UNION SELECT c1, c2, c3 FROM im)"
    )
    base = db.execute("SELECT min(ts) FROM ev").fetchall()[0][0]
    db.execute(
        f"CREATE TABLE events AS SELECT u.id AS usr, (ts - {base})::INT AS time, i.id AS item, c.id AS category, "
        "s.id::TINYINT AS scenario, a.id AS action "
        "FROM ev JOIN v_user u ON ev.user = u.value JOIN v_item i ON ev.item = i.value "
        "JOIN v_scenario s ON ev.scenario = s.value JOIN v_action a ON ev.action = a.value "
        "JOIN v_cat c ON ev.c1 = c.c1 AND ev.c2 = c.c2 AND ev.c3 = c.c3 ORDER BY usr, time"
    )
    plain = "(COMPRESSION uncompressed)"
    db.execute(f"COPY (SELECT time, item, category, scenario, action FROM events) TO '{out}/events.parquet' {plain}")
    db.execute("CREATE TABLE ranked AS SELECT usr, time, rowid AS place FROM events")
    db.execute("CREATE TABLE offsets AS SELECT usr, min(place) AS first FROM ranked GROUP BY usr ORDER BY usr")
    db.execute(f"COPY offsets TO '{out}/offsets.parquet' {plain}")
    db.execute("CREATE TABLE last AS SELECT usr, time, max(place) + 1 AS after FROM ranked GROUP BY usr, time")
    db.execute(
        f"CREATE TABLE samples AS SELECT u.id AS usr, (ts - {base})::INT AS time, i.id AS item, c.id AS category, "
        "s.id::TINYINT AS scenario, label "
        "FROM im JOIN v_user u ON im.user = u.value JOIN v_item i ON im.item = i.value "
        "JOIN v_scenario s ON im.scenario = s.value JOIN v_cat c ON im.c1 = c.c1 AND im.c2 = c.c2 AND im.c3 = c.c3"
    )
    db.execute(
        "CREATE TABLE pointed AS SELECT s.*, coalesce(l.after, o.first, 0) AS stop, coalesce(o.first, 0) AS start "
        "FROM samples s ASOF LEFT JOIN last l ON s.usr = l.usr AND s.time > l.time "
        "LEFT JOIN offsets o ON s.usr = o.usr"
    )
    db.execute(f"COPY pointed TO '{out}/samples.parquet' {plain}")
    return int(db.execute("SELECT sum(stop - start) FROM pointed").fetchall()[0][0])


RUNNERS = {"lsm": run_lsm, "pandas": run_pandas, "duckdb": run_duckdb}
BARE = "lsm --no-index"
ORDERS = ["category1", "category2", "category3"]


def measure(tool: str, logs: Path, work: Path, memory: str) -> dict[str, float]:
    """Run one tool in a process of its own; wall and CPU seconds, peak resident bytes, bytes written."""
    out = work / f"out-{tool}"
    shutil.rmtree(out, ignore_errors=True)
    started = time.monotonic()
    command = [sys.executable, __file__, "--only", tool, "--logs", str(logs), "--out", str(out), "--memory", memory]
    child = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(HERE.parent)}
    )
    assert child.stdout is not None
    said = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    wall = time.monotonic() - started
    if status:
        raise SystemExit(f"{tool} failed")
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    found = {
        "wall_s": round(wall, 2), "cpu_s": round(usage.ru_utime + usage.ru_stime, 2), "peak_bytes": peak,
        "history_sum": int(said.split()[-1]),
    }  # fmt: skip
    if tool in ("lsm", BARE):
        stored = sum(file.stat().st_size for file in (out / "events").iterdir())
        offsets = np.load(out / "events/offsets.npy", mmap_mode="r")
        found["bytes_per_event"] = round(stored / int(offsets[-1]), 2)
        index = [file.stat().st_size for file in (out / "index").glob("*.npy")]
        found["index_bytes_per_event"] = round(sum(index) / int(offsets[-1]), 2)
    shutil.rmtree(out)
    return found


def compare_index(options: argparse.Namespace) -> dict[str, Any]:
    """Builds with and without the index in turn; then each order, and those of the category levels together."""
    from lsm_cli.data.building.orders import shared_readers, write_orders
    from lsm_cli.data.building.workspace import Workspace
    from lsm_cli.data.store import Store

    logs, store_path = options.work / "logs", options.work / "store"
    runs: dict[str, list[dict[str, float]]] = {"lsm": [], BARE: []}
    for _ in range(options.runs):
        for tool, taken in runs.items():
            taken.append(measure(tool, logs, options.work, options.memory))
            print(tool, taken[-1], flush=True)
    best = {
        unit: {tool: min(run[unit] for run in taken) for tool, taken in runs.items()} for unit in ("wall_s", "cpu_s")
    }
    run_lsm(logs, store_path, options.memory)
    store = Store.open(store_path)
    readers = shared_readers(store_path / "events", store.fields.values(), store.ancestors)
    orders = {}
    for name, fields in {**{field: [field] for field in store.index}, "category levels": ORDERS}.items():
        spent = []
        for _ in range(options.runs):
            folder = options.work / "orders"
            folder.mkdir()
            started, worked = time.perf_counter(), time.process_time()
            write_orders(Workspace(folder), store.offsets, {field: readers[field] for field in fields})
            spent.append((time.perf_counter() - started, time.process_time() - worked))
            size = sum(file.stat().st_size for file in folder.rglob("*.npy"))
            shutil.rmtree(folder)
        wall, cpu = (min(one) for one in zip(*spent, strict=True))
        orders[name] = {
            "wall_s": round(wall, 2), "cpu_s": round(cpu, 2), "bytes_per_event": round(size / store.events, 2),
            "wall_share": round(wall / best["wall_s"][BARE], 3), "cpu_share": round(cpu / best["cpu_s"][BARE], 3),
        }  # fmt: skip
        print(name, orders[name], flush=True)
    whole = {unit: round(times["lsm"] / times[BARE] - 1, 3) for unit, times in best.items()}
    return {"best": best, "index adds": whole, "orders": orders, "runs": runs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=20_000_000)
    parser.add_argument("--impressions", type=int, default=2_000_000)
    parser.add_argument("--memory", default="2GiB")
    parser.add_argument("--runs", type=int, default=2, help="of each tool, in turn; the fastest counts")
    parser.add_argument("--sweep", default="10000000,20000000,50000000", help="events of the runs of lsm alone")
    parser.add_argument("--work", type=Path, default=Path("build/benchmark"))
    parser.add_argument("--no-index", action="store_true", help="compare builds with and without the search index")
    parser.add_argument("--result", type=Path, help="default: in benchmarks/results")
    parser.add_argument("--only", choices=[*RUNNERS, BARE], help=argparse.SUPPRESS)
    parser.add_argument("--logs", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        print((RUNNERS | {BARE: run_bare})[options.only](options.logs, options.out, options.memory))
        return
    shutil.rmtree(options.work, ignore_errors=True)
    logs = options.work / "logs"
    generate(logs, options.events, options.impressions)
    report: dict[str, Any] = {
        **heading(),
        "events": options.events, "impressions": options.impressions, "memory": options.memory,
    }  # fmt: skip
    if options.no_index:
        report |= compare_index(options)
        write(options.result or HERE / "results/build_index.json", report)
        shutil.rmtree(options.work)
        return
    runs: dict[str, list[dict[str, float]]] = {tool: [] for tool in RUNNERS}
    for _ in range(options.runs):
        for tool in RUNNERS:  # in turn, so that a busy machine slows all of them
            runs[tool].append(measure(tool, logs, options.work, options.memory))
            print(tool, runs[tool][-1], flush=True)
    best = {tool: min(found, key=lambda run: run["wall_s"]) for tool, found in runs.items()}
    if len({run["history_sum"] for run in best.values()}) > 1:
        raise SystemExit("the tools disagree on the histories")
    shutil.rmtree(logs)
    sweep = {}
    for events in [int(size) for size in options.sweep.split(",") if size]:
        generate(logs, events, options.impressions)
        sweep[events] = measure("lsm", logs, options.work, options.memory)
        print(f"lsm, {events:,} events", sweep[events], flush=True)
        shutil.rmtree(logs)
    lsm = best["lsm"]
    report |= {
        "best": best, "runs": runs, "sweep": sweep,
        "speedup": {tool: round(best[tool]["wall_s"] / lsm["wall_s"], 2) for tool in RUNNERS},
        "cpu_ratio": {tool: round(best[tool]["cpu_s"] / lsm["cpu_s"], 2) for tool in RUNNERS},
    }  # fmt: skip
    write(options.result or HERE / "results/build.json", report)
    print(json.dumps({key: report[key] for key in ("speedup", "cpu_ratio")}))
    shutil.rmtree(options.work)


if __name__ == "__main__":
    main()
