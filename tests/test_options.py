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
