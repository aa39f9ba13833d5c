"""The dataset description (`dataset.toml`): where the logs are and what their columns mean.

A description is read and checked as a whole. Whatever is wrong with it is reported at once, one sentence each,
naming the file, the key, the nearest known key and what to do; nothing of the logs themselves is read here.
"""

from __future__ import annotations

import math
import re
import tomllib
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, PrivateAttr, ValidationError, field_validator, model_validator

from lsm_cli.data.parts import Files, Label, Mapping, Names, Part, Role, Time, named
from lsm_cli.data.wording import hint, plain
from lsm_cli.errors import InputError

SPLITS = ("train", "valid", "test")
_WINDOW = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_RESERVED = {
    "user",
    "item",
    "time",
    "category",
    "scenario",
    "domain",
    "action",
    "offsets",
    "end",
    "value",
    "propensity",
    "label",
    "target",
    "split",
}
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")


def is_share(moment: Any) -> bool:
    return isinstance(moment, float) and 0 < moment < 1


def seconds(window: str) -> int | None:
    """Length of a window such as "7d"; None for "all"."""
    return None if window == "all" else int(window[:-1]) * _WINDOW[window[-1]]


def _check_fields(fields: dict[str, str]) -> None:
    for name in fields:
        if name in _RESERVED or re.fullmatch(r"category\d+", name):
            raise ValueError(
                f'fields: {name!r} is a name of our own; rename it, e.g. {{ my_{name} = "{fields[name]}" }}'
            )
        if not _NAME.fullmatch(name):
            raise ValueError(f'fields: {name!r} cannot name a file; rename it, e.g. {{ name = "{fields[name]}" }}')


class Events(Files):
    """One behaviour log: a row (or, with layout "lists", a list element) is one event."""

    path: Names = Field(default_factory=list)
    user: str | None = None
    item: str
    time: Time
    domain: Role | None = None
    scenario: Role | None = None
    action: Role | None = None
    actions: dict[str, str] = Field(default_factory=dict)  # raw value -> name
    actions_from: dict[str, str] = Field(
        default_factory=dict
    )  # action -> flag column; the first flag that is set names the event's action
    category: Names = Field(default_factory=list)
    fields: Mapping = Field(default_factory=dict)

    @model_validator(mode="after")
    def _consistent(self) -> Events:
        if self.action and self.actions_from:
            raise ValueError("action and actions_from both say what happened: give one of them")
        if self.actions and not (self.action and self.action.column):
            raise ValueError('actions renames values of a column: add action = { column = "…" }')
        _check_fields(self.fields)
        return self


class Items(Files):
    """Attributes of items, joined by `item` to events and samples that lack them."""

    item: str
    category: Names = Field(default_factory=list)
    fields: Mapping = Field(default_factory=dict)

    @model_validator(mode="after")
    def _useful(self) -> Items:
        if not self.category and not self.fields:
            raise ValueError("says nothing about the items: name category or fields")
        _check_fields(self.fields)
        return self


class Taxonomy(Part):
    """How the category trees of several domains hang together."""

    align: str | None = None  # csv: domain, path, shared
    separator: str = "/"
    shared: bool = True  # without `align`: the same path in two domains is the same node


class Statistics(Part):
    """Point-in-time context derived while building."""

    popularity: Names

    @model_validator(mode="after")
    def _windows(self) -> Statistics:
        for window in self.popularity:
            if window != "all" and not re.fullmatch(r"[1-9]\d*[smhdw]", window):
                raise ValueError(f'popularity: {window!r} is not a window; write e.g. "30m", "1h", "7d" or "all"')
        if len(set(self.popularity)) < len(self.popularity):
            raise ValueError("popularity names a window twice")
        return self


class FromEvents(Part):
    """Samples made from events: each positive event is a request, with negatives drawn among items seen before it in
    its domain, but for those that are positives of the same user at the same time."""

    positive: Names = Field(default_factory=list)  # actions; every event when empty
    negatives: int = Field(default=1, ge=1, le=1000, strict=True)
    draw: Literal["popularity", "uniform"] = "popularity"
    seed: int = Field(default=0, strict=True)

    @field_validator("positive")
    @classmethod
    def _once(cls, names: list[str]) -> list[str]:
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"{twice!r} is there twice; name each action once")
        return names


class Samples(Files):
    """What is to be predicted: one row per impression, or per impression and target (`target`, `label`)."""

    path: Names = Field(default_factory=list)
    layout: Literal["logs", "lists"] = "logs"
    user: str | None = None
    item: str | None = None
    time: Time | None = None
    domain: Role | None = None
    scenario: Role | None = None
    category: Names = Field(default_factory=list)
    fields: Mapping = Field(default_factory=dict)
    labels: Annotated[dict[str, Label], BeforeValidator(named)] = Field(default_factory=dict)
    target: str | None = None
    label: str | None = None
    value: str | None = None  # money that a sample brought, or that is at stake if its label comes true
    propensity: str | None = None  # probability with which the log's own policy shows this candidate in its request
    truth: dict[str, str] = Field(
        default_factory=dict
    )  # target -> column with the true probability, for generated worlds
    statistics: Statistics | None = None
    from_events: FromEvents | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Samples:
        found = []
        if self.from_events:
            given = self.model_fields_set - {"from_events", "statistics", "layout"}
            if given:
                found.append(f"from_events makes the samples, so {' and '.join(sorted(given))} must go")
            if self.layout == "lists":
                found.append('layout = "lists" reads samples from a file and from_events makes them: give one of them')
        else:
            found += [f"{key} is missing" for key in ("path", "user", "item", "time") if not getattr(self, key)]
            if (self.target is None) != (self.label is None):
                found.append("target and label go together (long form): one is missing")
            if bool(self.labels) == (self.label is not None):
                found.append('say what was observed: labels = { click = "…" }, or target = "…" and label = "…"')
        known = set(self.labels)
        for name in known | set(self.truth):
            if not _NAME.fullmatch(name):
                found.append(f"target {name!r} cannot name a file: use letters, digits, _ and -")
        if self.labels:
            found += [f"truth.{name}: no such target{hint(name, known)}" for name in self.truth if name not in known]
        try:
            _check_fields(self.fields)
        except ValueError as error:
            found.append(str(error))
        if found:
            raise ValueError("\n".join(found))
        return self


