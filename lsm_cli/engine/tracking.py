"""Where the progress of a run goes: `metrics.jsonl` always, TensorBoard and MLflow if the recipe says so.

A tracker has three methods: start, log, finish. A tracker beside the first that fails is left out from then on, and the
run goes on: a tracking server that goes away costs its curves and not the training.
"""

from __future__ import annotations

import importlib.util
import json
import os
import textwrap
from collections.abc import Iterator
from typing import Any, Protocol

from lsm_cli.engine.run import RunFolder
from lsm_cli.errors import InputError, LsmError
from lsm_cli.options import Recipe, TrainOptions

Line = dict[str, Any]  # a line of metrics.jsonl
PACKAGES = {"tensorboard": "tensorboard", "mlflow": "mlflow"}  # tracker -> package; each is an extra of that name
METRICS = ("auc", "gauc", "logloss", "calibration")


class Tracker(Protocol):
    def start(self, lines: list[Line]) -> None:
        """A run begins; `lines` were logged before it was interrupted."""

    def log(self, line: Line) -> None:
        """A validation."""

    def finish(self, result: dict[str, Any] | None) -> None:
        """The run ended with this result; None = it was interrupted or failed."""


class JsonLines:
    """metrics.jsonl: one line per validation, whole after every one of them."""

    def __init__(self, run: RunFolder) -> None:
        self.run, self.lines = run, list[Line]()

    def start(self, lines: list[Line]) -> None:
        self.lines = [*lines]
        self.run.write_metrics(self.lines)

    def log(self, line: Line) -> None:
        self.lines.append(line)
        self.run.write_metrics(self.lines)

    def finish(self, result: dict[str, Any] | None) -> None:
        pass


class TensorBoard:
    """Event files in the run's folder `tensorboard`."""

    def __init__(self, recipe: Recipe, run: RunFolder) -> None:
        self.folder = run.path / "tensorboard"

    def start(self, lines: list[Line]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(self.folder), purge_step=lines[-1]["step"] + 1 if lines else None)

    def log(self, line: Line) -> None:
        for name, value in _numbers(line):
            self.writer.add_scalar(name, value, line["step"])
        self.writer.flush()

    def finish(self, result: dict[str, Any] | None) -> None:
        self.writer.close()


class MLflow:
    """A run of an MLflow experiment; where, MLFLOW_TRACKING_URI says, and MLFLOW_EXPERIMENT_NAME which (`lsm`).

    The id is kept in the run's folder, so that a resumed run goes on with the same curves.
    """

    def __init__(self, recipe: Recipe, run: RunFolder) -> None:
        self.recipe, self.run = recipe, run

    def start(self, lines: list[Line]) -> None:
        from mlflow import MlflowClient

        self.client = MlflowClient()
        file = self.run.path / "mlflow.json"
        if file.is_file():
            self.id = json.loads(file.read_text())["run_id"]
            self.client.update_run(self.id, status="RUNNING")
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "lsm")
        found = self.client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else self.client.create_experiment(name)
        path = self.run.path.resolve()
        made = self.client.create_run(experiment, run_name=path.name, tags={"folder": str(path)})
        self.id = made.info.run_id
        for section, options in self.recipe.model_dump(by_alias=True).items():
            for key, value in options.items() if isinstance(options, dict) else [("", options)]:
                self.client.log_param(self.id, f"{section}.{key}".rstrip("."), str(value)[:500])
        self.run.write_json(file.name, {"run_id": self.id})

    def log(self, line: Line) -> None:
        for name, value in _numbers(line):
            self.client.log_metric(self.id, name, value, step=line["step"])

    def finish(self, result: dict[str, Any] | None) -> None:
        for split in ("test", "valid"):
            for name, value in _named(split, (result or {}).get(split, {})):
                self.client.log_metric(self.id, name, value)
        for name in ("samples_per_second", "peak_memory_bytes", "parameters"):
            if result and name in result:
                self.client.log_metric(self.id, name, result[name])
        self.client.set_terminated(self.id, "FINISHED" if result else "KILLED")


class Tracking:
    """All trackers of a run.

    Attributes:
        lost: (name, reason) of each tracker that failed on the way.
    """

    def __init__(self, recipe: Recipe, run: RunFolder) -> None:
        self.always = JsonLines(run)
        kinds: dict[str, type[TensorBoard] | type[MLflow]] = {"tensorboard": TensorBoard, "mlflow": MLflow}
        self.others: dict[str, Tracker] = {name: kinds[name](recipe, run) for name in wanted(recipe.train)}
        self.started: list[str] = []
        self.lost: list[tuple[str, str]] = []

    @property
    def lines(self) -> list[Line]:
        """What was logged so far."""
        return self.always.lines

    def start(self, lines: list[Line]) -> None:
        """Begin, or go on behind `lines`.

        Raises:
            LsmError: a tracker cannot be started: before any work is lost.
        """
        self.always.start(lines)
        for name, tracker in self.others.items():
            try:
                tracker.start(lines)
            except Exception as error:  # whatever a server or its library may raise
                raise LsmError(
                    f"train.track: {name} could not be started ({_first_line(error)}); mend that and go on with "
                    "--resume, or leave it out in another --out"
                ) from None
            self.started.append(name)

    def log(self, line: Line) -> None:
        self.always.log(line)
        self._each("log", line)

    def finish(self, result: dict[str, Any] | None) -> None:
        self._each("finish", result)

    def _each(self, method: str, value: Any) -> None:
        for name in [*self.started]:
            try:
                getattr(self.others[name], method)(value)
            except Exception as error:
                self.started.remove(name)
                self.lost.append((name, _first_line(error)))


def wanted(options: TrainOptions) -> list[str]:
    """The trackers that a recipe asks for."""
    return list(dict.fromkeys([*options.track, *(["tensorboard"] if options.tensorboard else [])]))


def check(options: TrainOptions) -> None:
    """Raise InputError unless the packages of all wanted trackers are installed."""
    for name in wanted(options):
        if importlib.util.find_spec(PACKAGES[name]) is None:
            key = "train.tensorboard = true" if options.tensorboard and name == "tensorboard" else "train.track"
            raise InputError(f"{key}: {name} is not installed; pip install 'lsm-cli[{name}]', or leave it out")


def _numbers(line: Line) -> Iterator[tuple[str, float]]:
    yield "train/loss", line["train_loss"]
    yield from _named("valid", line["valid"])


def _named(split: str, targets: dict[str, Any]) -> Iterator[tuple[str, float]]:
    for target, entry in targets.items():
        for name in METRICS:
            if entry[name] is not None:
                yield f"{split}/{target}/{name}", entry[name]


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return textwrap.shorten(f"{type(error).__name__}: {lines[0] if lines else ''}".rstrip(": "), 250, placeholder=" …")
