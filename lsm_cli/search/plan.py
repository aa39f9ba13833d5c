"""From the recipe's options to a search over one store."""

from __future__ import annotations

import difflib

import numpy as np

from lsm_cli.data.batches import SECONDS_PER_DAY
from lsm_cli.data.store import Store
from lsm_cli.errors import InputError
from lsm_cli.options import SearchOptions
from lsm_cli.search.hard import ANY, HardOptions


def hard_options(options: SearchOptions, store: Store, fields: list[str], top_k: int) -> HardOptions:
    """The hard search that a recipe asks for.

    Args:
        fields: side information in use.
        top_k: behaviours to find.

    Raises:
        InputError: a level, scenario or domain that the store does not have.
    """
    levels = _levels(options, store, fields)
    for name in options.budgets:
        if name not in levels:
            raise InputError(f"search.budgets: {name!r} is not one of the levels searched{_near(name, levels)}")
    only = {}
    for field, names in (("scenario", options.scenarios), ("domain", options.domains)):
        if names:
            only[field] = _ids(store, field, names)
    within = round(options.within_days * SECONDS_PER_DAY * store.ticks_per_second)
    return HardOptions(levels, top_k, dict(options.budgets), within, only or None)


def _levels(options: SearchOptions, store: Store, fields: list[str]) -> list[str]:
    """Finest first; the item, every category level and `any` unless the recipe says otherwise."""
    shared = [name for name in fields if store.fields[name].in_history and store.fields[name].in_sample]
    leaf_first = sorted(
        (name for name in shared if store.fields[name].level), key=lambda name: -store.fields[name].level
    )
    levels = list(options.levels) or [*(name for name in shared if name == "item"), *leaf_first, ANY]
    if "leaf" in levels and leaf_first:
        levels[levels.index("leaf")] = leaf_first[0]
    for place, name in enumerate(levels):
        if name == ANY and place < len(levels) - 1:
            raise InputError(
                f"search.levels: 'any' matches everything, so {levels[place + 1]!r} after it finds nothing"
            )
        if name != ANY and name not in shared:
            raise InputError(
                f"search.levels: {store.path} has no field {name!r} that behaviours and candidates share"
                f"{_near(name, [*shared, ANY])}"
            )
        if name in levels[:place]:
            raise InputError(f"search.levels: {name!r} is there twice")
    if options.min_level:
        if options.min_level not in levels:
            raise InputError(
                f"search.min_level: {options.min_level!r} is not one of the levels searched"
                f"{_near(options.min_level, levels)}"
            )
        levels = levels[: levels.index(options.min_level) + 1]
    return levels


def _ids(store: Store, field: str, wanted: list[str]) -> np.ndarray:
    names = store.manifest["fields"].get(field, {}).get("names", {})
    if not names:
        raise InputError(f"search.{field}s: {store.path} knows no names of {field}s in its behaviours")
    ids = {name: int(number) for number, name in names.items()}
    for name in wanted:
        if name not in ids:
            raise InputError(f"search.{field}s: {store.path} has no {field} {name!r}{_near(name, list(ids))}")
    return np.array([ids[name] for name in wanted])


def _near(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(known)}"
