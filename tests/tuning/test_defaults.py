"""The space that a recipe gets which brings none."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from lsm_cli import recipe as recipes
from lsm_cli.data.store import Store
from lsm_cli.engine.setup import Setup
from lsm_cli.tuning import space
from lsm_cli.tuning.defaults import default
from lsm_cli.tuning.space import Option
from tests.small import write_store

SHORT = ["train.threads=1", "train.device=cpu"]


def _default(store: Path, name: str, *overrides: str) -> dict[str, Any]:
    return default(Setup.of(recipes.load(name, [*SHORT, *overrides]), Store.open(store)))


def _drawn(option: Option, luck: random.Random) -> Any:
    if option.choices:
        return luck.choice(option.choices)
    return luck.randint(int(option.low), int(option.high)) if option.whole else luck.uniform(option.low, option.high)


@pytest.mark.parametrize("name", recipes.shipped())
def test_it_holds_the_recipe_and_every_draw_of_it_is_a_recipe(name: str, small_store: Path) -> None:
    small = [*SHORT, "model.max_len=20", "search.top_k=10", "search.hard_k=7"]
    recipe, store = recipes.load(name, small), Store.open(small_store)
    found = space.parse(default(Setup.of(recipe, store)))
    assert found.of(recipe) is not None and not found.idle(recipe)
    assert {"train.lr", "model.dim"} <= {option.key for option in found.options}
    luck, seen = random.Random(name), set[str]()
    for _ in range(40):
        chosen = found.draw(recipe, lambda option: _drawn(option, luck))
        seen |= chosen.keys()
        drawn = Setup.of(space.applied(recipe, chosen), store)
        drawn.match_statistics()
        drawn.decisions()
    assert seen == {option.key for option in found.options}


def test_the_variant_itself_is_in_it(small_store: Path) -> None:
    found = _default(small_store, "stacked_tin", "model.max_len=20", "search.top_k=10")
    assert found["model.sequence"] == ["tin", "stacked_tin"] and found["model.heads"] == [[], "auto"]
    assert found["model.layers"]["when"] == found["model.stack_residual"]["when"] == "model.sequence=stacked_tin"
    assert found["model.time_tables"] == ["shared", "own", "residual"] and 0 in found["model.attention_dim"]
    assert found["search.method"] == ["none", "hard"] and found["model.evidence_from"] == ["read", "history"]
    assert found["search.top_k"] == {"choices": [5, 10, 20], "when": "search.method!=none"}
    assert found["model.max_len"] == {"choices": [10, 20, 40], "when": "search.method=none"}
    assert "soft" in _default(small_store, "twin")["search.method"]
    hybrid = _default(small_store, "hybrid", "search.top_k=10", "search.hard_k=7")
    assert hybrid["search.top_k"]["choices"] == [10, 20]  # 7 of 5 cannot be
    own = _default(small_store, "tin", 'model.heads=[["item"],["time"]]')
    assert own["model.heads"] == [[], "auto", [["item"], ["time"]]]
    assert _default(small_store, "sasrec", "train.next_item=3")["train.next_item"] == [0, 1, 3]


def test_what_has_no_effect_is_not(small_store: Path, tmp_path: Path) -> None:
    bare = write_store(tmp_path / "bare")
    without_index = _default(bare, "stacked_tin", "model.max_len=20")
    assert not {"search.method", "search.top_k", "model.evidence_from"} & without_index.keys()
    assert without_index["model.max_len"] == [10, 20, 40]
    assert _default(bare, "twin", "search.top_k=10")["search.top_k"] == [5, 10, 20]
    assert "model.time_tables" not in _default(small_store, "tin", 'data.targets=["click"]')
    assert "model.time_tables" not in _default(small_store, "tin", "model.temporal=[]")
    assert "model.evidence_from" not in _default(small_store, "tin", "model.evidence=false")
    assert "model.heads" not in _default(small_store, "tin", "model.temporal=[]", 'data.fields=["item"]')
    assert "model.max_len" not in _default(small_store, "tin")  # 100, 200 and 400 behaviours of 40 are the same
    assert not {"search.method", "model.evidence_from"} & _default(small_store, "sasrec").keys()
    assert (
        not {"search.method", "model.max_len", "model.layers", "train.next_item"} & _default(small_store, "dnn").keys()
    )
    assert (
        not {"search.method", "search.top_k", "model.max_len"}
        & _default(small_store, "tin", "search.from=found").keys()
    )
