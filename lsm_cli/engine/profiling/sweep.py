"""The same recipe at several values of some options, every combination."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product

from lsm_cli import recipe as recipes
from lsm_cli.errors import InputError
from lsm_cli.options import Recipe


def axes(texts: Iterable[str]) -> dict[str, list[str]]:
    """`key=v1,v2,…` strings as key -> values; commas inside brackets and quotes belong to a value.

    Raises:
        InputError: not of that form, or a key twice.
    """
    found: dict[str, list[str]] = {}
    for text in texts:
        key, equals, values = text.partition("=")
        parts = [value.strip() for value in recipes.split_values(values)]
        if not equals or not key.strip() or not all(parts):
            raise InputError(f"--sweep {text!r} is not of the form key=v1,v2, such as model.max_len=50,200,1000")
        if key.strip() in found:
            raise InputError(f"--sweep {key.strip()} is given twice; name all its values at once")
        found[key.strip()] = parts
    return found


def is_axis(text: str) -> bool:
    """Whether a `key=value` override names several values."""
    return len(recipes.split_values(text.partition("=")[2])) > 1


def combinations(name: str, overrides: list[str], swept: dict[str, list[str]]) -> list[tuple[dict[str, str], Recipe]]:
    """Every combination with its recipe; all are checked before anything runs.

    Raises:
        InputError: an unknown key or a value out of range, each named once.
    """
    found, errors = [], []
    for values in product(*swept.values()):
        chosen = dict(zip(swept, values, strict=True))
        try:
            found.append((chosen, recipes.load(name, [*overrides, *(f"{k}={v}" for k, v in chosen.items())])))
        except InputError as error:
            errors += str(error).splitlines()
    if errors:
        raise InputError("\n".join(dict.fromkeys(errors)))
    return found
