"""What a study is about: recipe, space, objectives, store, sampler, pruner, seed; two plans in one study are refused.

`study.json` in the study's folder holds the plan, and so does the study itself, wherever it is stored.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lsm_cli import recipe as recipes
from lsm_cli.data.store import Store
from lsm_cli.engine.trail import STUDY as PLAN
from lsm_cli.errors import InputError, LsmError
from lsm_cli.options import SECTIONS, Recipe
from lsm_cli.tuning import space as spaces
from lsm_cli.tuning.space import Space

SAMPLERS = ("tpe", "random", "cmaes", "gp", "nsga2")
PRUNERS = ("median", "halving", "hyperband", "none")


@dataclass(frozen=True)
class Objective:
    """One number that a trial is judged by."""

    name: str
    larger: bool  # is better
    meaning: str
    quality: bool = False  # a validation metric, else a cost

    @property
    def direction(self) -> str:
        return "maximize" if self.larger else "minimize"


OBJECTIVES = {
    objective.name: objective
    for objective in (
        Objective("gauc", True, "validation GAUC, mean over targets", True),
        Objective("auc", True, "validation AUC, mean over targets", True),
        Objective("logloss", False, "validation log loss, mean over targets", True),
        Objective("samples_per_second", True, "training samples per second, while the other workers run too"),
        Objective("memory", False, "peak memory of training; bytes, of the device or (on the CPU) of the process"),
        Objective("parameters", False, "dense parameters and table rows"),
    )
}


@dataclass(frozen=True)
class Plan:
    """Everything that must stay the same for the whole of a study."""

    recipe: Recipe
    space: Space
    objectives: tuple[Objective, ...]
    sampler: str
    pruner: str
    seed: int
    store: str  # digest of the store's files

    def to_json(self) -> dict[str, Any]:
        return {
            "recipe": self.recipe.model_dump(by_alias=True),
            "space": self.space.table(),
            "objectives": [objective.name for objective in self.objectives],
            "sampler": self.sampler,
            "pruner": self.pruner,
            "seed": self.seed,
            "store": self.store,
        }

    @classmethod
    def of_json(cls, value: dict[str, Any], source: str) -> Plan:
        return cls(
            recipes.parse(value["recipe"], source),
            spaces.parse(value["space"], source=source),
            tuple(OBJECTIVES[name] for name in value["objectives"]),
            value["sampler"],
            value["pruner"],
            value["seed"],
            value["store"],
        )

    @classmethod
    def load(cls, folder: Path) -> Plan:
        """The plan of an existing study folder."""
        return cls.of_json(json.loads((folder / PLAN).read_text()), str(folder / PLAN))

    @property
    def several(self) -> bool:
        return len(self.objectives) > 1

    @property
    def validations(self) -> int:
        """Validations of the longest trial."""
        epochs = next((option for option in self.space.options if option.key == "train.epochs"), None)
        most = self.recipe.train.epochs if epochs is None else max([*epochs.choices, epochs.high])
        return int(most) * self.recipe.train.evaluations

    def check(self, other: dict[str, Any], where: str) -> None:
        """Raise InputError unless a study begun as `other` is this one; options newer than it have their defaults."""
        recipe = recipes.parse(other["recipe"], where).model_dump(by_alias=True)
        found = differences(other | {"recipe": recipe}, self.to_json())
        if found:
            raise InputError(
                f"{where}: holds a study with {'; '.join(found)}; go on with the same command, or choose another --out"
            )

    def matches(self, folder: Path, storage: str) -> bool:
        """Whether the folder holds this very study; False where there is none yet.

        Args:
            storage: where its trials are kept, without a password.

        Raises:
            InputError: the folder is a file, holds something else, or the study of another plan or storage.
        """
        file = folder / PLAN
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{folder}: is a file; choose another --out")
        if file.is_file():
            try:
                before = json.loads(file.read_text())
                self.check(before, str(folder))
                if before["storage"] != storage:
                    raise InputError(
                        f"{folder}: holds a study whose trials are in {before['storage']}; go on with that --storage, "
                        "or choose another --out"
                    )
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                raise InputError(f"{file}: damaged ({error}); choose another --out") from None
            return True
        if folder.is_dir() and any(folder.iterdir()):
            raise InputError(f"{folder}: the folder is not empty and holds no study; choose another --out")
        return False

    def write(self, folder: Path, storage: str) -> None:
        """Make the study's folder, unless it is there."""
        if not self.matches(folder, storage):
            write_text(folder / PLAN, json.dumps(self.to_json() | {"storage": storage}, indent=1) + "\n")


def objectives(text: str | None, recipe: Recipe) -> tuple[Objective, ...]:
    """The objectives of `--objective a,b`; the recipe's validation metric where nothing is said.

    Raises:
        InputError: unknown, twice, or without a validation metric.
    """
    names = [name.strip() for name in text.split(",")] if text else [recipe.train.metric]
    for name in names:
        if name not in OBJECTIVES:
            known = "; ".join(f"{one.name} = {one.meaning}" for one in OBJECTIVES.values())
            raise InputError(f"--objective {name!r} is not known; there is {known}")
    if len(set(names)) < len(names):
        raise InputError(f"--objective {text}: names one twice")
    found = tuple(OBJECTIVES[name] for name in names)
    if not any(objective.quality for objective in found):
        raise InputError(f"--objective {text}: name a validation metric as well (gauc, auc or logloss)")
    return found


def digest(store: Store) -> str:
    """Hash over the hashes of a store's files."""
    files = {name: entry["sha256"] for name, entry in store.manifest["files"].items()}
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What the study has and the command has not, in words: "another recipe (model.dim = 8, not 16)"."""
    found = []
    before, after = old["recipe"], new["recipe"]
    keys = [
        f"{section}.{key} = {_word(before[section].get(key))}, not {_word(value)}"
        for section in SECTIONS
        for key, value in after[section].items()
        if before.get(section, {}).get(key) != value
    ]
    if keys or before != after:
        found.append(f"another recipe ({', '.join(keys) or 'name or description'})")
    there, here = old["space"], new["space"]
    keys = [f"{key} only there" for key in there if key not in here]
    keys += [f"{key} not there" for key in here if key not in there]
    keys += [f"{key} over other values" for key in there if key in here and there[key] != here[key]]
    if keys:
        found.append(f"another space ({', '.join(keys)})")
    if old["store"] != new["store"]:
        found.append("another store")
    for name in ("objectives", "sampler", "pruner", "seed"):
        if old[name] != new[name]:
            value = ",".join(old[name]) if isinstance(old[name], list) else old[name]
            found.append(f"--{name.removesuffix('s')} {value}")
    return found


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def write_text(file: Path, text: str) -> None:
    """Write aside, then rename: a file is whole or absent."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text)
        os.replace(temporary, file)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        message = f"{file}: could not be written ({error.strerror}); free space, then run the same command"
        raise LsmError(message) from None
