"""The run folder: what was asked, on which data, with what result; written so that a kill never leaves half a file."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

import lsm_cli
from lsm_cli import recipe as recipes
from lsm_cli.data.store import Store
from lsm_cli.errors import InputError, LsmError

STATE, WEIGHTS, METRICS, LEDGER = "state.pt", "model.safetensors", "metrics.jsonl", "ledger.jsonl"


class NotWrittenError(LsmError):
    """A file of the run could not be written: the disk is full, or worse."""


class RunFolder:
    """One run on disk; holds a lock while it is open for writing."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lock: Any = None

    @classmethod
    def start(cls, path: str | Path, recipe: recipes.Recipe, store: Store, resume: bool) -> RunFolder:
        """Create a run, or take up one that was interrupted.

        Raises:
            InputError: the folder holds something else, another process writes to it, or the recipe or store of the
                run to resume differ.
        """
        run = cls(path)
        if run.path.exists() and not run.path.is_dir():
            raise InputError(f"{run.path}: is a file; choose another --out")
        if run.path.is_dir() and any(run.path.iterdir()):
            if not (run.path / "recipe.toml").exists() and not (run.path / ".lock").exists():
                raise InputError(f"{run.path}: the folder is not empty and holds no run; choose another --out")
            if not resume:
                raise InputError(f"{run.path}: already holds a run; go on with it by --resume, or choose another --out")
        try:
            run.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{run.path}: cannot be created ({error.strerror}); choose another --out") from None
        run._acquire()
        try:
            run._enter(recipe, store)
        except BaseException:
            run.close()
            raise
        return run

    def _enter(self, recipe: recipes.Recipe, store: Store) -> None:
        data = _identity(store)
        if not (self.path / "recipe.toml").exists():
            self.write_json("environment.json", environment())
            self.write_json("data.json", data)
            self.write_text("recipe.toml", recipe.to_toml())
            return
        if self.recipe() != recipe:
            raise InputError(
                f"{self.path}: was started with another recipe ({_changed(self.recipe(), recipe)}); resume with the "
                "same options, or choose another --out"
            )
        if self.data()["files"] != data["files"]:
            raise InputError(f"{self.path}: was started on another store than {store.path}; resume with that one")

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """An existing run, for reading.

        Raises:
            InputError: there is no run, or it has no weights yet.
        """
        run = cls(path)
        if not (run.path / "recipe.toml").is_file():
            raise InputError(f"{run.path}: not a run (no recipe.toml); `lsm train … --out {run.path}` makes one")
        if not (run.path / WEIGHTS).is_file():
            raise InputError(
                f"{run.path}: the run has no weights yet (no {WEIGHTS}); finish it with `lsm train … --resume`"
            )
        return run

    def _acquire(self) -> None:
        self._lock = open(self.path / ".lock", "w")  # noqa: SIM115 - held until the run is closed
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(f"{self.path}: another process is writing to this run; choose another --out") from None

    def close(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def recipe(self) -> recipes.Recipe:
        file = self.path / "recipe.toml"
        try:
            return recipes.parse(tomllib.loads(file.read_text()), str(file))
        except tomllib.TOMLDecodeError as error:
            raise InputError(f"{file}: not valid TOML: {error}") from None

    def data(self) -> dict[str, Any]:
        return json.loads((self.path / "data.json").read_text())

    def check_store(self, store: Store) -> None:
        """Raise InputError unless the run's embeddings fit the ids of the store."""
        if self.data()["vocabulary"] != _identity(store)["vocabulary"]:
            raise InputError(
                f"{self.path}: was trained on another store ({self.data()['path']}); ids of {store.path} mean other "
                "things; give --data that store, or train on this one"
            )

    def write_text(self, name: str, text: str) -> None:
        self._write(name, lambda file: file.write_text(text))

    def write_json(self, name: str, value: Any) -> None:
        self.write_text(name, json.dumps(value, indent=1) + "\n")

    def write_metrics(self, lines: list[dict[str, Any]]) -> None:
        self.write_text(METRICS, "".join(json.dumps(line) + "\n" for line in lines))

    def save_weights(self, tensors: dict[str, Tensor]) -> None:
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        self._write(WEIGHTS, lambda file: save_file(tensors, file))

    def load_weights(self) -> dict[str, Tensor]:
        try:
            return load_file(self.path / WEIGHTS)
        except (SafetensorError, OSError) as error:
            raise InputError(f"{self.path / WEIGHTS}: damaged ({error}); train the run again") from None

    def save_state(self, state: dict[str, Any]) -> None:
        self._write(STATE, lambda file: torch.save(state, file))

    def load_state(self) -> dict[str, Any] | None:
        file = self.path / STATE
        if not file.is_file():
            return None
        try:
            return torch.load(file, weights_only=True, map_location="cpu")
        except Exception as error:
            raise InputError(f"{file}: damaged ({error}); start the run again in another --out") from None

    def _write(self, name: str, write: Callable[[Path], object]) -> None:
        """Write aside, reach the disk, rename: a file is whole or absent."""
        temporary = self.path / f".{name}.tmp"
        try:
            write(temporary)
            with open(temporary, "rb") as written:
                os.fsync(written.fileno())
            os.replace(temporary, self.path / name)
        except (OSError, SafetensorError, RuntimeError) as error:
            temporary.unlink(missing_ok=True)
            message = f"{self.path / name}: could not be written ({error}); free space, then --resume"
            raise NotWrittenError(message) from None

    def append_ledger(self, line: dict[str, Any]) -> None:
        """One line per run beside the run folders; appended under a lock, as runs may end together."""
        with open(self.path.parent / LEDGER, "a") as ledger:
            fcntl.flock(ledger, fcntl.LOCK_EX)
            ledger.write(json.dumps(line) + "\n")


def _identity(store: Store) -> dict[str, Any]:
    """What of a store a run depends on: the meaning of its ids, and every data file."""
    files = {name: entry["sha256"] for name, entry in store.manifest["files"].items()}
    vocabulary = {name: digest for name, digest in files.items() if name.startswith(("vocab/", "taxonomy/"))}
    vocabulary = {name: digest for name, digest in vocabulary.items() if name != "vocab/user.parquet"}
    return {"path": str(store.path), "name": store.name, "vocabulary": vocabulary, "files": files}


def _changed(old: recipes.Recipe, new: recipes.Recipe) -> str:
    before, after = old.model_dump(), new.model_dump()
    keys = [
        f"{section}.{key}"
        for section in recipes.SECTIONS
        for key in before[section]
        if before[section][key] != after[section][key]
    ]
    return ", ".join(keys) or "name or description"


def environment() -> dict[str, Any]:
    """Versions and hardware, for whoever wants to know why two runs differ."""
    return {
        "lsm": lsm_cli.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "command": " ".join(sys.argv),
    }
