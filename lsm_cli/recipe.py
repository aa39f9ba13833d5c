"""Recipes: where they lie, and how one is read.

A recipe file holds only what differs from the defaults of `options`. `load` merges file and `key=value` overrides,
validates the whole and reports every error at once, each with the nearest known key; what does not go together is
looked for once every key by itself is right.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from lsm_cli.errors import InputError
from lsm_cli.options import KEYS, SECTIONS, Recipe


def shipped_folder() -> Path:
    """Where the shipped recipes lie: inside an installed package, beside it in a checkout."""
    inside = Path(__file__).parent / "recipes"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "recipes"


def shipped() -> list[str]:
    return sorted(file.stem for file in shipped_folder().glob("*.toml"))


def find(name: str) -> Path:
    """The file of a recipe given by shipped name or by path.

    Raises:
        InputError: neither exists.
    """
    path = Path(name)
    if path.suffix == ".toml" or path.parent != Path("."):
        if not path.is_file():
            raise InputError(f"{path}: no such recipe file; `lsm recipes ls` lists the shipped ones")
        return path
    file = shipped_folder() / f"{name}.toml"
    if not file.is_file():
        near = difflib.get_close_matches(name, shipped(), n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise InputError(f"recipe {name!r} is not shipped; {hint}there are {', '.join(shipped())}")
    return file


def load(name: str, overrides: Iterable[str] = ()) -> Recipe:
    """Read, override and validate a recipe.

    Args:
        name: shipped name or path of a TOML file.
        overrides: `section.key=value` strings; the value is read as TOML, else taken as text.

    Raises:
        InputError: one line per error, all of them.
    """
    file = find(name)
    raw = _read(file)
    raw.pop("tune", None)  # a search space, which `lsm tune` reads
    raw.setdefault("name", file.stem)
    errors = [problem for text in overrides if (problem := _override(raw, text))]
    return parse(raw, str(file), errors)


def tune_table(name: str) -> dict[str, Any]:
    """The `[tune]` table of a recipe file: the search space that it suggests; empty if it has none.

    Raises:
        InputError: there is no such recipe, or `tune` is not a table.
    """
    file = find(name)
    table = _read(file).get("tune", {})
    if not isinstance(table, dict):
        raise InputError(f"{file}: tune must be a table of key = spec, such as [tune] with model.dim = [8, 16]")
    return table


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: not valid TOML: {error}") from None


def parse(raw: dict[str, Any], source: str, errors: Iterable[str] = ()) -> Recipe:
    """Validate a recipe given as nested dictionaries; `errors` found earlier are reported with its own."""
    found = list(errors)
    try:
        recipe = Recipe.model_validate(raw)
    except ValidationError as error:
        found += [line for item in error.errors() for line in _sentence(item).splitlines()]
    if found:
        raise InputError("\n".join(f"{source}: {line}" for line in found))
    return recipe


def _override(raw: dict[str, Any], text: str) -> str | None:
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals or not key:
        return f"override {text!r} is not of the form section.key=value, such as model.layers=3"
    *sections, last = key.split(".")
    place = raw
    for part in sections:
        place = place.setdefault(part, {})
        if not isinstance(place, dict):
            return f"override {text!r}: {part!r} is not a section; {_nearest(key)}"
    try:
        place[last] = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        place[last] = value
    return None


def split_values(text: str) -> list[str]:
    """Values separated by commas; commas inside brackets, braces or quotes do not separate."""
    parts, depth, quote = [""], 0, ""
    for sign in text:
        if quote:
            quote = "" if sign == quote else quote
        elif sign in "\"'":
            quote = sign
        elif sign in "[{":
            depth += 1
        elif sign in "]}":
            depth -= 1
        elif sign == "," and not depth:
            parts.append("")
            continue
        parts[-1] += sign
    return parts


def _nearest(key: str) -> str:
    name = key.split(".")[-1]
    near = [known for known in KEYS if known.split(".")[-1] == name]  # the right name in the wrong section
    near = near or difflib.get_close_matches(key, KEYS, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else "`lsm recipes show NAME` lists every key"


def _sentence(item: Any) -> str:
    key = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        return f"unknown key {key!r}; {_nearest(key)}"
    message = item["msg"].removeprefix("Value error, ")
    if not key:
        return message
    message = message[:1].lower() + message[1:]
    return f"{key} = {item['input']!r}: {message}"


def choices(key: str) -> tuple[str, ...]:
    """The literal values that an option allows, or an empty tuple."""
    section, name = key.split(".")
    annotation = SECTIONS[section].model_fields[name].annotation
    found = [arg for part in (annotation, *get_args(annotation)) for arg in get_args(part) if isinstance(arg, str)]
    return tuple(dict.fromkeys(found))
