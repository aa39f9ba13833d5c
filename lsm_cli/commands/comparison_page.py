"""compare.html: what was compared, on what, how sure, where, and at what cost; one file, for people who decide."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from lsm_cli.engine.compare import METRICS, WORDS
from lsm_cli.engine.gmv import sentences
from lsm_cli.engine.slices import title
from lsm_cli.errors import InputError, LsmError
from lsm_cli.report import html
from lsm_cli.report.console import count, size

PAGE = "compare.html"


def write_page(result: dict[str, Any], folder: Path) -> Path:
    """Write the page of a comparison, from what `lsm eval --json` prints.

    Raises:
        InputError: the folder cannot be made. LsmError: the file cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be created ({error.strerror}); choose another --out") from None
    file, temporary = folder / PAGE, folder / f".{PAGE}.tmp"
    try:
        temporary.write_text(_page(result).render())
        os.replace(temporary, file)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise LsmError(f"{file}: could not be written ({error.strerror or error}); choose another --out") from None
    return file


def _page(result: dict[str, Any]) -> html.Page:
    split, mine = result["split"], result["recipe"]
    against = result["against"]
    page = html.Page(f"{mine} against {' and '.join(entry['title'] for entry in against.values())}")
    for entry in against.values():
        page.paragraph(f"{mine} ({result['run']}) and {entry['title']} ({entry['run']}):")
        for target, one in entry["differences"].items():
            page.paragraph(f"{target}: " + "; ".join(f"{WORDS[name]} {one[name]['verdict']}" for name in METRICS) + ".")
        if "ablation" in entry:
            page.paragraph(f"{entry['title']}: {entry['ablation']}.")
    if "gmv" in result:
        page.paragraph(f"Money: GMV lift over the baseline, {result['gmv']['lift']['verdict']}.")
    summary = next(iter(result[split].values()))
    page.paragraph(
        f"Both scored the same {summary['n']:,} {split} samples of {result['store']}. Intervals hold "
        f"{result['level']:.0%} of the time; they come from {result['replicates']:,} draws of users with replacement, "
        "so they say how far the result would move with other users, not with another training seed or another month. "
        "Each interval stands for itself: among twenty lines one is expected to miss."
    )
    for key, entry in against.items():
        _differences(page, mine, entry)
        if key == "baseline" and "gmv" in result:
            _money(page, mine, entry["title"], result["gmv"])
        _slices(page, mine, entry)
    _calibration(page, result)
    _cost(page, result)
    return page


def _differences(page: html.Page, mine: str, entry: dict[str, Any]) -> None:
    rows = []
    for target, one in entry["differences"].items():
        for name in METRICS:
            rows.append([f"{target} {WORDS[name]}", *_cells(one[name])])
    columns = ["", mine, entry["title"], "difference", "interval", "verdict"]
    page.table(f"How sure: {mine} against {entry['title']}", columns, rows)


def _slices(page: html.Page, mine: str, entry: dict[str, Any]) -> None:
    for target, one in entry["differences"].items():
        for kind, groups in one["slices"].items():
            told = [
                (name, part["auc"]["low"], part["auc"]["difference"], part["auc"]["high"])
                for name, part in groups.items()
                if part["auc"]["low"] is not None
            ]
            if len(groups) < 2 or not told:
                continue
            page.intervals(f"{target}: AUC difference to {entry['title']}, by {title(kind)}", told)
            rows = [
                [
                    name,
                    *_cells(part["auc"]),
                    _signed(part["gauc"]["difference"]),
                    _signed(part["logloss"]["difference"]),
                ]
                for name, part in groups.items()
            ]
            columns = [title(kind), mine, entry["title"], "AUC difference", "interval", "verdict", "GAUC", "log loss"]
            page.table(f"{target} by {title(kind)}", columns, rows)


def _money(page: html.Page, mine: str, other: str, money: dict[str, Any]) -> None:
    rows = [["value-weighted AUC", *_cells(money["value_auc"])]]
    if money["method"] == "replay":
        share = {name: None if part is None else f"{part:.1%}" for name, part in money["captured"].items()}
        what = f"GMV in the first {money['shown']} of each {money['unit']}, share of the best order"
    else:
        share = {name: None if part is None else f"{part:.4g}" for name, part in money["value_per_request"].items()}
        what = "GMV per request"
    lift = money["lift"]
    span = None if lift["low"] is None else f"{lift['low']:+.1%} to {lift['high']:+.1%}"
    value = None if lift["lift"] is None else f"{lift['lift']:+.1%}"
    rows.append([what, share["run"], share["other"], value, span, lift["word"]])
    rows.append([*(["the same, logged order"] if money["method"] == "replay" else ["the same, the log's policy"]),
                 share.get("logged order", share.get("log")), None, None, None, None])  # fmt: skip
    page.table("GMV", ["", mine, other, "difference", "interval", "verdict"], rows)
    page.paragraph(money["how"])
    for line in sentences(money):
        page.paragraph(line)


def _calibration(page: html.Page, result: dict[str, Any]) -> None:
    split, against = result["split"], result["against"]
    named = {result["recipe"]: result[split]}
    if "baseline" in against:
        named[against["baseline"]["title"]] = against["baseline"][split]
    for target in result[split]:
        curves = {
            name: [(one["predicted"], one["observed"]) for one in targets[target]["calibration_curve"]["bins"]]
            for name, targets in named.items()
            if target in targets
        }
        most = max((x for line in curves.values() for x, _ in line), default=0.0)
        page.lines(
            f"{target}: observed share against predicted probability", {**curves, "perfect": [(0, 0), (most, most)]}
        )
        page.table(
            f"{target}: calibration",
            ["", "predicted / observed", "expected calibration error"],
            [
                [name, _four(targets[target]["calibration"]), _four(targets[target]["calibration_curve"]["ece"])]
                for name, targets in named.items()
                if target in targets
            ],
        )


def _cost(page: html.Page, result: dict[str, Any]) -> None:
    costs = {result["recipe"]: result["cost"]}
    if "baseline" in result["against"]:
        costs[result["against"]["baseline"]["title"]] = result["against"]["baseline"]["cost"]
    rows = []
    for name, cost in costs.items():
        trained, memory = cost["training_samples_per_second"], cost["training_peak_memory_bytes"]
        rows.append(
            [
                name,
                count(cost["parameters"]),
                None if trained is None else count(trained),
                count(cost["scored_samples_per_second"]),
                None if memory is None else size(memory),
            ]
        )
    page.table("Cost", ["", "parameters", "trained samples/s", "scored samples/s", "memory in training"], rows)


def _cells(one: dict[str, Any]) -> list[str | None]:
    span = None if one["low"] is None else f"{one['low']:+.4f} to {one['high']:+.4f}"
    return [_four(one["run"]), _four(one["other"]), _signed(one["difference"]), span, one["word"]]


def _four(number: float | None) -> str | None:
    return None if number is None else f"{number:.4f}"


def _signed(number: float | None) -> str | None:
    return None if number is None else f"{number:+.4f}"
