"""`lsm build-sequences`: raw logs to a trajectory store."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path
from typing import Any

from lsm_cli.data.building.check import check_logs
from lsm_cli.data.building.orders import add_orders
from lsm_cli.data.building.pipeline import build_store
from lsm_cli.data.description import Description, load_description
from lsm_cli.data.wording import hint
from lsm_cli.errors import InputError
from lsm_cli.report.console import Console, size

_UNITS = {
    "": 1,
    "b": 1,
    "k": 10**3,
    "m": 10**6,
    "g": 10**9,
    "t": 10**12,
    "ki": 2**10,
    "mi": 2**20,
    "gi": 2**30,
    "ti": 2**40,
}
_LEAST = 640 << 20  # what reading large parquet row groups takes, whatever is left for sorting


def build_sequences(
    console: Console,
    dataset: str,
    out: Path | None,
    root: Path | None = None,
    memory: str = "2GiB",
    overwrite: bool = False,
    check: bool = False,
    index: bool = True,
) -> dict[str, Any]:
    """Build a store, or with `check` only show how the logs would be read.

    Args:
        dataset: a dataset.toml, or the name of a shipped description.
        out: the store's folder; not needed for a check.
        root: folder that the description's paths are relative to.
        memory: what the build may use, e.g. "2GiB".
        index: also write the orders that searches go by.

    Returns:
        what --json prints.
    """
    file = find_description(dataset)
    own = root if root is not None or file.parent != _shipped() else Path()
    description = load_description(file, own)
    budget = parse_size(memory)
    if check:
        return _check(console, description)
    if out is None:
        raise InputError(
            "--out is missing: name the folder that the store is written to (or add --check to look at the logs)"
        )
    console.say(f"description  {file} ({description.name}), paths relative to {description.base}")
    console.say(f"memory       {size(budget)}: events are sorted in parts of the users that fit")
    console.say(_samples_from(description))
    with console.progress("building", unit="rows") as progress:
        manifest = build_store(description, out, memory=budget, overwrite=overwrite, index=index, progress=progress)
    _report(console, out, manifest)
    console.next(f"lsm train --recipe stacked_tin --data {out} --out runs/{description.name}")
    keep = (
        "name",
        "counts",
        "targets",
        "split",
        "dropped",
        "history",
        "positives",
        "meeting",
        "unmapped",
        "statistics",
        "notes",
        "build",
    )
    return {
        "store": str(out),
        "bytes": stored_bytes(manifest),
        "bytes_per_event": bytes_per_event(manifest),
        "index_bytes_per_event": index_bytes_per_event(manifest),
    } | {k: manifest[k] for k in keep}


def add_index(console: Console, out: Path | None) -> dict[str, Any]:
    """Give an existing store its search index."""
    if out is None:
        raise InputError("--out is missing: name the store that gets an index")
    with console.progress("ordering", unit="rows"):
        manifest = add_orders(out)
    found = {"store": str(out), "index": manifest["index"]["fields"]}
    found["index_bytes_per_event"] = index_bytes_per_event(manifest)
    console.text(
        f"{out}: {found['index_bytes_per_event']:.1f} bytes an event for the orders of {', '.join(found['index'])}"
    )
    console.next(f"lsm search --recipe hier_hard --data {out}")
    return found


def find_description(dataset: str) -> Path:
    """A path, or the name of a shipped description.

    Raises:
        InputError: neither.
    """
    path = Path(dataset)
    if path.is_dir() and (path / "dataset.toml").is_file():
        return path / "dataset.toml"
    if path.suffix or path.exists() or "/" in dataset:
        return path
    shipped = _shipped()
    names = sorted(file.stem for file in shipped.glob("*.toml"))
    if dataset not in names:
        raise InputError(f"{dataset}: no such file or shipped dataset{hint(dataset, names)}")
    return shipped / f"{dataset}.toml"


def _shipped() -> Path:
    try:
        return Path(str(resources.files("lsm_cli.recipes.datasets")))
    except ModuleNotFoundError:  # run from a checkout that is not installed
        return Path(__file__).parents[2] / "recipes" / "datasets"


def parse_size(text: str) -> int:
    """'2GiB', '512 MB', '1.5g' -> bytes.

    Raises:
        InputError: not a size, or too little to work with.
    """
    match = re.fullmatch(r"([0-9.]+)\s*([kmgt]?i?)b?", text.strip().lower())
    if not match or match[1].count(".") > 1 or match[1] == "." or match[2] == "i":
        raise InputError(f"--memory {text}: not a size; write e.g. 2GiB or 512MiB")
    found = int(float(match[1]) * _UNITS[match[2]])
    if found < _LEAST:
        raise InputError(f"--memory {text}: the least that a build works with is {size(_LEAST)}")
    return found


def bytes_per_event(manifest: dict[str, Any]) -> float:
    """Size of the trajectories, offsets included, divided by the number of events."""
    stored = sum(entry["bytes"] for name, entry in manifest["files"].items() if name.startswith("events/"))
    return round(stored / manifest["counts"]["events"], 2)


def index_bytes_per_event(manifest: dict[str, Any]) -> float:
    stored = sum(entry["bytes"] for entry in manifest.get("index", {}).get("files", {}).values())
    return round(stored / max(manifest["counts"]["events"], 1), 2)


def stored_bytes(manifest: dict[str, Any]) -> int:
    """Size of all data files."""
    files = [*manifest["files"].values(), *manifest.get("index", {}).get("files", {}).values()]
    return sum(entry["bytes"] for entry in files)


def _samples_from(description: Description) -> str:
    made = description.samples.from_events
    if made is None:
        return f"samples      from {', '.join(description.samples.path)}"
    positive = ", ".join(made.positive) or "every event"
    return (
        f"samples      made from events: {positive} is positive, {made.negatives} negatives each drawn by {made.draw}"
        f" among items seen before the request, seed {made.seed}"
    )


def _report(console: Console, out: Path, manifest: dict[str, Any]) -> None:
    counts, built = manifest["counts"], manifest["build"]
    for note in manifest["notes"]:
        console.say(f"note         {note}")
    console.say(f"split        {manifest['split']['how']}")
    rows = []
    for split, number in counts["samples"].items():
        dates = manifest["split"]["dates"][split] or (None, None)
        rates = []
        for target in manifest["targets"]:
            tally = manifest["positives"][target][split]
            rates.append(f"{tally['positive'] / tally['observed']:.2%}" if tally["observed"] else None)
        rows.append([split, f"{number:,}", *dates, *rates])
    console.table("samples", ["split", "rows", "first", "last", *(f"{t} = 1" for t in manifest["targets"])], rows)
    rows = [[key, reason, f"{n:,}"] for key, lost in manifest["dropped"].items() for reason, n in lost.items()]
    if rows:
        console.table("rows not used", ["where", "why", "rows"], rows)
    fields = [
        [name, f"{info['ids'] - 2:,}", _trained(manifest, name, info), info["dtype"], _where(info)]
        for name, info in manifest["fields"].items()
    ]
    console.table("fields", ["field", "values", "seen in training", "stored as", "known of"], fields)
    if any(row["samples_meeting"] or row["events_meeting"] for row in manifest["meeting"]):
        _report_meeting(console, manifest["meeting"])
    if manifest["unmapped"]:
        _report_unmapped(console, manifest)
    history = manifest["history"]
    console.table(
        f"store {out}",
        ["", ""],
        [
            ["users", f"{counts['users']:,}"],
            ["events", f"{counts['events']:,}"],
            ["from", manifest["events"][0]],
            ["to", manifest["events"][1]],
            ["history p50 / p90 / p99 / max", " / ".join(f"{history[k]:,}" for k in ("p50", "p90", "p99", "max"))],
            ["size", size(stored_bytes(manifest))],
            ["bytes an event", _bytes_per_event(manifest)],
            ["built in", f"{built['seconds']:.1f} s, {built['events_per_second']:,} events a second"],
        ],
        note="history: behaviours visible to a sample, all strictly before its request",
    )


def _bytes_per_event(manifest: dict[str, Any]) -> str:
    index = index_bytes_per_event(manifest)
    return f"{bytes_per_event(manifest):.1f}" + (f", and {index:.1f} for the search index" if index else "")


def _trained(manifest: dict[str, Any], name: str, info: dict[str, Any]) -> str:
    if name != "category":
        return f"{info['trained'] - 2:,}"
    return " / ".join(f"{level['trained'] - 2:,}" for level in manifest["levels"])


def _where(info: dict[str, Any]) -> str:
    return " and ".join(
        w for w, there in (("behaviours", info["in_history"]), ("candidates", info["in_sample"])) if there
    )


def _report_meeting(console: Console, met: list[dict[str, Any]]) -> None:
    """Shares of events and samples whose category node is also used by another domain."""

    def share(part: int, whole: int) -> str | None:
        return f"{part / whole:.1%}" if whole else None

    domains = {row["domain"] for row in met}
    rows = []
    for row in met:
        events = share(row["events_meeting"], row["events"]) if len(domains) > 1 else None
        rows.append([row["domain"] or "(none)", row["level"], events, share(row["samples_meeting"], row["samples"])])
    what = "whose node another domain has too" if len(domains) > 1 else "whose node occurs among the events"
    console.table(f"categories {what}", ["domain", "level", "events", "samples"], rows)


def _report_unmapped(console: Console, manifest: dict[str, Any]) -> None:
    """The largest categories that meet nothing, and how to map them."""
    rows = [[row["domain"], row["path"], f"{row['events']:,}", f"{row['samples']:,}"] for row in manifest["unmapped"]]
    align = manifest["description"].get("taxonomy", {}).get("align")
    file = f"add lines to {align}" if align else 'name a csv under [taxonomy], align = "FILE.csv"'
    console.table(
        "largest categories that meet no other domain",
        ["domain", "path", "events", "samples"],
        rows,
        note=f"to map them, {file}; its columns are domain,path,shared",
    )


def _check(console: Console, description: Description) -> dict[str, Any]:
    found = check_logs(description)
    for block in found["blocks"]:
        console.table(
            f"{block['key']}: {block['files'][0]}"
            + (f" and {len(block['files']) - 1} more" if len(block["files"]) > 1 else ""),
            ["role", "column", "type", "for example", "read as"],
            [[c["role"], c["column"], c["type"], c["raw"], c["read"]] for c in block["columns"]],
        )
    for problem in found["problems"]:
        console.warn(problem)
    if found["problems"]:
        raise InputError(f"{description.file}: {len(found['problems'])} problem(s), see above")
    console.text("every column was understood in the head of every file")
    return found
