"""One tree for the category paths of every domain, numbered depth first.

A node's subtree is then one id range [lo, hi). `align` hangs a domain's node on a shared one: a node without a
counterpart stays below the nearest ancestor that has one, so that an ad and a video may meet at level 1 and differ
further down. The other nodes of a domain that `align` speaks of stay its own; a domain that it does not mention is
taken to use the shared names already.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from lsm_cli.data.building.vocabulary import Counter, Vocabulary, narrowest
from lsm_cli.data.description import Taxonomy as Options
from lsm_cli.data.store import MISSING, PAD
from lsm_cli.data.wording import hint
from lsm_cli.errors import InputError

_SEP = "\0"  # sorts before every other character, so that sorted paths are in depth-first order
_OWN = "\1"  # marks a part that belongs to one domain: name, _OWN, domain
_FIRST = MISSING + 1
_TABLE = 1 << 18  # category numbers below this are looked up in plain arrays


class Paths:
    """The distinct category paths of the logs: domain, then the parts from coarse to fine."""

    def __init__(self, depth: int) -> None:
        self.names = ["domain", *(f"category{level}" for level in range(1, depth + 1))]
        self.rows = pl.DataFrame(schema=dict.fromkeys(self.names, pl.String))
        self._usual: dict[tuple[str, ...], dict[str, np.ndarray]] = {}

    def add(self, frame: pl.DataFrame, domain: str | None) -> None:
        """Note the paths of a batch; `domain` is given where the batch has no such column."""
        have = [name for name in self.names if name in frame.columns]
        found = self._distinct(frame.select(have), (*have, domain or "")) if have else pl.DataFrame({"": [None]})
        missing = [pl.lit(None, pl.String).alias(name) for name in self.names if name not in have]
        text = found.with_columns(pl.col(have).cast(pl.String), *missing)
        if "domain" not in have and domain is not None:
            text = text.with_columns(pl.lit(domain).alias("domain"))
        self.rows = pl.concat([self.rows, text.select(self.names)]).unique()

    def _distinct(self, frame: pl.DataFrame, key: tuple[str, ...]) -> pl.DataFrame:
        """The distinct rows that were not there in an earlier batch of the same columns; perhaps some that were.

        Where the parts are integers, the finest nearly always decides the others: rows that look as it did last time
        need no hashing.
        """
        finest = frame[frame.columns[-1]]
        if not all(d == pl.Int64 for d in frame.dtypes) or not len(finest) or any(c.null_count() for c in frame):
            return _unique(frame)
        low, high = finest.min(), finest.max()
        if low < 0 or high >= _TABLE:  # type: ignore[operator]
            return _unique(frame)
        tables = self._usual.setdefault(key, {name: np.full(_TABLE, -1, np.int64) for name in frame.columns})
        leaf = finest.to_numpy()
        strange = np.zeros(len(leaf), bool)
        for name, table in tables.items():
            strange |= table[leaf] != frame[name].to_numpy()
        found = _unique(frame.filter(strange)) if strange.any() else frame.head(0)
        for name, table in tables.items():
            table[found[frame.columns[-1]].to_numpy()] = found[name].to_numpy()
        return found


def _unique(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.lazy().unique().collect(engine="streaming")


class Tree:
    """The tree itself.

    Attributes:
        nodes: number of ids, padding (0) and missing (1) included.
        ancestors: int32 [nodes, depth], a node's ancestor (or itself) at each level; 1 = none.
        range: int32 [nodes, 2], the node's subtree is [lo, hi).
        level: int8 [nodes], 1 … depth; 0 for padding and missing.
    """

    def __init__(self, paths: pl.DataFrame, depth: int, align: pl.DataFrame | None, shared: bool) -> None:
        raw = paths.sort(paths.columns)
        parts = _parts(raw, depth, align, shared)
        self.depth = max((len(p) for p in parts.to_list()), default=0) if raw.height else depth
        self.depth = max(self.depth, depth)
        full = parts.list.join(_SEP)
        prefixes = [parts.list.head(level + 1).list.join(_SEP) for level in range(self.depth)]
        lengths = parts.list.len().to_numpy()
        known = [p.filter(pl.Series(lengths > level)) for level, p in enumerate(prefixes)]
        keys = pl.concat([pl.Series("key", [], pl.String), *known]).unique().sort() if known else full.head(0)
        self.keys = keys
        self.nodes = _FIRST + len(keys)
        self.dtype = narrowest(self.nodes)
        self.level = np.zeros(self.nodes, np.int8)
        self.level[_FIRST:] = (keys.str.count_matches(_SEP, literal=True) + 1).to_numpy() if len(keys) else 0
        self.ancestors = np.full((self.nodes, self.depth), MISSING, np.int32)
        self.ancestors[PAD] = PAD
        split = keys.str.split(_SEP)
        for level in range(self.depth):
            deep = self.level[_FIRST:] > level
            prefix = split.list.head(level + 1).list.join(_SEP).filter(pl.Series(deep))
            self.ancestors[_FIRST:][deep, level] = self._find(prefix)
        self.range = self._ranges()
        # what each distinct raw path stands for
        self.raw = raw
        self.node_of_path = np.full(raw.height, MISSING, np.int32)
        real = lengths > 0
        self.node_of_path[real] = self._find(full.filter(pl.Series(real)))

    def _find(self, keys: pl.Series) -> np.ndarray:
        place = pl.DataFrame({"key": self.keys, "id": np.arange(_FIRST, self.nodes, dtype=np.int32)})
        return keys.to_frame("key").join(place, on="key", how="left", maintain_order="left")["id"].to_numpy()

    def _ranges(self) -> np.ndarray:
        """A subtree ends where the next node of the same or a coarser level begins."""
        bounds = np.zeros((self.nodes, 2), np.int32)
        ids = np.arange(self.nodes)
        bounds[:, 0], bounds[:, 1] = ids, ids + 1
        for level in range(1, self.depth + 1):
            coarser = ids[(self.level <= level) & (self.level > 0)]
            here = ids[self.level == level]
            after = np.searchsorted(coarser, here, side="right")
            bounds[here, 1] = np.append(coarser, self.nodes)[after]
        return bounds

    def rows(self, trained: np.ndarray) -> tuple[np.ndarray, list[dict[str, int | str]]]:
        """Embedding rows, level by level: trained nodes from 2 in depth-first order, all others on the unknown row.

        Args:
            trained: bool [nodes], whether training saw the node itself.

        Returns:
            int32 [nodes], and for each level its name, number of ids and first id that is not trained.
        """
        seen = self.spread(trained)
        rows = np.arange(self.nodes, dtype=np.int32)
        levels: list[dict[str, int | str]] = []
        for level in range(1, self.depth + 1):
            here = self.level == level
            known = here & seen
            count = int(known.sum())
            rows[here] = _FIRST + count
            rows[known] = np.arange(_FIRST, _FIRST + count)
            levels.append({"name": f"category{level}", "nodes": _FIRST + int(here.sum()), "trained": _FIRST + count})
        return rows, levels

    def spread(self, flags: np.ndarray) -> np.ndarray:
        """bool [nodes]: the node or one below it is flagged."""
        found = flags.copy()
        for level in range(self.depth):
            found[self.ancestors[flags, level]] = True
        found[:_FIRST] = False
        return found

    def frame(self, counts: np.ndarray, trained: np.ndarray) -> pl.DataFrame:
        """node, path, parent, level, lo, hi, count (itself and below), trained."""
        total = np.zeros(self.nodes, np.int64)
        for level in range(self.depth):
            np.add.at(total, self.ancestors[:, level], counts)
        above = np.maximum(self.level.astype(np.int64) - 2, 0)
        parent = np.where(self.level > 1, self.ancestors[np.arange(self.nodes), above], PAD)
        path = self.keys.str.replace_all(_SEP, "/", literal=True).str.replace_all(f"{_OWN}([^/]*)", " (${1})")
        ids = slice(_FIRST, None)
        return pl.DataFrame(
            {
                "node": np.arange(_FIRST, self.nodes, dtype=np.int32), "path": path,
                "parent": parent[ids].astype(np.int32), "level": self.level[ids],
                "lo": self.range[ids, 0], "hi": self.range[ids, 1],
                "count": total[ids], "trained": self.spread(trained)[ids],
            }
        )  # fmt: skip


def meeting(tree: Tree, events: np.ndarray, samples: np.ndarray) -> list[dict[str, int | str | None]]:
    """How many events and samples meet, per domain and level.

    An event or sample meets at a level when its node there also occurs in another domain; where there is only one
    domain, a sample meets when its node occurs among the events.

    Args:
        events, samples: int64 [distinct paths], how many of them have each path of `tree.raw`.
    """
    rows: list[dict[str, int | str | None]] = []
    domains = tree.raw["domain"].to_list()
    names = sorted(set(domains), key=lambda name: (name is None, name))
    member = {name: np.array([d == name for d in domains], bool) for name in names}
    for level in range(tree.depth):
        node = tree.ancestors[tree.node_of_path, level]
        for name in names:
            here = member[name]
            elsewhere = node[~here & (events > 0)] if len(names) > 1 else node[events > 0]
            others = node[~here & (events + samples > 0)]
            real = here & (node > MISSING)
            meets, met = real & np.isin(node, elsewhere), real & np.isin(node, others)
            rows.append({
                "domain": name, "level": level + 1,
                "events": int(events[here].sum()), "events_meeting": int(events[met].sum()),
                "samples": int(samples[here].sum()), "samples_meeting": int(samples[meets].sum()),
            })  # fmt: skip
    return rows


def unmapped(
    tree: Tree, events: np.ndarray, samples: np.ndarray, options: Options, most: int = 10
) -> list[dict[str, int | str]]:
    """The largest categories that meet no other domain, in their domain's own words: what `align` may still map.

    Of a branch only the node is named at which it parts from the other domains. With one domain that is where `align`
    no longer speaks of it; without `align` either, nothing is to be mapped.

    Args:
        events, samples: int64 [distinct paths], how many of them have each path of `tree.raw`.
        most: how many to name.
    """
    names = tree.raw["domain"].unique().drop_nulls()
    if len(names) < (1 if options.align else 2):
        return []
    domain = tree.raw["domain"].rank("dense").fill_null(0).to_numpy().astype(np.int64)
    domains, used = int(domain.max()) + 1, events + samples > 0
    marked = np.append(np.zeros(_FIRST, bool), tree.keys.str.ends_with(f"{_OWN}{names[0]}").to_numpy())
    parting = np.zeros(tree.raw.height, np.int64)  # coarsest level at which nobody else is there; 0 = none
    for level in reversed(range(tree.depth)):
        node = tree.ancestors[tree.node_of_path, level].astype(np.int64)
        owners = np.bincount(np.unique(node[used] * domains + domain[used]) // domains, minlength=tree.nodes)
        alone = owners == 1 if len(names) > 1 else marked
        parting[(node > MISSING) & alone[node]] = level + 1
    columns = [pl.col(name) for name in tree.raw.columns[1:]]
    whole = [pl.all_horizontal(column.is_not_null() for column in columns[: n + 1]) for n in range(len(columns))]
    below = tree.level[tree.node_of_path] - parting  # an aligned node may stand deeper in the tree than in the logs
    length = (pl.sum_horizontal(whole).cast(pl.Int64) - pl.Series(below)).clip(lower_bound=1)
    path = pl.concat_list(columns).list.head(length).list.join(options.separator)
    counted = tree.raw.select("domain", path.alias("path"), events=pl.Series(events), samples=pl.Series(samples))
    alone_there = counted.filter(pl.Series((parting > 0) & used), pl.col("domain").is_not_null())
    sums = alone_there.group_by("domain", "path").agg(pl.col("events", "samples").sum())
    order = pl.struct(-pl.col("events"), -pl.col("samples"), "domain", "path")
    return sums.sort(order).head(most).to_dicts()


def read_alignment(file: Path, options: Options, domains: list[str], depth: int) -> pl.DataFrame:
    """domain, path, shared: paths as lists of parts.

    Raises:
        InputError: the file or one of its rows cannot be used.
    """
    try:
        table = pl.read_csv(file, infer_schema=False)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise InputError(f"{file}: taxonomy.align cannot be read: {str(error).splitlines()[0]}") from None
    for column in ("domain", "path", "shared"):
        if column not in table.columns:
            raise InputError(
                f"{file}: no column {column!r}{hint(column, table.columns)}; align needs domain, path, shared"
            )
    table = table.with_row_index("row", offset=2)
    empty = table.filter(pl.any_horizontal(pl.col("domain", "path", "shared").is_null()))
    if empty.height:
        raise InputError(f"{file}: line {empty['row'][0]}: domain, path and shared must all be filled in")
    unknown = table.filter(pl.col("domain").is_in(domains).not_())
    if unknown.height:
        name = unknown["domain"][0]
        raise InputError(f"{file}: line {unknown['row'][0]}: no log has the domain {name!r}{hint(name, domains)}")
    table = table.with_columns(pl.col("path", "shared").str.split(options.separator))
    deep = table.filter(pl.col("path").list.len() > depth)
    if deep.height:
        path = options.separator.join(deep["path"][0])
        raise InputError(
            f"{file}: line {deep['row'][0]}: path {path!r} has {len(deep['path'][0])} levels,"
            f" the logs declare {depth} in category"
        )
    twice = table.filter(pl.struct("domain", "path").is_duplicated())
    if twice.height:
        path = options.separator.join(twice["path"][0])
        raise InputError(
            f"{file}: line {twice['row'][1]}: {path!r} of {twice['domain'][0]!r} is aligned twice; keep one line"
        )
    return table.select("domain", pl.col("path").list.join(_SEP), pl.col("shared").list.join(_SEP))


def _parts(raw: pl.DataFrame, depth: int, align: pl.DataFrame | None, shared: bool) -> pl.Series:
    """List of parts of every raw path in the common tree; a path ends before its first missing part."""
    clean = raw.with_columns(pl.col(f"category{n}").str.replace_all("[\0\1]", " ") for n in range(1, depth + 1))
    whole = pl.lit(True)
    columns = []
    for n in range(1, depth + 1):
        whole = whole & pl.col(f"category{n}").is_not_null()
        columns.append(pl.when(whole).then(pl.col(f"category{n}")).alias(f"category{n}"))
    clean = clean.select("domain", *columns)
    apart = (
        pl.lit(not shared)
        if align is None
        else pl.col("domain").is_in(align["domain"].unique().to_list()) | (not shared)
    )
    owner = pl.when(apart.fill_null(False)).then(pl.lit(_OWN) + pl.col("domain").fill_null("")).otherwise(pl.lit(""))
    own = clean.with_columns((pl.col(f"category{n}") + owner).alias(f"category{n}") for n in range(1, depth + 1))
    names = [f"category{n}" for n in range(1, depth + 1)]
    result = own.select(pl.concat_list(names).list.drop_nulls() if names else pl.lit([]).alias("parts")).to_series()
    if align is None:
        return result
    found = pl.select(pl.lit(None, pl.String)).to_series().new_from_index(0, raw.height)
    rest = np.zeros(raw.height, np.int64)
    for n in range(1, depth + 1):  # the deepest aligned prefix wins
        prefix = clean.select("domain", pl.concat_str(names[:n], separator=_SEP).alias("path"))
        match = prefix.join(align, on=["domain", "path"], how="left", maintain_order="left")["shared"]
        rest[match.is_not_null().to_numpy()] = n
        found = pl.select(pl.coalesce(match, found)).to_series()
    head = found.str.split(_SEP)
    tail = pl.DataFrame({"own": result, "skip": rest, "head": head})
    joined = pl.concat_list(pl.col("head").fill_null([]), pl.col("own").list.slice(pl.col("skip")))
    return tail.select(pl.when(pl.col("head").is_null()).then(pl.col("own")).otherwise(joined)).to_series()


class PathEncoder:
    """Turns the category columns of a batch into nodes."""

    def __init__(self, tree: Tree, kinds: dict[str, str]) -> None:
        self.tree = tree
        self.codes: list[np.ndarray] = []  # per column, the code of every distinct path; -1 = missing
        self.parts: dict[str, Vocabulary] = {}
        raw = tree.raw
        for name in raw.columns:
            values = raw[name].cast(pl.Int64) if kinds.get(name) == "int" else raw[name]
            counter = Counter(kinds.get(name, "text"))
            counter.add(values, np.zeros(raw.height, bool))
            self.parts[name] = part = Vocabulary.by_value(counter.table())
            self.codes.append(_code(part, values))
        self._guesses: dict[tuple[str, tuple[str, ...], str | None], np.ndarray] = {}

    def places(self, frame: pl.DataFrame, domain: str | None) -> np.ndarray:
        """Index of each row's path in `tree.raw`, int64 [rows]; `tree.node_of_path` turns it into a node.

        In nearly every taxonomy the finest part decides the whole path: guess by it, check all parts, and look up
        only the rows where the guess was wrong.
        """
        names = list(self.parts)
        have = [name for name in names if name in frame.columns]
        codes = {name: _code(self.parts[name], frame[name]) for name in have}
        if "domain" not in have:
            codes["domain"] = _code(self.parts["domain"], pl.Series([domain], dtype=pl.String))[0]
        for name in names:
            codes.setdefault(name, np.asarray(-1))
        if not have:
            return np.full(frame.height, self._search([code.reshape(1) for code in (codes[n] for n in names)])[0])
        place = self._guess(have, codes["domain"], domain)[codes[have[-1]]]
        wrong = np.zeros(frame.height, bool)
        for name, known in zip(names, self.codes, strict=True):
            wrong |= known[place] != codes[name]
        if wrong.any():
            place[wrong] = self._search([np.broadcast_to(codes[name], wrong.shape)[wrong] for name in names])
        return place

    def _guess(self, have: list[str], domain_code: np.ndarray, domain: str | None) -> np.ndarray:
        """For each code of the finest column, a path that ends in it; the last element answers for missing."""
        key = (have[-1], tuple(have), domain)
        if key not in self._guesses:
            table = np.zeros(len(self.parts[have[-1]].values) + 1, np.int64)
            fits = np.ones(self.tree.raw.height, bool)
            for name, known in zip(self.parts, self.codes, strict=True):
                if name not in have:
                    fits &= known == (domain_code if name == "domain" else -1)
            finest = self.codes[list(self.parts).index(have[-1])]
            table[finest[fits]] = np.flatnonzero(fits)
            self._guesses[key] = table
        return self._guesses[key]

    def _search(self, columns: list[np.ndarray]) -> np.ndarray:
        """Place of each row among the distinct paths, column by column so that the keys never overflow."""
        known, wanted = np.zeros(self.tree.raw.height, np.int64), np.zeros(len(columns[0]), np.int64)
        for codes, column in zip(self.codes, columns, strict=True):
            width = int(codes.max(initial=-1)) + 2
            known, wanted = known * width + codes + 1, wanted * width + column + 1
            distinct, known = np.unique(known, return_inverse=True)
            wanted = np.searchsorted(distinct, wanted)
        order = np.argsort(known, kind="stable")
        return order[np.searchsorted(known[order], wanted)]


def _code(part: Vocabulary, values: pl.Series) -> np.ndarray:
    """Codes from 0, -1 for missing."""
    return part.encode(values, missing=-1) if len(part.values) else np.full(len(values), -1, np.int32)
