"""The run folder: what was asked, on which data, with what result; written so that a kill never leaves half a file."""

from __future__ import annotations

import fcntl
import json
import os
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lsm_cli import recipe as recipes
from lsm_cli.data.aside import share
from lsm_cli.data.store import Store
from lsm_cli.engine.environment import environment
from lsm_cli.engine.trail import LEDGER, LOCK, METRICS, STATE, WEIGHTS, read_lines, study_of, unlike
from lsm_cli.errors import InputError, LsmError
from lsm_cli.options import SECTIONS, Recipe

LOCK_SECONDS = 0.3  # who only looks whether a run is being written holds its lock for a moment


class NotWrittenError(LsmError):
    """A file of the run could not be written: the disk is full, or worse."""


class RunFolder:
    """One run on disk; holds a lock while it is open for writing."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lock: Any = None

    @classmethod
    def start(cls, path: str | Path, recipe: Recipe, store: Store, resume: bool) -> RunFolder:
        """Create a run, or take up one that was interrupted.

        Raises:
            InputError: the folder holds something else, another process writes to it, or the recipe or store of the
                run to resume differ.
        """
        run = cls(path)
        if run.path.exists() and not run.path.is_dir():
            raise InputError(f"{run.path}: is a file; choose another --out")
        if run.path.is_dir() and any(run.path.iterdir()):
            if not (run.path / "recipe.toml").exists() and not (run.path / LOCK).exists():
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

    def _enter(self, recipe: Recipe, store: Store) -> None:
        data = identity(store)
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
        if unlike(self.data()["files"], data["files"]):
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
            if study_of(run.path) and not (run.path / STATE).is_file():
                raise InputError(
                    f"{run.path}: a study keeps the weights of its best trials alone (no {WEIGHTS}); `lsm train --from "
                    f"{run.path} --out NEW` makes them again"
                )
            raise InputError(
                f"{run.path}: the run has no weights yet (no {WEIGHTS}); finish it with `lsm train … --resume`"
            )
        return run

    def _acquire(self) -> None:
        self._lock = open(self.path / LOCK, "w")  # noqa: SIM115 - held until the run is closed
        until = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except OSError:
                if time.monotonic() > until:
                    self.close()
                    raise InputError(
                        f"{self.path}: another process is writing to this run; choose another --out"
                    ) from None
                time.sleep(0.02)

    def close(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def recipe(self) -> Recipe:
        file = self.path / "recipe.toml"
        try:
            return recipes.parse(tomllib.loads(file.read_text()), str(file))
        except tomllib.TOMLDecodeError as error:
            raise InputError(f"{file}: not valid TOML: {error}") from None

    def data(self) -> dict[str, Any]:
        """What is known of the store: {"path", "name", "vocabulary": hashes of it, "files": hashes of all}."""
        return self.read_json("data.json")

    def read_json(self, name: str) -> dict[str, Any]:
        """One of the run's JSON files.

        Raises:
            InputError: it is missing or damaged.
        """
        try:
            found = json.loads((self.path / name).read_text())
            if not isinstance(found, dict):
                raise ValueError("not an object")
            return found
        except (OSError, ValueError) as error:
            raise InputError(f"{self.path / name}: missing or damaged ({error}); train the run again") from None

    def check_store(self, store: Store) -> None:
        """Raise InputError unless the run's embeddings fit the ids of the store."""
        if self.data()["vocabulary"] != identity(store)["vocabulary"]:
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

        def write(file: Path) -> None:
            save_file(tensors, file)
            share(file)

        self._write(WEIGHTS, write)

    def load_weights(self) -> dict[str, Tensor]:
        try:
            return load_file(self.path / WEIGHTS)
        except (SafetensorError, OSError) as error:
            raise InputError(f"{self.path / WEIGHTS}: damaged ({error}); train the run again") from None

    def fill(self, model: torch.nn.Module) -> None:
        """Give a model the weights of this run.

        Raises:
            InputError: they are damaged, or those of another model.
        """
        try:
            missing, unknown = model.load_state_dict(self.load_weights(), strict=False)
        except RuntimeError:  # tensors of other shapes
            missing, unknown = ["other shapes"], []
        lacking = [name for name in missing if ".optimizers." not in name]  # state that scoring does not need
        if lacking or unknown:
            raise InputError(
                f"{self.path / WEIGHTS}: does not fit the model of its recipe ({', '.join([*lacking, *unknown][:3])}); "
                "it was written by another version of lsm: train the run again"
            )

    def save_state(self, state: dict[str, Any]) -> None:
        self._write(STATE, lambda file: torch.save(state, file))

    def load_state(self, mapped: bool = False) -> dict[str, Any] | None:
        """What `save_state` wrote last; None = nothing yet. `mapped` reads tensors from the file as they are used."""
        file = self.path / STATE
        if not file.is_file():
            return None
        try:
            return torch.load(file, weights_only=True, map_location="cpu", mmap=mapped)
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
        """One line per run beside the run folders; appended under a lock, as runs may end together.

        A run that was killed behind its line, or is resumed when all is done, has it already.
        """
        file = self.path.parent / LEDGER
        with open(file, "a+b") as ledger:
            fcntl.flock(ledger, fcntl.LOCK_EX)
            same = (one for one in read_lines(file, []) if Path(str(one.get("run"))).name == self.path.name)
            if line["started"] and line["started"] in [one.get("started") for one in same]:
                return
            ledger.seek(max(0, ledger.seek(0, os.SEEK_END) - 1))
            broken = ledger.read(1) not in (b"", b"\n")  # a full disk or a kill cut the last line short
            ledger.write((b"\n" if broken else b"") + json.dumps(line).encode() + b"\n")

    def differs_from(self, store: Store) -> str | None:
        """What of the store is not as it was when the run was trained, in words; None = every file is the same."""
        return unlike(self.data()["files"], identity(store)["files"])


def identity(store: Store) -> dict[str, Any]:
    """What of a store a run depends on: the meaning of its ids, and every data file."""
    files = {name: entry["sha256"] for name, entry in store.manifest["files"].items()}
    vocabulary = {name: digest for name, digest in files.items() if name.startswith(("vocab/", "taxonomy/"))}
    vocabulary = {name: digest for name, digest in vocabulary.items() if name != "vocab/user.parquet"}
    return {"path": str(store.path.resolve()), "name": store.name, "vocabulary": vocabulary, "files": files}


def _changed(old: Recipe, new: Recipe) -> str:
    before, after = old.model_dump(), new.model_dump()
    keys = [
        f"{section}.{key}"
        for section in SECTIONS
        for key in before[section]
        if before[section][key] != after[section][key]
    ]
    return ", ".join(keys) or "name or description"
