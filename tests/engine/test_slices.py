"""Slices part the samples, and say what they say."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lsm_cli.data.store import Store
from lsm_cli.engine.calibration import curve
from lsm_cli.engine.slices import slices


def test_every_sample_is_in_one_slice_of_each_kind(small_store: Path) -> None:
    store = Store.open(small_store)
    found = slices(store, "test")
    kinds = {"scenario", "history", "item in training", "last behaviour", "last match, category2"}
    assert set(found) == kinds
    for groups in found.values():
        assert (np.stack(list(groups.values())).sum(0) == 1).all()


def test_what_the_slices_mean(small_store: Path) -> None:
    store = Store.open(small_store)
    found, samples = slices(store, "test"), store.samples("test")
    train = store.samples("train").column("item")
    leaf = store.ancestors[:, -1]
    for row in range(len(samples)):
        item, user, end, now = (samples.column(name)[row] for name in ("item", "user", "end", "time"))
        count = int((train == item).sum())
        new = item >= store.manifest["fields"]["item"]["trained"]
        name = "new" if new else "0" if not count else "1–9" if count < 10 else "10–99"
        assert found["item in training"][name][row]
        past = slice(store.offsets[user], end)
        ages = now - store.column("time")[past]
        same = ages[leaf[store.column("category")[past]] == leaf[samples.column("category")[row]]]
        for kind, left in (("last behaviour", ages), ("last match, category2", same)):
            hour = "never" if not len(left) else "under 1 hour" if left.min() < 3600 else "1 hour–1 day"
            assert found[kind][hour][row]


def test_a_curve_of_honest_probabilities_is_straight() -> None:
    rng = np.random.default_rng(0)
    logit = rng.normal(-1, 1.5, 40_000)
    label = (rng.random(40_000) < 1 / (1 + np.exp(-logit))).astype(np.int8)
    honest, bold = curve(label, logit), curve(label, 2 * logit)
    assert sum(one["n"] for one in honest["bins"]) == 40_000
    assert np.average([b["observed"] for b in honest["bins"]], weights=[b["n"] for b in honest["bins"]]) == label.mean()
    assert honest["ece"] < 0.01 < 0.05 < bold["ece"]
    assert curve(label[:3], logit[:3])["bins"][0]["n"] == 1 and curve(label[:0], logit[:0])["ece"] is None
