"""Which events are positive, when samples are made from events."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from lsm_cli.data.building.plan import Plan
from lsm_cli.data.building.requests import Requests, check_splits, split_by_time
from lsm_cli.data.building.scan import Source, usable
from lsm_cli.data.wording import hint
from lsm_cli.errors import InputError

EVERY = "event"  # the target's name when every event is positive


@dataclass
class Positives:
    """The actions that count as positive, each a target of its own."""

    actions: list[str]

    @property
    def targets(self) -> list[str]:
        return self.actions or [EVERY]

    def codes(self, source: Source, frame: pl.DataFrame) -> np.ndarray:
        """int8 [rows]: index of the target that the event is positive for, -1 for none."""
        if not self.actions:
            return np.zeros(frame.height, np.int8)
        if "action" not in frame.columns:
            constant = source.constants.get("action")
            return np.full(frame.height, self.actions.index(constant) if constant in self.actions else -1, np.int8)
        number = {action: code for code, action in enumerate(self.actions)}
        text = frame["action"].cast(pl.String)
        return text.replace_strict(number, default=-1, return_dtype=pl.Int8).fill_null(-1).to_numpy()


def read_positives(plan: Plan, positives: Positives, each: int) -> Requests:
    """Times and splits of the positive events, in the order of the logs.

    Args:
        each: samples made of one positive.

    Raises:
        InputError: an action that never occurs, or a split without training or validation rows.
    """
    description, times, codes = plan.description, [], []
    actions: set[str] = set()
    for source in plan.events:
        only = ["user", "item", "time"]
        only += ["action"] if "action" in source.roles and "action" not in source.constants else []
        actions.update({source.constants["action"]} if "action" in source.constants else ())
        for frame in source.batches(plan.kinds, plan.resolution, plan.rows, only):
            keep, _ = usable(frame)
            frame = frame if keep is None else frame.filter(keep)
            if "action" in frame.columns:
                actions.update(frame["action"].drop_nulls().unique().cast(pl.String).to_list())
            code = positives.codes(source, frame)
            times.append(frame["time"].to_numpy()[code >= 0])
            codes.append(code[code >= 0])
            plan.progress.advance(frame.height)
    for action in positives.actions:
        if action not in actions:
            raise InputError(
                f"{description.file}: samples.from_events.positive: no event has the action {action!r}"
                + hint(action, actions)
            )
    time = np.concatenate(times)
    requests = Requests(np.zeros(len(time), np.int8), time, "", each=each)
    unit = plan.events[0].time.unit
    requests.how = split_by_time(description.split, requests.split, time, unit, plan.resolution)
    check_splits(description, requests, plan.resolution)
    return requests
