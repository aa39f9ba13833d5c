"""Where a result comes from: the code, its libraries and the machine, for whoever asks why two runs differ."""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import lsm_cli
from lsm_cli.recipe import shipped_folder

PACKAGE = Path(lsm_cli.__file__).parent


def environment() -> dict[str, Any]:
    """Versions and hardware; `started` tells two runs of one name apart."""
    return {
        "lsm": lsm_cli.__version__,
        "code": code_version(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": version("numpy"),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "command": command(),
        "started": now(),
    }


def now() -> str:
    """UTC, to the second, as ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def command() -> str:
    """The command line of this process, ready to be pasted."""
    name = Path(sys.argv[0]).name
    return shlex.join(["lsm" if name in ("main.py", "__main__.py") else name, *sys.argv[1:]])


def version(distribution: str) -> str | None:
    """The installed version; None = not installed, or hidden from this process."""
    if sys.modules.get(distribution, distribution) is None:
        return None
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def code_version(package: Path = PACKAGE) -> dict[str, Any]:
    """{"sha256": of the sources}, and in a checkout {"commit", "dirty": whether the sources differ from it}."""
    digest = hashlib.sha256()
    for file in sorted([*package.rglob("*.py"), *shipped_folder().rglob("*.toml")]):
        digest.update(f"{file.name}\0".encode() + file.read_bytes() + b"\0")
    found: dict[str, Any] = {"sha256": digest.hexdigest()}
    root = package.parent
    top = _git(root, "rev-parse", "--show-toplevel")
    if top is not None and Path(top).resolve() == root.resolve():  # else the package lies inside somebody's project
        found["commit"] = _git(root, "rev-parse", "HEAD")
        found["dirty"] = bool(_git(root, "status", "--porcelain", "--", package.name, "recipes"))
    return found


def _git(folder: Path, *arguments: str) -> str | None:
    """What git says; None without git or outside a checkout."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
