"""What the tables of a dataset description are made of: columns and constants, times, labels, files."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, model_validator

from lsm_cli.data.wording import as_word

TICKS = {"s": 1, "ms": 1_000, "us": 1_000_000}


def listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def named(value: Any) -> Any:
    return {name: name for name in value} if isinstance(value, list) else value


Names = Annotated[list[str], BeforeValidator(listed)]
Mapping = Annotated[dict[str, str], BeforeValidator(named)]  # our name -> column; a list keeps the columns' names


class Part(BaseModel):
    """A table of the description: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", str_min_length=1)


class Role(Part):
    """A value that is the same in every row (`"video"`) or read from a column (`{ column = "…" }`)."""

    value: str | None = None
    column: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _constant(cls, value: Any) -> Any:
        if isinstance(value, dict):
            return value
        return {"value": str(value) if isinstance(value, int) else value}

    @model_validator(mode="after")
    def _one(self) -> Role:
        if (self.value is None) == (self.column is None):
            raise ValueError('give either a constant ("video") or { column = "…" }')
        return self


class Time(Part):
    """When something happened: numbers with a unit, a datetime column, or text with a format."""

    column: str
    unit: Literal["s", "ms", "us"] | None = None
    format: str | None = None
    prefix: str | None = None  # put before the text, e.g. the year of a log that only has month and day

    @model_validator(mode="before")
    @classmethod
    def _bare(cls, value: Any) -> Any:
        return {"column": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _either(self) -> Time:
        if self.unit and self.format:
            raise ValueError("unit is for numbers and format is for text: give one of them")
        if self.prefix and not self.format:
            raise ValueError('prefix needs a format, e.g. format = "%Y%m%d"')
        if self.prefix and self.format and not re.search("%[YyFsD]", self.format):
            self.format = "%Y" + self.format
        return self


class Label(Part):
    """A target's outcome: a column of 0 and 1, or any column and the values that count as 1."""

    column: str
    positive: list[str] = []

    @model_validator(mode="before")
    @classmethod
    def _bare(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"column": value}
        if isinstance(value, dict) and "positive" in value:
            wanted = value["positive"] if isinstance(value["positive"], list) else [value["positive"]]
            return {**value, "positive": [as_word(entry) for entry in wanted]}
        return value


class Files(Part):
    """Where rows are read from; a path may be a glob and is relative to the description (or to `root`)."""

    path: Names
    format: Literal["csv", "parquet", "ndjson"] | None = None
    columns: list[str] | None = None  # names of a csv without a header line
    separator: str = ","
    where: dict[str, Any] = {}  # keep only rows with column = value, or one of several values

    @model_validator(mode="after")
    def _separator(self) -> Files:
        if len(self.separator.encode()) != 1:
            raise ValueError(f"separator {self.separator!r} must be a single byte")
        if self.columns and len(set(self.columns)) < len(self.columns):
            raise ValueError("columns names a column twice")
        return self
