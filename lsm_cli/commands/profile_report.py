"""A profile in the terminal and as an HTML page."""

from __future__ import annotations

from typing import Any

from lsm_cli.engine import tiers
from lsm_cli.engine.trace import MEANING
from lsm_cli.options import Recipe
from lsm_cli.report import html
from lsm_cli.report.console import Console, count, size

CACHED = "moved: by every operation, from memory or from a cache; possible: a large copy, a large product, measured now"


def show(console: Console, found: dict[str, Any]) -> None:
    """Tables on stdout: speed, parts, memory, roofline, sweep, ablation."""
    console.text(headline(found))
    console.table("Where a step's time goes", ["part", "ms", "share", ""], _parts(found), _spread(found))
    for line in tiers.sentences(found.get("tiers", {})):
        console.text(line)
    held = found["memory"]
    console.table("Memory of the heaviest step", ["", "", "share"], _memory(held), _heaviest(held))
    console.table("Against the device", ["", "reached", "possible", "share"], _roof(found["roofline"]), note=CACHED)
    if "sweep" in found:
        console.table("Sweep", *_sweep(found["sweep"]))
    if "ablation_detail" in found:
        console.table(*_ablation(found["ablation_detail"]))
        for line in conclusions(found):
            console.text(line)


def show_estimates(console: Console, found: list[dict[str, Any]], phase: str) -> None:
    keys = list(found[0]["options"])
    rows = [
        [
            *(entry["options"][key] for key in keys), size(entry["peak_allocated"]), size(entry["tables"]),
            f"{entry['samples']:,}", f"{entry['behaviours']:,}", size(entry["moved_bytes"]),
        ]
        for entry in found
    ]  # fmt: skip
    columns = [*keys, "peak memory", "of it tables", "samples", "behaviours", "bytes moved"]
    console.table(f"Estimate for the heaviest {phase} step; nothing of it was run", columns, rows)


def page(found: dict[str, Any], recipe: Recipe) -> str:
    """report.html: one file, no script, no network."""
    made = html.Page(f"{recipe.name} · {found['phase']} profile")
    made.paragraph(recipe.description)
    made.paragraph(f"{headline(found)} on {found['device']}, store {found['store']}")
    series = {name: {"step": value} for name, value in found["step_ms"].items() if name != "total"}
    made.stacks("One step, ms", series, " ms")
    made.table("Where a step's time goes", ["part", "ms", "share", ""], _parts(found))
    made.paragraph(_spread(found))
    for line in tiers.sentences(found.get("tiers", {})):
        made.paragraph(line)
    held = found["memory"]
    mib = 1 << 20
    made.timeline(
        "Memory over one step, operation by operation",
        [(held_ / mib, part) for _, held_, part in held["timeline"]],
        " MiB",
        series,
    )
    made.bars("Memory at the peak", {name: value / mib for name, value in held["categories"].items()}, " MiB")
    made.table("Memory of the heaviest step", ["", "", "share"], _memory(held))
    made.paragraph(_heaviest(held))
    roof = found["roofline"]
    rate = roof["flops"] / max(found["step_ms"]["total"] / 1e3, 1e-9)
    if rate:
        at = {f"{recipe.name}, {found['phase']}": (roof["flops_per_byte"], rate)}
        made.roofline("Roofline", roof["bandwidth"], roof["peak_flops"], at)
    made.table("Against the device", ["", "reached", "possible", "share"], _roof(roof))
    made.note(CACHED)
    if "sweep" in found:
        _scaling(made, found["sweep"])
    if "ablation_detail" in found:
        detail = found["ablation_detail"]
        bars = {name: entry["ratio"] for name, entry in detail["techniques"].items()}
        made.bars(
            "What each technique is worth: time without it / with it", {**bars, "all together": detail["together"]}
        )
        made.table(*_ablation(detail))
        made.table("The techniques", ["", ""], [[name, entry["what"]] for name, entry in detail["techniques"].items()])
        for line in conclusions(found):
            made.paragraph(line)
    made.code("Recipe", recipe.to_toml())
    made.code("Environment", "\n".join(f"{name}: {value}" for name, value in found["environment"].items()))
    return made.render()


