"""What single cells mean: identifiers, labels, numbers, whatever type a file gives them."""

from __future__ import annotations

import polars as pl

from lsm_cli.data.parts import Label

BAD_LABEL = 2  # what a label that is neither 0, 1 nor missing reads as
NUMBERS = "it takes finite numbers, 1234.5, or nothing"  # of columns that hold some


def as_text(column: str, dtype: pl.DataType) -> pl.Expr:
    """An identifier as text: 3 and 3.0 are "3", True is "true", "" is missing."""
    value = pl.col(column)
    if dtype == pl.String:
        return pl.when(value != "").then(value)
    if dtype.is_float():
        whole = value.is_finite() & (value == value.floor()) & (value.abs() < 2**53)
        return (
            pl.when(whole)
            .then(value.cast(pl.Int64, strict=False).cast(pl.String))
            .when(value.is_not_nan())
            .then(value.cast(pl.String))
        )
    return value.cast(pl.String)


def spells_integer(column: str) -> pl.Expr:
    """Whether all text of a column is integers, each written in the one way that an integer is written."""
    value = pl.col(column)
    odd = value.str.starts_with("0") & (value.str.len_bytes() > 1) | value.str.contains("^[+-]")
    return ((value == "") | (value.cast(pl.Int64, strict=False).is_not_null() & odd.not_())).fill_null(True).all()


def spells_whole(column: str) -> pl.Expr:
    """Whether all text of a column is integers written as 3.0, and there is some."""
    value = pl.col(column)
    return ((value == "") | value.str.contains(r"^-?\d+\.0+$")).fill_null(True).all() & (value != "").any()


def as_label(label: Label, dtype: pl.DataType) -> pl.Expr:
    """A label as Int8: 0, 1, null where it was not observed, `BAD_LABEL` for anything else."""
    value = pl.col(label.column)
    if label.positive:
        return as_text(label.column, dtype).is_in(label.positive).cast(pl.Int8)
    if dtype == pl.Boolean:
        return value.cast(pl.Int8)
    if dtype == pl.String:
        value = pl.when(value != "").then(value.str.to_lowercase().replace({"true": "1", "false": "0"}))
        number = value.cast(pl.Float64, strict=False)
        missing = value.is_null()
    elif dtype.is_numeric():
        number = value.cast(pl.Float64)
        missing = number.is_null() | number.is_nan()
    else:
        return pl.lit(BAD_LABEL, pl.Int8)
    known = (
        pl.when(number == 0).then(pl.lit(0, pl.Int8)).when(number == 1).then(pl.lit(1, pl.Int8)).otherwise(BAD_LABEL)
    )
    return pl.when(missing.not_()).then(known).cast(pl.Int8)


def as_number(column: str, dtype: pl.DataType) -> pl.Expr:
    """A number as Float32: null where there is none, NaN for what is no number."""
    value = pl.col(column)
    if dtype == pl.String:
        return pl.when(value != "").then(value.cast(pl.Float32, strict=False).fill_null(float("nan")))
    return value.cast(pl.Float32, strict=False).fill_nan(None)
