"""The search space: which recipe options vary, over what, and when.

A space is a table of recipe key -> spec, from `[tune]` in a recipe file or from `--space key=spec`:

    [tune]
    "train.lr" = "1e-4:1e-2:log"                # low:high, :log or :step=…
    "model.dim" = [8, 16, 32]                   # choices, of any kind that the option takes
    "model.hidden" = [[64], [128, 64]]
    "model.layers" = { range = "1:4", when = "model.sequence=stacked_tin" }
    "search.top_k" = { choices = [20, 50], when = ["search.method!=none", "model.sequence=tin|stacked_tin"] }

On the command line: `--space model.dim=8,16 --space "model.layers=1:4 when model.sequence=stacked_tin"`.
Every bound, choice and condition is held against the option's own type and range; all errors are reported at once.
"""

from __future__ import annotations

import difflib
import json
import math
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from lsm_cli import recipe as recipes
from lsm_cli.errors import InputError
from lsm_cli.options import KEYS, SECTIONS, Recipe
from lsm_cli.recipe import split_values

FIXED = {
    "train.metric": "trials are compared by it",
    "train.evaluations": "trials are compared at the same validations",
    "train.valid_samples": "trials are compared on the same samples",
    "data.targets": "the metric is a mean over the targets",
    "train.seed": "a lucky seed is no better recipe",
    "train.device": "it belongs to the machine",
    "train.threads": "it belongs to the machine",
    "train.checkpoint_seconds": "it changes no result",
    "train.tensorboard": "it changes no result",
}


@dataclass(frozen=True)
class Condition:
    """`key=a|b` or `key!=a|b`: holds when the recipe's value is (not) one of them."""

    key: str
    values: tuple[Any, ...]
    negated: bool = False

    def holds(self, value: Any) -> bool:
        return (value in self.values) != self.negated

    def __str__(self) -> str:
        return f"{self.key}{'!=' if self.negated else '='}{'|'.join(_label(value) for value in self.values)}"


@dataclass(frozen=True)
class Option:
    """One recipe option that varies: over choices, or from low to high."""

    key: str
    choices: tuple[Any, ...] = ()
    low: float = 0
    high: float = 0
    log: bool = False
    step: float | None = None
    whole: bool = False  # integers only
    when: tuple[Condition, ...] = ()

    def labels(self) -> list[Any]:
        """The choices as the study stores them: scalars as they are, lists and tables as TOML text."""
        return [value if isinstance(value, bool | int | float | str) else _label(value) for value in self.choices]

    def value(self, stored: Any) -> Any:
        """The recipe's value of a stored one."""
        return self.choices[self.labels().index(stored)] if self.choices else stored

    def stored(self, value: Any) -> Any:
        """The study's value of a recipe's one; the inverse of `value`."""
        return self.labels()[self.choices.index(value)] if self.choices else value

    def contains(self, value: Any) -> bool:
        """Whether the option can take the value."""
        if self.choices:
            return value in self.choices
        if not isinstance(value, int | float) or not self.low <= value <= self.high:
            return False
        steps = (value - self.low) / (self.step or 1)
        return not (self.step or self.whole) or math.isclose(steps, round(steps), abs_tol=1e-9)

    def spec(self) -> Any:
        """What parses to this option again."""
        if self.choices:
            body: dict[str, Any] = {"choices": list(self.choices)}
        else:
            more = ":log" if self.log else f":step={self.step!r}" if self.step else ""
            body = {"range": f"{self.low!r}:{self.high!r}{more}"}
        return body | ({"when": [str(condition) for condition in self.when]} if self.when else {})

    def describe(self) -> str:
        if self.choices:
            text = ", ".join(_label(value) for value in self.choices)
        else:
            text = f"{self.low:g} to {self.high:g}{', log' if self.log else ''}"
            text += f", step {self.step:g}" if self.step else ""
        return text + "".join(f"; if {condition}" for condition in self.when)