def headline(found: dict[str, Any]) -> str:
    doing = "training" if found["phase"] == "train" else "scored"
    behaviours = found["behaviours_per_second"]
    read = f", {count(behaviours)} behaviours/s" if behaviours else ""
    return f"{count(found['samples_per_second'])} {doing} samples/s{read}, {found['step_ms']['total']:.1f} ms a step"


def _parts(found: dict[str, Any]) -> list[list[str]]:
    total = found["step_ms"]["total"]
    rows = [
        [name, f"{value:.2f}", f"{value / total:.1%}", MEANING[name]]
        for name, value in found["step_ms"].items()
        if name != "total"
    ]
    return [*rows, ["total", f"{total:.2f}", "100.0%", ""]]


def _spread(found: dict[str, Any]) -> str:
    spread = found["step_ms_spread"]
    return (
        f"means over the middle half of {found['steps']} steps of {found['samples_per_step']:,.0f} samples and "
        f"{found['behaviours_per_step']:,.0f} behaviours; all steps: median {spread['median']:.1f} ms, 10 % below "
        f"{spread['p10']:.1f}, 10 % above {spread['p90']:.1f}"
    )


def _memory(held: dict[str, Any]) -> list[list[str]]:
    peak = max(held["peak_allocated"], 1)
    rows = [[name, size(value), f"{value / peak:.1%}"] for name, value in held["categories"].items() if value]
    rows.append(["allocated at the peak", size(held["peak_allocated"]), "100.0%"])
    rows.append(["reserved at the peak", size(held["peak_reserved"]), f"{held['peak_reserved'] / peak:.1%}"])
    rows.append(["fragmentation: free in all that the process reserved", "", f"{held['fragmentation']:.1%}"])
    for name in ("active", "inactive_split", "process_peak"):
        if name in held:
            rows.append([name.replace("_", " "), size(held[name]), ""])
    return rows


def _heaviest(held: dict[str, Any]) -> str:
    return (
        f"{held['samples']:,} samples with {held['behaviours']:,} behaviours; the peak is in {held['peak_part']}; "
        "beyond what the process held before"
    )


def _roof(roof: dict[str, Any]) -> list[list[str | None]]:
    seconds = roof["moved_bytes"] / roof["bandwidth_share"] / roof["bandwidth"]
    rows: list[list[str | None]] = [
        ["bytes moved", f"{size(roof['moved_bytes'] / seconds)}/s", f"{size(roof['bandwidth'])}/s",
         f"{roof['bandwidth_share']:.1%}"],
        ["arithmetic", f"{count(roof['flops'] / seconds)}FLOP/s", f"{count(roof['peak_flops'])}FLOP/s",
         f"{roof['flops_share']:.1%}"],
        ["bytes a step: moved, needed", size(roof["moved_bytes"]), size(roof["needed_bytes"]),
         f"{roof['needed_bytes'] / max(roof['moved_bytes'], 1):.1%}"],
    ]  # fmt: skip
    if roof["gpu_utilisation"] is not None:
        rows.append(["GPU busy", None, None, f"{roof['gpu_utilisation']:.0%}"])
    return rows


