"""lsm recipes: the shipped recipes, to look at, copy and check."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lsm_cli import recipe as recipes
from lsm_cli.errors import InputError
from lsm_cli.options import SECTIONS
from lsm_cli.report.console import Console
from lsm_cli.tuning import space


def ls(console: Console) -> dict[str, Any]:
    found = {name: recipes.load(name).description for name in recipes.shipped()}
    console.table("Recipes", ["name", "description"], [[name, text] for name, text in found.items()])
    console.next("lsm recipes show stacked_tin")
    return {"recipes": found}


def show(console: Console, name: str, overrides: list[str]) -> dict[str, Any]:
    """Every option: value, default, range, meaning."""
    recipe = recipes.load(name, overrides)
    console.text(f"{recipe.name}: {recipe.description}")
    for section, options in SECTIONS.items():
        values = getattr(recipe, section)
        rows = []
        for key, info in options.model_fields.items():
            value, default = getattr(values, key), info.get_default(call_default_factory=True)
            changed = "" if value == default else f"(default {_show(default)})"
            rows.append(
                [
                    f"{section}.{info.alias or key}",
                    f"{_show(value)} {changed}".strip(),
                    _range(section, key, info),
                    info.description,
                ]
            )
        console.table(section, ["key", "value", "allowed", "meaning"], rows)
    return recipe.model_dump(by_alias=True)


def cp(console: Console, name: str, to: Path) -> dict[str, Any]:
    source = recipes.find(name)
    if to.suffix != ".toml":
        raise InputError(f"{to}: a recipe file ends in .toml")
    if to.exists():
        raise InputError(f"{to}: exists already; choose another name")
    try:
        to.write_text(source.read_text())
    except OSError as error:
        raise InputError(f"{to}: cannot be written ({error.strerror})") from None
    console.text(f"copied {name} to {to}")
    console.next(f"lsm recipes check {to}")
    return {"from": str(source), "to": str(to)}


def check(console: Console, names: list[str]) -> dict[str, Any]:
    errors = []
    for name in names:
        try:
            recipe = recipes.load(name)
            space.parse(recipes.tune_table(name), source=f"{recipes.find(name)}: [tune]")
            console.text(f"{name}: valid ({recipe.name}, reads the history by {recipe.model.sequence})")
        except InputError as error:
            errors += str(error).splitlines()
    if errors:
        raise InputError("\n".join(errors))
    return {"valid": names}


def _show(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(str(item) for item in value) + "]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _range(section: str, key: str, info: Any) -> str:
    allowed = recipes.choices(f"{section}.{key}")
    if allowed:
        return " | ".join(allowed)
    bounds = {
        name: getattr(item, name) for item in info.metadata for name in ("ge", "gt", "le", "lt") if hasattr(item, name)
    }
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    return " ".join(f"{signs[name]} {bound:g}" for name, bound in bounds.items())
