"""The tables of README.md and benchmarks/README.md, written from the result files.

    python benchmarks/tables.py            # rewrite them
    python benchmarks/tables.py --check    # exit 1 where a page and the results disagree

A table stands between `<!-- table NAME -->` and `<!-- end -->`; the functions below are its NAMEs. A cell is the mean
over the seeds; ¹ marks a single seed.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PAGES = (ROOT / "README.md", ROOT / "benchmarks" / "README.md")
RESULTS = ROOT / "benchmarks" / "results"
PLACE = re.compile(r"(<!-- table (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def results(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text())["results"]


def short(value: float, digits: int, sign: str = "") -> str:
    """A share without its leading zero: .965, -.012, +.003."""
    return re.sub(r"(?<!\d)0\.", ".", f"{value:{sign}.{digits}f}")


def runs_of(entry: dict[str, Any]) -> list[dict[str, Any]]:
    return list(entry["seeds"].values()) if "seeds" in entry else [entry]


def auc_gauc(entry: dict[str, Any] | None, digits: int) -> str:
    if not entry or not runs_of(entry):
        return ""
    runs = runs_of(entry)
    means = [short(statistics.mean(run[key] for run in runs), digits) for key in ("auc", "gauc")]
    return " / ".join(means) + ("¹" if "seeds" in entry and len(runs) == 1 else "")


def grid(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [" | ".join(header), "|".join("---" for _ in header), *(" | ".join(row) for row in rows)]
    return "".join(f"|{line}|\n" if line.startswith("---") else f"| {line} |\n" for line in lines)


def accuracy() -> str:
    retail, news = results("retail"), results("news")
    names = {
        "dnn": "`dnn` (no sequence)",
        "mean_pool": "`mean_pool`",
        "din": "`din`",
        "tin": "`tin`",
        "stacked_tin": "`stacked_tin`",
        "LightGBM control": "LightGBM on match counts and popularity",
    }

    def row(name: str, text: str) -> list[str]:
        keys = [(retail, 50), (retail, 200), (retail, 1000), (news, 50), (news, 200)]
        found = []
        for held, length in keys:
            cap = 0 if name == "dnn" else length
            found.append(held.get(f"{name}@{cap}") or held.get(f"{name} train.epochs=1@{cap}"))
        return [text, *(auc_gauc(entry, 3) for entry in found)]

    header = ("", "retail, last 50", "last 200", "last 1000", "news, last 50", "last 200")
    return grid(header, [row(name, text) for name, text in names.items()])


def searchers() -> str:
    held = results("searchers_1_epoch")
    names = {
        "recent": "the most recent",
        "sim_hard": "`sim_hard` (leaf category)",
        "hier_hard, categories only": "`hier_hard`, categories only",
        "hier_hard": "`hier_hard` (item first)",
        "sim_soft": "`sim_soft`, shared embeddings, 16 wide",
        "twin": "`twin`, shared embeddings, 16 wide",
        "dare": "`dare`, attention 4 wide",
        "eta": "`eta`",
        "sdim": "`sdim`",
        "hybrid": "`hybrid`",
        "hier_hard + index": "`hier_hard`, matches of the whole history by the index",
    }
    rows = [[text, *(auc_gauc(held.get(f"{name}@{k}"), 4) for k in (20, 50, 100))] for name, text in names.items()]
    return grid(("read", "K = 20", "K = 50", "K = 100"), rows)


def worlds() -> str:
    held = results("worlds")
    ideas = {
        "tempos": ("targets with rhythms of their own", "time tables of each target"),
        "noise": ("noise fields beside informative ones", "DSI-TIN"),
        "third_order": ("two behaviours and the ad together", "stacked TIN"),
        "disagree": ("what is similar is not what informs", "decoupled attention"),
        "domains": ("signal only in content domains", "aligned domains against ads only"),
    }
    seeds = sorted({key.split("@")[1] for key in held})
    rows = []
    for world, (cause, idea) in ideas.items():
        here = [seed for seed in seeds if f"{world}/{world}@{seed}" in held]
        plain, matching, truth = (
            [held[f"{world}/{name}@{seed}"]["auc"] for seed in here] for name in ("tin", world, "truth")
        )
        closed = [(best - low) / (top - low) for low, best, top in zip(plain, matching, truth, strict=True)]
        spread = f" ± {statistics.stdev(closed):.0%}" if len(closed) > 1 else ""
        # domains are in the logs: `tin` on all of them has the idea
        own, rival = ("tin", "tin on ads_only") if world == "domains" else (world, "tin")
        pairs = [(f"control/{own}@{seed}", f"control/{rival}@{seed}") for seed in seeds]
        costs = [held[one]["auc"] - held[other]["auc"] for one, other in pairs if {one, other} <= held.keys()]
        cells = [short(statistics.mean(values), 3) for values in (plain, matching, truth)]
        cells += [f"{statistics.mean(closed):.0%}{spread}", short(statistics.mean(costs), 4, "+") if costs else ""]
        rows.append([f"`{world}`: {cause}", idea, *cells])
    return grid(("world", "idea", "`tin`", "idea", "truth", "of the gap closed", "in the control world"), rows)


STORES = [("retail", ""), ("news", ""), ("kuairand", "click"), ("kuairand", "long_view"), ("kuairand", "follow")]
CONTROL = "LightGBM control"
SHORT = ("dnn", "mean_pool", "din", "sasrec", "twin", "tin", "stacked_tin", "hier_hard", "tencent_ads", CONTROL)


def _every_recipe() -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Store -> recipe -> its entry, of recipes as they are shipped, and their names."""
    stores = {
        store: {key.rsplit("@", 1)[0]: entry for key, entry in results(f"recipes_{store}").items()}
        for store in dict(STORES)
    }
    names = dict.fromkeys(name for held in stores.values() for name in held if " " not in name or name == CONTROL)
    return stores, list(names)