@dataclass(frozen=True)
class Space:
    """Options in an order in which every condition only looks back."""

    options: tuple[Option, ...]

    def draw(self, base: Recipe, suggest: Callable[[Option], Any]) -> dict[str, Any]:
        """Ask for the value of every option whose conditions hold; key -> value."""
        raw, chosen = base.model_dump(by_alias=True), dict[str, Any]()
        for option in self.options:
            if all(condition.holds(_look(raw, chosen, condition.key)) for condition in option.when):
                chosen[option.key] = suggest(option)
        return chosen

    def of(self, recipe: Recipe) -> dict[str, Any] | None:
        """Where a recipe lies in the space, or None if it lies outside."""
        raw = recipe.model_dump(by_alias=True)
        found = self.draw(recipe, lambda option: _look(raw, {}, option.key))
        inside = all(option.contains(found[option.key]) for option in self.options if option.key in found)
        return found if inside else None

    def idle(self, base: Recipe) -> dict[str, str]:
        """Options that no trial can reach, with the reason: their condition rests on a value that does not vary."""
        raw, varied, found = base.model_dump(by_alias=True), {option.key for option in self.options}, dict[str, str]()
        for option in self.options:
            for condition in option.when:
                value = _look(raw, {}, condition.key)
                if (condition.key not in varied or condition.key in found) and not condition.holds(value):
                    found[option.key] = f"{condition.key} is {_label(value)}"
        return found

    def without(self, keys: Iterable[str]) -> Space:
        left_out = set(keys)
        return Space(tuple(option for option in self.options if option.key not in left_out))

    def table(self) -> dict[str, Any]:
        """key -> spec, which parses to this space again."""
        return {option.key: option.spec() for option in self.options}


def applied(base: Recipe, values: Mapping[str, Any], **names: str) -> Recipe:
    """The recipe with some options changed.

    Raises:
        InputError: the combination is one that recipes refuse.
    """
    raw = base.model_dump(by_alias=True) | names
    for key, value in values.items():
        section, name = key.split(".", 1)
        raw[section] = raw[section] | {name: value}
    return recipes.parse(raw, "recipe")


def parse(table: Mapping[str, Any], texts: Iterable[str] = (), source: str = "[tune]") -> Space:
    """A space from a `[tune]` table and from `key=spec` texts, which replace the table's entries of the same key.

    Raises:
        InputError: one line per error, all of them.
    """
    errors: list[str] = []
    options: dict[str, Option] = {}
    for key, spec in _flat(table).items():
        _add(options, errors, source, key, spec)
    for text in texts:
        key, equals, spec = text.partition("=")
        if not equals or not key.strip() or not spec.strip():
            errors.append(f"--space {text!r} is not key=spec, such as train.lr=1e-4:1e-2:log or model.dim=8,16")
            continue
        body, _, when = spec.partition(" when ")
        _add(options, errors, "--space", key.strip(), {"spec": body.strip(), "when": when} if when else body.strip())
    order = _ordered(options, errors)
    if errors:
        raise InputError("\n".join(errors))
    return Space(tuple(order))


def _flat(table: Mapping[str, Any]) -> dict[str, Any]:
    """`"model.dim" = …` and `model.dim = …` alike."""
    found: dict[str, Any] = {}
    for key, spec in table.items():
        if key in SECTIONS and isinstance(spec, Mapping):
            found |= {f"{key}.{name}": value for name, value in spec.items()}
        else:
            found[key] = spec
    return found


def _add(options: dict[str, Option], errors: list[str], source: str, key: str, spec: Any) -> None:
    if key not in KEYS:
        errors.append(f"{source}: unknown key {key!r}; {recipes._nearest(key)}")
    elif key in FIXED:
        errors.append(f"{source}: {key} cannot vary: {FIXED[key]}; set it for the whole study as {key}=…")
    else:
        try:
            options[key] = _option(key, spec)
        except _ProblemsError as problems:
            errors += [f"{source}: {key}: {line}" for line in problems.lines]


class _ProblemsError(Exception):
    def __init__(self, *lines: str) -> None:
        self.lines = lines


def _option(key: str, spec: Any) -> Option:
    when: tuple[Condition, ...] = ()
    problems: list[str] = []
    if isinstance(spec, Mapping):
        known = ("range", "choices", "when", "spec")
        for name in spec:
            if name not in known:
                near = difflib.get_close_matches(name, known[:3], n=1)
                hint = f"did you mean {near[0]!r}?" if near else "there is range, choices and when"
                problems.append(f"unknown {name!r}; {hint}")
        bodies = [spec[name] for name in ("range", "choices", "spec") if name in spec]
        try:
            when = _conditions(spec.get("when", ()))
        except _ProblemsError as found:
            problems += found.lines
        if len(bodies) != 1:
            problems.append('needs either range = "low:high" or choices = […]')
        if problems:
            raise _ProblemsError(*problems)
        spec = bodies[0]
    numeric = _annotation(key) in (int, float)
    if isinstance(spec, str) and numeric and ":" in spec:
        return _range(key, spec, when)
    values = spec if isinstance(spec, list | tuple) else _listed(spec) if isinstance(spec, str) else [spec]
    if not values:
        raise _ProblemsError("has no choices")
    checked: list[Any] = []
    lines: list[str] = []
    for value in values:
        try:
            checked.append(_checked(key, value))
        except _ProblemsError as found:
            lines += found.lines
    if lines:
        raise _ProblemsError(*lines)
    for place, value in enumerate(checked):
        if value in checked[:place]:
            raise _ProblemsError(f"{_label(value)} is listed twice")
    return Option(key, choices=tuple(checked), when=when)


