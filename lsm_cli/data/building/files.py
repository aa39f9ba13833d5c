"""Files: found by name, told apart by format, read lazily, with the columns that each of them has."""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import polars as pl

from lsm_cli.data.building.cells import as_text, spells_integer, spells_whole
from lsm_cli.data.description import Description
from lsm_cli.data.parts import Files
from lsm_cli.data.wording import as_word, hint
from lsm_cli.errors import InputError

_HEAD = 1_000  # rows that show most text to be text
_SUFFIXES = {
    ".csv": "csv", ".tsv": "csv", ".txt": "csv", ".parquet": "parquet", ".pq": "parquet",
    ".ndjson": "ndjson", ".jsonl": "ndjson", ".json": "ndjson",
}  # fmt: skip


@dataclass
class Table:
    """The files of one block of the description, with the columns that each of them has."""

    key: str  # the block's place in the description, for messages
    spec: Files
    files: list[Path]
    schemas: list[dict[str, pl.DataType]]

    origin: list[Path] = field(default_factory=list)  # the user's own files, where these were made from them
    settled: list[dict[str, pl.DataType]] = field(default_factory=list)  # per file, what text turned out to spell

    @property
    def named(self) -> list[Path]:
        """Files as a user knows them."""
        return self.origin or self.files

    def scan(self, position: int) -> pl.LazyFrame:
        """One file, lazily; only the rows that `where` keeps."""
        frame = self._whole(position)
        for column, wanted in self.spec.where.items():
            values = [as_word(value) for value in (wanted if isinstance(wanted, list) else [wanted])]
            frame = frame.filter(as_text(column, self.schemas[position][column]).is_in(values))
        return frame

    def _whole(self, position: int) -> pl.LazyFrame:
        return _scan(self.files[position], self.spec, self.settled[position] if self.settled else {})

    def settle(self, columns: Iterable[str], identifiers: Iterable[str]) -> None:
        """Find out which of the columns of csv files spell integers, and which of the identifiers spell them as 3.0 (a
        column of integers with a missing one, as pandas writes it); read those as numbers from now on.

        The whole file is read for it, for text is slow to carry and to hash; most text shows at once that it is none.
        """
        wanted: list[tuple[str, Callable[[str], pl.Expr], pl.DataType]]
        wanted = [(name, spells_integer, pl.Int64()) for name in set(columns)]
        wanted += [(name, spells_whole, pl.Float64()) for name in set(identifiers)]
        settled = []
        for position, (file, schema) in enumerate(zip(self.files, self.schemas, strict=True)):
            read = file_format(file, self.spec) == "csv"
            left = [one for one in wanted if read and schema[one[0]] == pl.String]
            for frame in (self._whole(position).head(_HEAD), self._whole(position)):
                if not left:
                    break
                tests = [spells(name).alias(str(number)) for number, (name, spells, _) in enumerate(left)]
                try:
                    said = frame.select(tests).collect(engine="streaming").row(0)
                except (pl.exceptions.PolarsError, OSError) as error:
                    raise unreadable(file, error) from None
                left = [one for one, spelled in zip(left, said, strict=True) if spelled]
            settled.append({name: dtype for name, _, dtype in left})
        self.settled = settled
        for schema, spelled in zip(self.schemas, settled, strict=True):
            schema |= spelled

    def integers(self) -> set[str]:
        """Columns that hold integers in every file."""
        return {name for name in self.schemas[0] if all(_integral(schema.get(name)) for schema in self.schemas)}


def found_files(description: Description, pattern: str) -> list[str]:
    """Files that a path of the description means, in the order of their names."""
    return sorted(glob.glob(str(description.base / pattern), recursive=True))


def open_table(description: Description, key: str, spec: Files, problems: list[str]) -> Table | None:
    """Find a block's files and read their schemas."""
    places = [found_files(description, pattern) for pattern in spec.path]
    files = [Path(name) for name in dict.fromkeys(name for found in places for name in found)]
    if spec.path and not files:  # of several paths, some may be empty: a log that comes in one form or another
        tried = " or ".join(str(description.base / pattern) for pattern in spec.path)
        problems.append(f"{description.file}: {key}.path: there is no file {tried}")
    schemas = []
    for file in files:
        try:
            schema = dict(_scan(file, spec).collect_schema())
        except InputError as error:
            problems.append(f"{description.file}: {key}.path: {error}")
        except (pl.exceptions.PolarsError, OSError) as error:
            problems.append(str(unreadable(file, error)))
        else:
            schemas.append(schema)
            for column in spec.where:
                check_column(description, key, "where", file, schema, column, problems)
    return Table(key, spec, files, schemas) if files and len(schemas) == len(files) else None


def check_column(
    description: Description,
    key: str,
    role: str,
    file: Path,
    schema: dict[str, pl.DataType],
    column: str,
    problems: list[str],
) -> bool:
    dtype = schema.get(column)
    if dtype is None:
        known = hint(column, schema) or "; it has no columns"
        problems.append(f"{description.file}: {key}.{role}: {file} has no column {column!r}{known}")
    elif dtype.is_nested():
        problems.append(
            f"{description.file}: {key}.{role}: column {column!r} of {file} holds lists or structs; "
            'read lists with samples.layout = "lists"'
        )
    else:
        return True
    return False


_REMEDIES = {  # what polars says of a csv file -> what to do
    "utf-8": "; save it as UTF-8",
    "more fields than defined": "; a row has more fields than the header; quote texts with the separator in them",
    "could not parse": "; is there a quotation mark without its second?",
}


def unreadable(file: Path, error: Exception) -> InputError:
    reason = str(getattr(error, "strerror", None) or error).strip().splitlines()
    text = reason[0][:200] if reason else type(error).__name__
    if "empty" in text or "NoDataError" in type(error).__name__:
        return InputError(f"{file}: the file is empty; remove it or write it again")
    remedy = next((then for words, then in _REMEDIES.items() if words in text.lower()), "")
    return InputError(f"{file}: cannot be read: {text}{remedy}")


def _integral(dtype: pl.DataType | None) -> bool:
    return dtype is not None and dtype.is_integer() and dtype not in (pl.UInt64, pl.Int128)


def file_format(file: Path, spec: Files) -> str:
    name = file.name.removesuffix(".gz").removesuffix(".zst")
    found = spec.format or _SUFFIXES.get(Path(name).suffix.lower())
    if found is None:
        raise InputError(f'{file}: cannot tell the format from the name; set format = "csv", "parquet" or "ndjson"')
    return found


def _scan(file: Path, spec: Files, settled: Mapping[str, pl.DataType] = MappingProxyType({})) -> pl.LazyFrame:
    kind = file_format(file, spec)
    if kind == "parquet":
        return pl.scan_parquet(file, glob=False)
    if kind == "ndjson":
        return pl.scan_ndjson(glob.escape(str(file)), infer_schema_length=10_000)
    separator = "\t" if ".tsv" in file.suffixes and spec.separator == "," else spec.separator

    def scan(types: Mapping[str, pl.DataType]) -> pl.LazyFrame:
        header = spec.columns is None
        return pl.scan_csv(
            file, glob=False, separator=separator, has_header=header, infer_schema=False, schema_overrides=dict(types)
        )

    if spec.columns is None:
        return scan(settled)
    found = scan({}).collect_schema().names()
    if len(found) != len(spec.columns):
        raise InputError(f"{file} has {len(found)} columns, `columns` names {len(spec.columns)}")
    names = dict(zip(found, spec.columns, strict=True))
    return scan({raw: settled[name] for raw, name in names.items() if name in settled}).rename(names)