def _ranked(entry: dict[str, Any] | None, target: str) -> str:
    """AUC / GAUC ± its standard deviation over the seeds."""
    if not entry or not runs_of(entry):
        return ""
    runs = [run["targets"][target] if target else run for run in runs_of(entry)]
    means = " / ".join(short(statistics.mean(run[key] for run in runs), 3) for key in ("auc", "gauc"))
    if len(runs) == 1:
        return means + ("¹" if "seeds" in entry else "")
    return f"{means} ± {short(statistics.stdev(run['gauc'] for run in runs), 3)}"


def _gauc(entry: dict[str, Any] | None) -> float:
    return statistics.mean(run["gauc"] for run in runs_of(entry)) if entry and runs_of(entry) else 0.0


def recipes() -> str:
    """Every recipe on every store, and what it costs on retail; the best GAUC there first."""
    stores, names = _every_recipe()
    costs = json.loads((RESULTS / "recipes_steps.json").read_text())["steps"]
    rows = []
    for name in sorted(names, key=lambda name: _gauc(stores["retail"].get(name)), reverse=True):
        runs, cost = list(stores["retail"].get(name, {}).get("seeds", {}).values()), costs.get(name)
        cells = [_ranked(stores[store].get(name), target) for store, target in STORES]
        cells.append(f"{cost['parameters'] / 1e3:,.0f} k" if cost else "")
        cells.append(f"{512e3 / cost['cpu_ms']:,.0f}" if cost else "")
        cells.append(f"{max(run['peak_memory_bytes'] for run in runs) / 2**20:,.0f}" if runs else "")
        rows.append([_named(name), *cells])
    titles = [" ".join(filter(None, column)) for column in STORES]
    return grid(("", *titles, "parameters", "samples/s", "MiB"), rows)


def recipes_short() -> str:
    stores, _ = _every_recipe()
    rows = [
        [_named(name), *(_ranked(stores[store].get(name), target) for store, target in STORES[:4])] for name in SHORT
    ]
    return grid(("", *(" ".join(filter(None, column)) for column in STORES[:4])), rows)


def _named(name: str) -> str:
    return "LightGBM on match counts and popularity" if name == CONTROL else f"`{name}`"


TABLES: dict[str, Callable[[], str]] = {
    table.__name__: table for table in (accuracy, recipes, recipes_short, searchers, worlds)
}


def filled(page: str) -> str:
    return PLACE.sub(lambda found: found[1] + TABLES[found[2]]() + found[3], page)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 where a table is not up to date")
    arguments = parser.parse_args()
    stale = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        if (new := filled(text)) != text:
            stale.append(str(page.relative_to(ROOT)))
            if not arguments.check:
                page.write_text(new, encoding="utf-8")
    if arguments.check and stale:
        sys.exit(f"{', '.join(stale)}: tables differ from benchmarks/results; run python benchmarks/tables.py")
    print("\n".join(stale) or "all tables are up to date")


if __name__ == "__main__":
    main()