def _range(key: str, text: str, when: tuple[Condition, ...]) -> Option:
    parts = [part.strip() for part in text.split(":")]
    if len(parts) > 3 or not all(parts):
        raise _ProblemsError(f"{text!r} is not a range; write low:high, low:high:log or low:high:step=…")
    low, high = (_checked(key, _value(part)) for part in parts[:2])
    whole = _annotation(key) is int
    log, step, mode = False, None, parts[2] if len(parts) == 3 else ""
    if mode == "log":
        log = True
    elif mode.startswith("step="):
        number = _value(mode.removeprefix("step="))
        if not isinstance(number, int | float) or not 0 < number < math.inf or (whole and number != int(number)):
            raise _ProblemsError(f"{mode!r}: the step must be a positive {'whole ' if whole else ''}number")
        step = int(number) if whole else float(number)
    elif mode:
        raise _ProblemsError(f"{mode!r} is not known; a range ends in :log or :step=…")
    if not low < high:
        raise _ProblemsError(f"{text!r} is empty: the low end must be below the high end")
    if log and low <= 0:
        raise _ProblemsError(f"{text!r}: a logarithmic range must start above 0")
    if step:
        if step > high - low:
            raise _ProblemsError(f"{text!r}: the step is wider than the range")
        high = low + math.floor((high - low) / step + 1e-9) * step  # the last value that steps reach
    return Option(key, low=low, high=high, log=log, step=step, whole=whole, when=when)


def _conditions(given: Any) -> tuple[Condition, ...]:
    texts = [given] if isinstance(given, str) else list(given)
    found, problems = [], []
    for text in [part for each in texts for part in str(each).split(" and ")]:
        match = re.fullmatch(r"\s*([\w.]+)\s*(!?=)\s*(.+?)\s*", text)
        if match is None:
            problems.append(f"when {text!r} is not a condition; write key=value, key=a|b or key!=value")
            continue
        key, sign, values = match.groups()
        if key not in KEYS:
            problems.append(f"when {text!r}: unknown key {key!r}; {recipes._nearest(key)}")
            continue
        try:
            allowed = tuple(_checked(key, _value(value.strip())) for value in values.split("|"))
            found.append(Condition(key, allowed, sign == "!="))
        except _ProblemsError as error:
            problems += [f"when {text!r}: {line}" for line in error.lines]
    if problems:
        raise _ProblemsError(*problems)
    return tuple(found)


def _ordered(options: dict[str, Option], errors: list[str]) -> list[Option]:
    """Options after those that their conditions look at, else as given."""
    order: list[Option] = []
    left = dict(options)
    while left:
        free = [key for key, option in left.items() if not any(condition.key in left for condition in option.when)]
        if not free:
            errors.append(f"[tune]: the conditions of {', '.join(left)} go round in a circle; drop one of them")
            break
        order += [left.pop(key) for key in free]
    for option in options.values():
        for condition in option.when:
            other = options.get(condition.key)
            if other is not None and not condition.negated and not any(map(other.contains, condition.values)):
                never = f"when {str(condition)!r} can never hold: {other.key} is {other.describe()}"
                errors.append(f"[tune]: {option.key}: {never}")
    return order


def _listed(text: str) -> list[Any]:
    """Comma-separated values; commas inside brackets or quotes do not separate."""
    return [_value(part.strip()) for part in split_values(text)]


def _value(text: str) -> Any:
    """A TOML value, else the text itself."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _annotation(key: str) -> Any:
    return _field(key).annotation


@cache
def _field(key: str) -> Any:
    section, name = key.split(".", 1)
    fields = SECTIONS[section].model_fields
    return next(info for field, info in fields.items() if (info.alias or field) == name)


@cache
def _adapter(key: str) -> TypeAdapter[Any]:
    info = _field(key)
    form: Any = Annotated[(info.annotation, *info.metadata)] if info.metadata else info.annotation
    return TypeAdapter(form, config=ConfigDict(allow_inf_nan=False))


def _checked(key: str, value: Any) -> Any:
    try:
        return _adapter(key).validate_python(value)
    except ValidationError as error:
        words = error.errors()[0]["msg"].removeprefix("Input ")
        raise _ProblemsError(f"{_label(value)}: {words[:1].lower() + words[1:]}") from None


def _look(raw: Mapping[str, Any], chosen: Mapping[str, Any], key: str) -> Any:
    section, name = key.split(".", 1)
    return chosen[key] if key in chosen else raw[section][name]


def _label(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