def _moment(value: Any) -> datetime | date | int | float:
    """A date, a number (in the samples' time unit) or a share; text must be an ISO date."""
    if isinstance(value, (date, int)) and not isinstance(value, bool):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    try:
        moment = datetime.fromisoformat(value)
    except (ValueError, TypeError):
        raise ValueError(f'{value!r} is not a moment; write e.g. "2024-05-01", "2024-05-01 12:00:00" or 0.1') from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


Moment = Annotated[Any, BeforeValidator(_moment)]


class Split(Part):
    """Training, validation and test samples: by time, by shares of time (numbers below 1), or by a column."""

    column: str | None = None
    valid: Moment = None
    test: Moment = None

    @model_validator(mode="after")
    def _either(self) -> Split:
        if self.column and (self.valid is not None or self.test is not None):
            raise ValueError("column and valid/test both say how to split: give one of them")
        if not self.column and self.test is not None and self.valid is None:
            raise ValueError("valid is missing: name the first moment of validation as well as that of test")
        if is_share(self.valid) != is_share(self.test) and self.test is not None:
            raise ValueError("valid and test must both be moments or both be shares of time")
        if is_share(self.valid) and self.valid + (self.test or 0) >= 1:
            raise ValueError("valid and test leave nothing to train on: their shares must sum to less than 1")
        return self


class Description(Part):
    """A whole dataset.toml."""

    name: str
    root: str | None = None
    events: list[Events] = Field(min_length=1)
    items: Items | None = None
    taxonomy: Taxonomy = Taxonomy()
    samples: Samples
    split: Split = Split()
    _file: Path = PrivateAttr(Path("dataset.toml"))
    _root: Path = PrivateAttr(Path())

    @property
    def file(self) -> Path:
        return self._file

    @property
    def base(self) -> Path:
        """The folder that paths are relative to."""
        return self._root

    @model_validator(mode="after")
    def _whole(self) -> Description:
        found = []
        lists = self.samples.layout == "lists"
        for position, block in enumerate(self.events):
            if lists and (block.path or block.user):
                found.append(
                    f'events[{position}]: with layout = "lists" events come from the samples\' file: drop path and user'
                )
            if not lists:
                found += [f"events[{position}].{key} is missing" for key in ("path", "user") if not getattr(block, key)]
        if self.samples.from_events and self.split.column:
            found.append("split.column: samples made from events have no columns; split by time")
        if not _NAME.fullmatch(self.name):
            found.append(f"name: {self.name!r} should be a plain word (letters, digits, _ and -)")
        if found:
            raise ValueError("\n".join(found))
        return self


def load_description(file: str | Path, root: str | Path | None = None) -> Description:
    """Read and check a dataset.toml.

    Args:
        file: the description.
        root: folder that its paths are relative to; default its own `root`, else the folder it lies in.

    Raises:
        InputError: one line for each thing that is wrong with it.
    """
    file = Path(file)
    try:
        raw = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{file}: no such file; name a dataset.toml or a shipped dataset") from None
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{file}: not valid TOML: {error}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    return parse_description(raw, file, root)


def parse_description(raw: dict[str, Any], file: Path, root: str | Path | None = None) -> Description:
    """Check a description that is already parsed; see `load_description`."""
    if isinstance(raw.get("events"), dict):  # [events] instead of [[events]] is what everybody writes first
        raw = {**raw, "events": [raw["events"]]}
    try:
        description = Description.model_validate(raw)
    except ValidationError as error:
        lines = [line for entry in error.errors() for line in _sentences(entry)]
        raise InputError("\n".join(f"{file}: {line}" for line in dict.fromkeys(lines))) from None
    description._file = file
    own = file.parent / description.root if description.root else file.parent
    description._root = Path(root) if root is not None else own
    if not description.base.is_dir():
        raise InputError(f"{file}: root {description.base} is not a folder; set root or --root to where the logs are")
    return description


def _sentences(entry: Any) -> list[str]:
    """One pydantic error as sentences with the key in front."""
    where = [part for part in entry["loc"] if part not in ("datetime", "date", "int", "float", "str")]
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in where).lstrip(".")
    kind, context = entry["type"], entry.get("ctx", {})
    if kind == "extra_forbidden":
        known = _known(where[:-1])
        return [f"{key}: unknown key{hint(str(where[-1]), known)}"]
    if kind == "missing":
        return [f"{key} is missing"]
    if kind == "value_error":
        return [f"{key}: {line}" if key else line for line in str(context["error"]).splitlines()]
    if kind == "too_short":
        return [f"{key}: at least one is needed"]
    got = entry.get("input")
    return [f"{key}: {plain(entry['msg'])}, not {got!r}"]


def _known(where: list[Any]) -> list[str]:
    """Keys of the table at a place in the description."""
    model: Any = Description
    for part in where:
        if isinstance(part, int):
            continue
        annotation = model.model_fields[part].annotation
        inner = [a for a in (annotation, *get_args(annotation)) if isinstance(a, type) and issubclass(a, Part)]
        if not inner:
            return []
        model = inner[0]
    return list(model.model_fields)
