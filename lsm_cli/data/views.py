"""A store whose behaviours are others than those on disk, in memory: some hidden, or some added.

Everything that rests on the behaviours follows: histories, pointers of the samples, the orders of the search index. To
whoever reads it, it is a store that was built so; candidates, labels and point-in-time statistics stay.
"""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Mapping

import numpy as np

from lsm_cli.data.assembling import visible_end
from lsm_cli.data.orders import EventValues
from lsm_cli.data.store import Samples, Store
from lsm_cli.errors import InputError


class View(Store, ABC):
    """Other behaviours behind the same samples.

    Args:
        store: what is seen.
        offsets: int64 [users + 1].
        said: what is different, in words.
    """

    def __init__(self, store: Store, offsets: np.ndarray, said: str) -> None:
        super().__init__(store.path, store.manifest)
        self.seen, self.offsets, self.said = store, offsets, said

    def samples(self, split: str) -> Samples:
        if split not in self._samples:
            of = self.seen.samples(split)
            mine = Samples(of.folder, of.size)
            mine._columns["end"] = self._ends(of)
            self._samples[split] = mine
        return self._samples[split]

    @property
    def events(self) -> int:
        return int(self.offsets[-1])

    @abstractmethod
    def _ends(self, samples: Samples) -> np.ndarray:
        """Exclusive pointers of the samples into what is seen: int64 [samples]."""


class Hidden(View):
    """Only some of the behaviours.

    Args:
        keep: bool [events].
    """

    def __init__(self, store: Store, keep: np.ndarray, said: str) -> None:
        self.keep = keep
        self.before = np.concatenate([[0], np.cumsum(keep)])  # behaviours kept before each
        super().__init__(store, self.before[store.offsets], said)

    def column(self, name: str) -> np.ndarray:
        if name not in self._columns:
            self._columns[name] = np.asarray(self.seen.column(name))[self.keep]
        return self._columns[name]

    def order(self, field: str) -> np.ndarray:
        name = f"index/{field}"
        if name not in self._columns:
            whole = self.seen.order(field)
            lengths = np.diff(self.seen.offsets)
            pointer = np.repeat(self.seen.offsets[:-1], lengths) + whole
            kept = np.repeat(self.offsets[:-1], lengths)
            self._columns[name] = (self.before[pointer] - kept)[self.keep[pointer]].astype(whole.dtype)
        return self._columns[name]

    def _ends(self, samples: Samples) -> np.ndarray:
        return self.before[samples.column("end")]


class Grown(View):
    """More behaviours, or others: the columns are given.

    Args:
        user: int [events], any order.
        columns: time (ticks) and every event field, [events] each; of equal times the earlier in the list comes first.
    """

    def __init__(self, store: Store, user: np.ndarray, columns: Mapping[str, np.ndarray], said: str) -> None:
        order = np.lexsort((columns["time"], user))
        offsets = np.concatenate([[0], np.cumsum(np.bincount(user, minlength=store.users))])
        super().__init__(store, offsets, said)
        self._columns |= {name: values[order] for name, values in columns.items()}

    def order(self, field: str) -> np.ndarray:
        name = f"index/{field}"
        if name not in self._columns:
            lengths = np.diff(self.offsets)
            owner = np.repeat(np.arange(self.users), lengths)
            value = EventValues(self, field).at(np.arange(self.events))
            place = np.argsort(owner * (int(value.max(initial=0)) + 1) + value, kind="stable")
            self._columns[name] = place - np.repeat(self.offsets[:-1], lengths)
        return self._columns[name]

    def _ends(self, samples: Samples) -> np.ndarray:
        return visible_end(self, np.asarray(samples.column("user"), np.int64), np.asarray(samples.column("time")))


def without(store: Store, domains: list[str]) -> Hidden:
    """The store as if nobody had ever logged behaviours in these domains.

    Raises:
        InputError: the store does not know such a domain, or nothing would be left.
    """
    ids = _domains(store)
    for name in domains:
        if name not in ids:
            near = difflib.get_close_matches(name, ids, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(ids)}"
            raise InputError(f"--drop-domain {name}: {store.path} has no such domain; {hint}")
    keep = ~np.isin(store.column("domain"), [ids[name] for name in domains])
    if not keep.any():
        raise InputError(f"--drop-domain {' '.join(domains)}: no behaviours of {store.path} would be left")
    return Hidden(store, keep, f"without behaviours in {', '.join(domains)}: {_share(keep)}")


def ads_only(store: Store, split: str) -> Hidden:
    """The store with behaviours in the candidates' own domains only.

    Raises:
        InputError: the store does not say which domains are the candidates', or none or all behaviours are in them.
    """
    ids, samples = _domains(store), store.samples(split)
    if samples.has("domain"):
        own = {int(one) for one in np.unique(samples.column("domain"))}
    else:
        own = {ids[name] for name in ("ad", "ads") if name in ids}
    if not own:
        raise InputError(
            f"--ads-only: {store.path} does not say which domain its candidates are in; name those to hide by "
            "--drop-domain"
        )
    keep = np.isin(store.column("domain"), list(own))
    names = ", ".join(name for name, number in ids.items() if number in own) or "the candidates' domain"
    if keep.all() or not keep.any():
        which = "all behaviours are" if keep.all() else "no behaviour is"
        raise InputError(f"--ads-only: {which} in {names}, so there is nothing to compare in {store.path}")
    return Hidden(store, keep, f"only behaviours in {names}: {_share(keep)}")


def _domains(store: Store) -> dict[str, int]:
    """name -> id."""
    if "domain" not in store.manifest["fields"]:
        raise InputError(f"{store.path}: its behaviours have no domain; set domain in [[events]] and rebuild the store")
    names = store.manifest["fields"]["domain"].get("names", {})
    return {name: int(number) for number, name in names.items()}


def _share(keep: np.ndarray) -> str:
    return f"{int(keep.sum()):,} of {len(keep):,} are left"
