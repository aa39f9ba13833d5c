"""What a recipe may say: what goes together, and the one sentence that says so where it does not."""

from __future__ import annotations

import pytest

from lsm_cli import recipe as recipes
from lsm_cli.errors import InputError


def _refused(name: str, *overrides: str) -> list[str]:
    """The sentences, without the file that each begins with."""
    with pytest.raises(InputError) as caught:
        recipes.load(name, overrides)
    lines = str(caught.value).splitlines()
    assert all(line.startswith(f"{recipes.find(name)}: ") for line in lines)
    return [line.removeprefix(f"{recipes.find(name)}: ") for line in lines]


def test_all_that_does_not_go_together_is_said_at_once() -> None:
    lines = _refused("din", "model.attention_dim=4", 'model.heads=[["item"]]', "train.softmax=1", "search.method=soft")
    keys = ["model.attention_dim", "model.heads", "train.softmax", "search.method"]
    assert [line.split(":")[0] for line in lines] == keys
    assert len(_refused("sasrec", "model.evidence=true", "model.graph_dim=8", "model.max_len=0")) == 3


BAD = {
    "model.half_lives=[7, 0]": "model.half_lives.1 = 0: input should be greater than 0",
    "model.windows=[0]": "model.windows.0 = 0: input should be greater than or equal to 1",
    "search.budgets={item=-1}": "search.budgets.item = -1: input should be greater than or equal to 0",
    "train.weights={click=-0.5}": "train.weights.click = -0.5: input should be greater than or equal to 0",
    "train.weights={click=inf}": "train.weights.click = inf: input should be a finite number",
    'model.temporal=["rank", "interval", "rank"]': "model.temporal: an encoding is there twice; name each once",
    "model.dim=true": "model.dim = True: should be a number, not true or false",
    "train.lr=true": "train.lr = True: should be a number, not true or false",
    "model.heads=itm": "model.heads = 'itm': should be `auto` or the fields of each head, such as [['item'], ['time']]",
    "model.heads=[1]": "model.heads = [1]: should be `auto` or the fields of each head, such as [['item'], ['time']]",
    "model.hidden=[true]": "model.hidden.0 = True: input should be a valid integer",
}


@pytest.mark.parametrize("override", BAD)
def test_a_value_out_of_bounds_is_one_sentence(override: str) -> None:
    assert _refused("tin", override) == [BAD[override]]


@pytest.mark.parametrize("name", ["twin", "eta", "hybrid", "tencent_ads", "hier_hard"])
def test_a_search_needs_something_to_read(name: str) -> None:
    (line,) = _refused(name, "model.max_len=0")
    assert line.startswith("model.max_len: 0 reads nothing")
    assert recipes.load("tin", ["model.max_len=0"])


def test_one_search_of_two_finds_no_more_than_both() -> None:
    assert _refused("hybrid", "search.top_k=10") == ["search.hard_k: 25 is more than search.top_k, 10; lower it"]
    assert recipes.load("hybrid", ["search.top_k=25"]).search.hard_k == 25
    assert recipes.load("hier_hard", ["search.top_k=10"])  # the other searches know no hard_k