def _sweep(points: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    keys, tiered = list(points[0]["options"]), any("tiers" in point for point in points)
    rows = [
        [
            *(point["options"][key] for key in keys),
            count(point["samples_per_second"]),
            count(point["behaviours_per_second"]),
            f"{point['step_ms']['total']:.1f}",
            size(point["memory"]["peak_allocated"]),
            f"{point['behaviours_per_step'] / point['samples_per_step']:,.0f}",
            *([_hit(point)] if tiered else []),
        ]
        for point in points
    ]
    columns = ["samples/s", "behaviours/s", "ms a step", "peak memory", "behaviours a sample"]
    return [*keys, *columns, *(["rows hit"] if tiered else [])], rows


def _hit(point: dict[str, Any]) -> str:
    """Share of the rows asked for that caches held, over all tables that have one."""
    found = [(one["asked"], one["hit"]) for one in point.get("tiers", {}).values()]
    asked = sum(size for size, _ in found)
    return f"{sum(size * hit for size, hit in found) / asked:.1%}" if asked else "—"


def _scaling(made: html.Page, points: list[dict[str, Any]]) -> None:
    """Speed and memory along the first axis whose values are numbers, a line for every combination of the others."""
    keys = list(points[0]["options"])
    made.table("Sweep", *_sweep(points))
    along = next((key for key in keys if all(_number(point["options"][key]) is not None for point in points)), None)
    if along is None:
        return
    speed: dict[str, list[tuple[float, float]]] = {}
    held: dict[str, list[tuple[float, float]]] = {}
    for point in points:
        rest = ", ".join(f"{key}={value}" for key, value in point["options"].items() if key != along) or "all"
        x = _number(point["options"][along]) or 0.0
        speed.setdefault(rest, []).append((x, point["samples_per_second"]))
        held.setdefault(rest, []).append((x, point["memory"]["peak_allocated"] / (1 << 20)))
    made.lines(f"Samples per second by {along}", {name: sorted(line) for name, line in speed.items()})
    made.lines(f"Peak memory by {along}, MiB", {name: sorted(line) for name, line in held.items()})


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _ablation(detail: dict[str, Any]) -> tuple[str, list[str], list[list[str]]]:
    rows = [
        [
            name, f"{entry['ratio']:.2f}", f"{entry['low']:.2f}–{entry['high']:.2f}", f"{entry['cpu_ratio']:.2f}",
            "on" if entry["in_recipe"] else "off", f"{entry['difference']:.0e}",
            f"{entry['key']}={_toml(entry['off'] if entry['in_recipe'] else entry['on'])}",
        ]
        for name, entry in detail["techniques"].items()
    ]  # fmt: skip
    rows.append(["all together", f"{detail['together']:.2f}", "", f"{detail['together_cpu']:.2f}", "", "", ""])
    columns = ["technique", "without/with", "middle half", "CPU time", "now", "scores ±", "switch"]
    return f"What each technique is worth: time without it / with it, {detail['rounds']} rounds", columns, rows


def _toml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def conclusions(found: dict[str, Any]) -> list[str]:
    """The paper's figures beside those measured here."""
    detail = found["ablation_detail"]
    paper = detail["paper"][found["phase"]]
    doing = "training" if found["phase"] == "train" else "inference"
    lines = [
        f"{doing}: {detail['together']:.1f} times as fast as the same model with every technique switched off (the "
        f"plain path, not another library); the paper's platform reports {paper['speed'] - 1:+.1%} "
        f"({paper['techniques']}), on its own GPUs against its own baseline"
    ]
    pool = detail["memory_utilisation"]
    lines.append(
        f"memory utilisation (allocated / reserved at the peak): {pool['with']:.1%} with the pool, "
        f"{pool['without']:.1%} without; the paper reports {detail['paper']['memory_utilisation']:+.1%} on GPUs"
    )
    if detail["load"] > detail["cpus"] + 0.5:
        lines.append(
            f"the machine is busy (load {detail['load']:.1f} on {detail['cpus']} CPUs): ratios by the clock are "
            "unsure, those of CPU time less so; repeat this on a quiet machine"
        )
        return lines
    slower = [name for name, entry in detail["techniques"].items() if entry["in_recipe"] and entry["high"] < 1]
    faster = [name for name, entry in detail["techniques"].items() if not entry["in_recipe"] and entry["low"] > 1.02]
    if slower:
        lines.append(f"does not pay here: {', '.join(slower)}")
    if faster:
        lines.append(f"would pay here: {', '.join(faster)}")
    return lines
