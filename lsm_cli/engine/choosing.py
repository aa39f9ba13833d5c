"""Which runs of the trail are shown, and in what order: `lsm runs --filter click.auc>0.8 --sort model.layers`."""

from __future__ import annotations

import difflib
import fnmatch
import json
import re
from collections.abc import Callable, Iterable
from typing import Any

from lsm_cli.engine.trail import FIELDS, QUALITY, Record
from lsm_cli.errors import InputError

BEST_FIRST = {"auc", "gauc", "samples_per_second", "when"}  # sorted downwards; everything else upwards


def value_of(record: Record, key: str) -> Any:
    """A field, `target.metric`, a metric (the mean over targets) or a recipe option; None where a run has none."""
    if key in FIELDS:
        return record[key]
    if key in QUALITY:
        values = [entry[key] for entry in record["metrics"].values() if entry.get(key) is not None]
        return sum(values) / len(values) if values else None
    first, _, last = key.rpartition(".")
    if first in record["metrics"]:
        return record["metrics"][first].get(last)
    section = record["options"].get(first)
    return section.get(last) if isinstance(section, dict) else None


def select(records: list[Record], filters: Iterable[str]) -> list[Record]:
    """The runs that pass all filters, such as `recipe=tin`, `name=tune/*`, `model.layers>=2`, `click.auc>0.8`.

    Raises:
        InputError: a filter that cannot be read, or a key that no run has.
    """
    for text in filters:
        parts = re.fullmatch(r"\s*([^=<>!\s]+)\s*(>=|<=|!=|=|>|<)\s*(.*?)\s*", text)
        if parts is None:
            raise InputError(f"--filter {text!r}: write key=value, or a comparison such as 'click.auc>0.8'")
        key, sign, wanted = parts.groups()
        _known(records, key, "--filter")
        if sign not in ("=", "!=") and not _is_number(wanted) and any(_is_number(value_of(r, key)) for r in records):
            raise InputError(f"--filter {text!r}: {key} is a number, {wanted!r} is none")
        records = [record for record in records if _passes(value_of(record, key), sign, wanted)]
    return records


def ordered(records: list[Record], key: str, reverse: bool = False) -> list[Record]:
    """Best or newest first, else ascending; runs without the value last.

    Raises:
        InputError: a key that no run has.
    """
    _known(records, key, "--sort")
    have = [record for record in records if value_of(record, key) is not None]
    lack = [record for record in records if value_of(record, key) is None]
    downwards = (key.rpartition(".")[2] in BEST_FIRST) != reverse
    return sorted(have, key=lambda record: _sortable(value_of(record, key)), reverse=downwards) + lack


def _sortable(value: Any) -> tuple[int, float, str]:
    number = isinstance(value, (int, float))
    return (0, float(value), "") if number else (1, 0.0, str(value))


def _is_number(value: Any) -> bool:
    try:
        float(value)
        return True
    except (TypeError, ValueError):
        return False


def _passes(value: Any, sign: str, wanted: str) -> bool:
    if value is None:
        return False
    if sign in ("=", "!="):
        return (sign == "=") == _equal(value, wanted)
    compare: dict[str, Callable[[Any, Any], bool]] = {
        ">": lambda a, b: a > b,
        "<": lambda a, b: a < b,
        ">=": lambda a, b: a >= b,
        "<=": lambda a, b: a <= b,
    }
    try:
        return compare[sign](float(value), float(wanted))
    except (TypeError, ValueError):
        return compare[sign](str(value), wanted)


def _equal(value: Any, wanted: str) -> bool:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            return float(value) == float(wanted)
        except ValueError:
            return False
    text = value if isinstance(value, str) else json.dumps(value)
    return fnmatch.fnmatchcase(text, wanted) or text.replace(" ", "") == wanted.replace(" ", "")


def _known(records: list[Record], key: str, option: str) -> None:
    targets = {target for record in records for target in record["metrics"]}
    known = {*FIELDS, *QUALITY, *(f"{target}.{name}" for target in targets for name in QUALITY)}
    for record in records:
        sections = record["options"].items()
        known |= {f"{section}.{name}" for section, values in sections if isinstance(values, dict) for name in values}
    if records and key not in known:
        near = difflib.get_close_matches(key, sorted(known), n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join([*FIELDS, *QUALITY])}"
        raise InputError(f"{option}: no run has {key!r}{hint}")
