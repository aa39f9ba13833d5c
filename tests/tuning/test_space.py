"""Search spaces: what is read, what is refused, what conditions do."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lsm_cli import recipe as recipes
from lsm_cli.errors import InputError
from lsm_cli.tuning import space
from lsm_cli.tuning.space import Option, Space

BASE = recipes.load("stacked_tin")


def _parse(toml: str, *texts: str) -> Space:
    return space.parse(tomllib.loads(toml).get("tune", {}), texts)


def _one(*texts: str) -> Option:
    (option,) = space.parse({}, texts).options
    return option


floats = st.floats(1e-6, 0.9, allow_nan=False).map(lambda x: float(f"{x:.3g}"))


@given(st.tuples(floats, floats).filter(lambda pair: pair[0] < pair[1]), st.booleans())
def test_a_range_of_floats_is_read_as_written(pair: tuple[float, float], log: bool) -> None:
    low, high = pair
    option = _one(f"train.lr={low!r}:{high!r}{':log' if log else ''}")
    assert (option.low, option.high, option.log, option.whole) == (low, high, log, False)
    assert option.contains(low) and option.contains(high) and not option.contains(high * 2)
    assert space.parse({"train.lr": option.spec()}).options == (option,)


@given(st.integers(1, 50), st.integers(1, 200), st.integers(1, 60))
def test_steps_reach_the_high_end_of_a_whole_range(low: int, wide: int, step: int) -> None:
    text = f"model.dim={low}:{low + wide}:step={step}"
    if step > wide:
        with pytest.raises(InputError, match="wider than the range"):
            _one(text)
        return
    option = _one(text)
    assert option.whole and (option.high - option.low) % step == 0 and option.high + step > low + wide
    assert [value for value in range(low, low + wide + 1) if option.contains(value)] == list(
        range(low, low + wide + 1, step)
    )


@given(st.lists(st.lists(st.integers(1, 512), min_size=1, max_size=3), min_size=1, max_size=4, unique_by=str))
def test_lists_as_choices_survive_the_study_and_the_command_line(widths: list[list[int]]) -> None:
    option = _one("model.hidden=" + ", ".join(map(str, widths)))
    assert list(option.choices) == widths
    assert all(isinstance(label, str) for label in option.labels())
    assert [option.value(option.stored(choice)) for choice in widths] == widths


@given(st.data())
def test_drawn_options_obey_their_conditions_whatever_is_drawn(data: st.DataObject) -> None:
    found = _parse(
        """
        [tune]
        "search.top_k" = { choices = [20, 50], when = "search.method!=none" }
        "model.layers" = { range = "1:4", when = "model.sequence=stacked_tin" }
        "model.stack_output" = { choices = ["found", "states"], when = ["model.layers=2|3|4"] }
        "search.method" = ["none", "hard", "soft"]
        "search.hard_k" = { range = "1:9", when = "search.method=hard and search.top_k=50" }
        model.sequence = ["tin", "stacked_tin"]
        """
    )

    def draw(option: Option) -> Any:
        if option.choices:
            return data.draw(st.sampled_from(option.choices))
        return data.draw(st.integers(int(option.low), int(option.high)))

    chosen = found.draw(BASE, draw)
    assert ("search.top_k" in chosen) == (chosen["search.method"] != "none")
    assert ("model.layers" in chosen) == (chosen["model.sequence"] == "stacked_tin")
    layers = chosen.get("model.layers", BASE.model.layers)
    assert ("model.stack_output" in chosen) == (layers >= 2)
    assert ("search.hard_k" in chosen) == (chosen["search.method"] == "hard" and chosen["search.top_k"] == 50)
    made = space.applied(BASE, chosen).model_dump(by_alias=True)
    assert all(made[key.split(".")[0]][key.split(".")[1]] == value for key, value in chosen.items())
    assert found.of(space.applied(BASE, chosen)) == chosen


def test_the_same_space_in_every_notation() -> None:
    dotted = _parse('[tune]\nmodel.layers = {range = "1:4", when = "model.sequence=stacked_tin"}\nmodel.dim = [8, 16]')
    quoted = _parse(
        '[tune]\n"model.layers" = {range = "1:4", when = ["model.sequence = stacked_tin"]}\n"model.dim" = "8, 16"'
    )
    typed = _parse("", "model.layers=1:4 when model.sequence=stacked_tin", "model.dim=8,16")
    assert dotted == quoted == typed == space.parse(typed.table())
    replaced = space.parse(dotted.table(), ["model.dim=4:8"])
    assert [option.describe() for option in replaced.options if option.key == "model.dim"] == ["4 to 8"]


BAD = {
    "typo": (["model.layrs=1:4"], "did you mean 'model.layers'"),
    "section": (["model.lr=1:2"], "did you mean 'train.lr'"),
    "form": (["model.layers"], "is not key=spec"),
    "below": (["model.layers=0:4"], "greater than or equal to 1"),
    "above": (["model.dropout=0:1"], "less than 1"),
    "endless": (["train.clip=1:inf"], "should be a finite number"),
    "endless choice": (["train.clip=1.0,inf"], "should be a finite number"),
    "empty": (["train.epochs=3:3"], "the low end must be below"),
    "log of zero": (["model.dropout=0:0.5:log"], "must start above 0"),
    "mode": (["train.lr=0.1:0.2:lag"], "ends in :log or :step"),
    "step": (["model.dim=8:16:step=0.5"], "positive whole number"),
    "literal": (["model.sequence=tin,tim"], "should be 'none'"),
    "kind": (["model.hidden=64,128"], "valid list"),
    "twice": (["model.dim=8,8"], "listed twice"),
    "range of words": (["model.sequence=tin:din"], "should be 'none'"),
    "condition key": (["model.dim=8,16 when model.sequnce=tin"], "did you mean 'model.sequence'"),
    "condition value": (["model.dim=8,16 when model.sequence=tinn"], "should be 'none'"),
    "condition form": (["model.dim=8,16 when sometimes"], "is not a condition"),
    "never": (["model.sequence=din,tin", "model.layers=1:4 when model.sequence=stacked_tin"], "can never hold"),
    "circle": (["model.dim=8,16 when model.layers=1", "model.layers=1:2 when model.dim=8"], "round in a circle"),
    "metric": (["train.metric=auc,gauc"], "cannot vary: trials are compared by it"),
    "seed": (["train.seed=0:9"], "lucky seed"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_space_is_one_sentence(case: str) -> None:
    texts, words = BAD[case]
    with pytest.raises(InputError) as caught:
        space.parse({}, texts)
    assert words in str(caught.value) and len(str(caught.value).splitlines()) <= 2


def test_all_errors_at_once() -> None:
    with pytest.raises(InputError) as caught:
        _parse('[tune]\nmodel.dim = {rang = "1:2"}\nmodel.layers = "0:3"', "train.lr=1:log", "model.foo=1,2")
    lines = str(caught.value).splitlines()
    assert len(lines) == 5 and sum("model.dim" in line for line in lines) == 2
    assert "did you mean 'range'" in lines[0]


def test_options_that_no_trial_can_reach_are_told_apart() -> None:
    found = _parse(
        "", "model.layers=1:4 when model.sequence=stacked_tin", "search.top_k=20,50 when search.method!=none"
    )
    assert found.idle(BASE) == {"search.top_k": "search.method is none"}
    chained = _parse("", "search.hash_bits=1:4 when search.method=eta", "search.hashes=1:4 when search.hash_bits=2")
    assert set(chained.idle(BASE)) == {"search.hash_bits", "search.hashes"}
