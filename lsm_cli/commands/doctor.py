"""lsm doctor: what this machine has, and whether lsm works on it; text to paste into an issue."""

from __future__ import annotations

import os
from typing import Any

from lsm_cli.engine.machine import machine
from lsm_cli.engine.selftest import Check, checks
from lsm_cli.engine.trail import code_name
from lsm_cli.errors import LsmError
from lsm_cli.report.console import Console, size


def doctor(console: Console) -> dict[str, Any]:
    """Describe and test the machine.

    Returns:
        {"ok", "environment": see `machine`, "checks": [{"name", "ok": true, false, or null = worth knowing, "detail",
        "remedy", "seconds"}]}.

    Raises:
        LsmError: a check failed; everything was printed.
    """
    known = machine()
    console.table("lsm doctor", ["", " "], _facts(known))
    console.say("self-test  a tiny store is written, trained on and searched; some ten seconds")
    made = checks()
    rows = [[one.name, _word(one), one.detail, f"{one.seconds:.1f} s" if one.seconds else ""] for one in made]
    console.table("checks", ["check", "", "found", "took"], rows)
    failed = [check for check in made if check.ok is False]
    for check in failed:
        console.text(f"{check.name}: {check.remedy}")
    result = {"ok": not failed, "environment": known, "checks": [check.as_dict() for check in made]}
    if failed:
        console.result(result)
        raise LsmError(f"{len(failed)} of {len(made)} checks failed: {', '.join(check.name for check in failed)}")
    console.text("all well")
    console.next("lsm build-sequences DATASET.toml --out store")
    return result


def _word(check: Check) -> str:
    return {True: "ok", False: "FAILED", None: "note"}[check.ok]


def _facts(known: dict[str, Any]) -> list[list[str]]:
    lack = [name for name, found in known["libraries"].items() if found is None]
    have = [f"{name} {found}" for name, found in known["libraries"].items() if found is not None]
    cuda, memory = known["cuda"], known["memory"]
    rows = [
        ["lsm", code_name(known) or known["lsm"]],
        ["system", f"{known['platform']}, Python {known['python']}"],
        ["libraries", ", ".join(have)],
        ["not installed", ", ".join(lack) or "–"],
        [
            "CPU",
            f"{known['cpu']}, {known['cpus_usable']} of {os.cpu_count()} CPUs usable, threads: {known['threads']}",
        ],
        ["memory", " available of ".join(size(memory[n]) if memory[n] else "?" for n in ("available", "total"))],
        ["disk", f"{size(known['disk']['free'])} free at {known['disk']['path']}"],
        ["CUDA", f"torch is built for {cuda['built_for'] or 'CPU only'}; {len(cuda['devices'])} GPUs visible"],
    ]
    rows += [
        [
            f"GPU {number}",
            f"{gpu['name']}, compute {gpu['capability']}, {'bf16' if gpu['bf16'] else 'no bf16'}, "
            f"{size(gpu['memory_free'])} free of {size(gpu['memory_total'])}",
        ]
        for number, gpu in enumerate(cuda["devices"])
    ]
    rows.append(["allocator", known["allocator"]])
    rows += [[f"kernels, {kernel['table']}", f"{kernel['kernel']}: {kernel['why']}"] for kernel in known["kernels"]]
    rows.append(["settings", ", ".join(f"{name}={value}" for name, value in known["settings"].items()) or "–"])
    return rows
