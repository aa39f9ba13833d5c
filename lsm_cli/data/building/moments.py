"""Time: whatever a log holds becomes integer ticks since 1970-01-01 UTC."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime
from typing import Any

import polars as pl

from lsm_cli.data.parts import TICKS, Time
from lsm_cli.errors import InputError

_WIDTHS = {"Y": 4, "m": 2, "d": 2, "H": 2, "M": 2, "S": 2, "y": 2}
_ISO = ("%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%dT%H:%M", "%Y-%m-%d %H:%M")


def time_resolution(time: Time, dtype: pl.DataType) -> int:
    """Ticks per second that lose nothing of such a column.

    Raises:
        InputError: the column's type does not say what its values mean.
    """
    if dtype.is_temporal():
        if dtype == pl.Time or dtype == pl.Duration:
            raise InputError(f"column {time.column!r} is a {dtype}, not a moment: name a date, datetime or number")
        return 1 if dtype == pl.Date else TICKS["us"]
    if dtype.is_numeric() and not time.format:
        if not time.unit:
            raise InputError(
                f"column {time.column!r} holds numbers and nothing says of what; write "
                f'time = {{ column = "{time.column}", unit = "s" }} (or ms, us)'
            )
        return TICKS[time.unit] if dtype.is_integer() else TICKS["us"]
    if dtype == pl.String or dtype.is_numeric():
        return TICKS["us"]
    raise InputError(f"column {time.column!r} is of type {dtype}, not a time")


def parse_time(time: Time, dtype: pl.DataType, resolution: int) -> pl.Expr:
    """A column as Int64 ticks, `resolution` a second; null where it cannot be understood."""
    value = pl.col(time.column)
    if dtype.is_temporal():
        return _ticks(value, resolution)
    if time.format:
        text = value.cast(pl.String)
        digits = re.fullmatch("(?:%[YmdHMSy])+", time.format)
        if digits:  # "0829" read as a number has lost its zero
            width = sum(_WIDTHS[code] for code in time.format[1::2]) - len(time.prefix or "")
            text = text.str.zfill(width)
        if time.prefix:
            text = pl.lit(time.prefix) + text
        return _ticks(_parse(text, time.format), resolution)
    if time.unit:
        scale = resolution // TICKS[time.unit]
        if dtype.is_integer():
            return value.cast(pl.Int64) * scale
        whole = value.cast(pl.Int64, strict=False) * scale if dtype == pl.String else None
        number = value.cast(pl.Float64, strict=False)
        finite = pl.when(number.is_finite() & (number.abs() < 2**53)).then(number)
        broken = (finite * scale).round().cast(pl.Int64, strict=False)
        return broken if whole is None else pl.coalesce(whole, broken)
    zoned = value.str.strip_chars().str.replace(r"(?:Z|[+-]00:?00)$", "")
    day = zoned.str.to_date("%Y-%m-%d", strict=False).cast(pl.Datetime("us"))
    return _ticks(pl.coalesce(*(zoned.str.to_datetime(f, strict=False, time_unit="us") for f in _ISO), day), resolution)


def _parse(text: pl.Expr, form: str) -> pl.Expr:
    if not re.search("%[HIMSTRXsfc+.]", form):
        return text.str.to_date(form, strict=False).cast(pl.Datetime("us"))
    if "%H" in form and "%M" not in form:  # an hour alone is not a time of day to the parser
        return (text + ":00").str.to_datetime(form + ":%M", strict=False, time_unit="us")
    if "%z" in form or "%:z" in form:
        return text.str.to_datetime(form, strict=False, time_unit="us", time_zone="UTC")
    return text.str.to_datetime(form, strict=False, time_unit="us")


def _ticks(value: pl.Expr, resolution: int) -> pl.Expr:
    micro = value.cast(pl.Datetime("us")).dt.epoch("us") if resolution else value
    return micro.floordiv(TICKS["us"] // resolution)


def moment_ticks(moment: Any, unit: str | None, resolution: int, key: str) -> int:
    """A moment of the description (a date, a datetime, or a number in the time unit) as ticks.

    Raises:
        InputError: a number, but the time column has no unit.
    """
    if isinstance(moment, (int, float)):
        if not unit:
            raise InputError(
                f'{key}: {moment} is a number but the samples\' time has no unit; write a date ("2024-05-01")'
            )
        return round(moment * (resolution // TICKS[unit]))
    if isinstance(moment, date) and not isinstance(moment, datetime):
        moment = datetime(moment.year, moment.month, moment.day)
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    since = aware - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86_400 + since.seconds) * resolution + since.microseconds * resolution // TICKS["us"]


def iso(ticks: int, resolution: int) -> str:
    """Ticks as a date and time in UTC."""
    try:
        moment = datetime.fromtimestamp(ticks / resolution, UTC)
    except (OverflowError, ValueError, OSError):
        return f"{ticks / resolution:.0f} s"
    return moment.strftime("%Y-%m-%d %H:%M:%S")
