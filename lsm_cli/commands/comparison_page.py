"""compare.html and ablation.html: what was compared, on what, how sure, where, at what cost; one file, to decide by."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from lsm_cli.engine.slices import title
from lsm_cli.errors import InputError, LsmError
from lsm_cli.judging.compare import METRICS, WORDS
from lsm_cli.judging.gmv import sentences
from lsm_cli.report import html
from lsm_cli.report.console import count, size

COMPARED, ABLATED = "compare.html", "ablation.html"  # with another run, or with itself without some behaviours


def make_room(folder: Path) -> None:
    """Before the work whose page goes there: the folder is there and can be written to.

    Raises:
        InputError: it cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be created ({error.strerror}); choose another --out") from None
    if not os.access(folder, os.W_OK):
        raise InputError(f"{folder}: cannot be written to; choose another --out")


def write_page(result: dict[str, Any], folder: Path) -> Path:
    """Write the page of a comparison, from what `lsm eval --json` prints.

    Raises:
        LsmError: the file cannot be written.
    """
    name = COMPARED if "baseline" in result["against"] else ABLATED
    file, temporary = folder / name, folder / f".{name}.tmp"
    try:
        temporary.write_text(_page(result).render())
        os.replace(temporary, file)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise LsmError(f"{file}: could not be written ({error.strerror or error}); choose another --out") from None
    return file


def _page(result: dict[str, Any]) -> html.Page:
    mine, against = result["recipe"], result["against"]
    page = html.Page(f"{mine} against {' and '.join(entry['title'] for entry in against.values())}")
    for entry in against.values():
        for target, one in entry["differences"].items():
            said = "; ".join(f"{WORDS[name]} {one[name]['verdict']}" for name in METRICS)
            page.paragraph(f"{mine} against {entry['title']}, {target}: {said}.")
        if "ablation" in entry:
            page.paragraph(f"{entry['title']}: {entry['ablation']}.")
    if "gmv" in result:
        page.paragraph(f"Money: {sentences(result['gmv'])[0]}")
    for entry in against.values():
        _differences(page, mine, entry)
    if "gmv" in result:
        _money(page, mine, against["baseline"]["title"], result["gmv"])
    _about(page, result)
    for key, entry in against.items():
        if key == "baseline" or "baseline" not in against:
            _slices(page, mine, entry)
    named = {mine: result[result["split"]]}
    if "baseline" in against:
        named[against["baseline"]["title"]] = against["baseline"][result["split"]]
    calibration(page, named)
    _cost(page, result)
    return page


def _about(page: html.Page, result: dict[str, Any]) -> None:
    split, store = result["split"], result["store"]
    rows = [[f"{result['recipe']}, the run", result["run"]]]
    rows += [[entry["title"], entry["run"]] for entry in result["against"].values()]
    rows += [[f"{target}, {split} samples of {store}", f"{one['n']:,}"] for target, one in result[split].items()]
    page.table("What was compared, and on what", ["", ""], rows)
    page.paragraph(
        f"All scored the same samples. Intervals hold {result['level']:.0%} of the time; they come from "
        f"{result['replicates']:,} draws of users with replacement, so they say how far a result would move with other "
        "users, not with another training seed or another month. Each interval stands for itself: among twenty lines "
        "one is expected to miss. Grey: the interval holds zero, so the two cannot be told apart."
    )


def _differences(page: html.Page, mine: str, entry: dict[str, Any]) -> None:
    columns = ["", mine, entry["title"], "difference", "interval", ""]
    rows, told = [], []
    for target, one in entry["differences"].items():
        rows += [[f"{target} {WORDS[name]}", *_cells(one[name])] for name in METRICS]
        told += _told([(f"{target} {WORDS[name]}", one[name]) for name in ("auc", "gauc")])
    page.intervals(f"{mine} less {entry['title']}", told)
    page.table(f"How sure: {mine} against {entry['title']}", columns, rows)


def _slices(page: html.Page, mine: str, entry: dict[str, Any]) -> None:
    columns = [mine, entry["title"], "AUC difference", "interval", "", "GAUC", "log loss"]
    for target, one in entry["differences"].items():
        for kind, groups in one["slices"].items():
            known = {name: part for name, part in groups.items() if part["auc"]["difference"] is not None}
            if len(known) < 2:
                continue
            told = _told([(name, part["auc"]) for name, part in known.items()])
            page.intervals(f"{target}: AUC less that of {entry['title']}, by {title(kind)}", told)
            rows = [
                [name, *_cells(part["auc"]), *(_signed(part[metric]["difference"]) for metric in ("gauc", "logloss"))]
                for name, part in known.items()
            ]
            page.table(f"{target} by {title(kind)}", [title(kind), *columns], rows)


def _told(named: list[tuple[str, dict[str, Any]]]) -> list[tuple[str, float, float, float]]:
    """Those with an interval, for a chart."""
    return [(name, one["low"], one["difference"], one["high"]) for name, one in named if one["low"] is not None]


def _money(page: html.Page, mine: str, other: str, money: dict[str, Any]) -> None:
    rows = [["value-weighted AUC", *_cells(money["value_auc"])]]
    if money["method"] == "replay":
        share = {name: None if part is None else f"{part:.1%}" for name, part in money["captured"].items()}
    else:
        share = {name: None if part is None else f"{part:.4g}" for name, part in money["value_per_request"].items()}
    lift = money["lift"]
    span = None if lift["low"] is None else f"{lift['low']:+.1%}…{lift['high']:+.1%}"
    value = None if lift["lift"] is None else f"{lift['lift']:+.1%}"
    rows.append([money["what"], share["run"], share["other"], value, span, lift["word"]])
    rows.append([*(["the same, logged order"] if money["method"] == "replay" else ["the same, the log's policy"]),
                 share.get("logged order", share.get("log")), None, None, None, None])  # fmt: skip
    page.table("GMV", ["", mine, other, "difference", "interval", ""], rows)
    page.paragraph(money["how"][0].upper() + money["how"][1:] + ".")
    for line in sentences(money, (mine, other))[1:]:
        page.paragraph(line)


def calibration(page: html.Page, named: dict[str, dict[str, Any]]) -> None:
    """Observed share against predicted probability; `named` is model -> target -> metrics with their curve."""
    for target in dict.fromkeys(target for targets in named.values() for target in targets):
        known = {name: targets[target] for name, targets in named.items() if target in targets}
        curves = {
            name: [(part["predicted"], part["observed"]) for part in one["calibration_curve"]["bins"]]
            for name, one in known.items()
        }
        most = max((x for line in curves.values() for x, _ in line), default=0.0)
        lines = {**curves, "perfect": [(0.0, 0.0), (most, most)]}
        page.lines(f"{target}: observed share against predicted probability", lines)
        rows = [
            [name, _four(one["calibration"]), _four(one["calibration_curve"]["ece"])] for name, one in known.items()
        ]
        page.table(f"{target}: calibration", ["", "predicted / observed", "expected calibration error"], rows)


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
    span = None if one["low"] is None else f"{one['low']:+.4f}…{one['high']:+.4f}"
    return [_four(one["run"]), _four(one["other"]), _signed(one["difference"]), span, one["word"]]


def _four(number: float | None) -> str | None:
    return None if number is None else f"{number:.4f}"


def _signed(number: float | None) -> str | None:
    return None if number is None else f"{number:+.4f}"
