"""Scores requests with a model that `lsm export` wrote. Needs torch, numpy and safetensors, and nothing of lsm.

    python scorer.py < requests.jsonl > scores.jsonl

A request is one candidate and the history of its user, a JSON object per line:

    {"time": 1700000000,                                    seconds since 1970, of the request
     "candidate": {"item": "A", "category": "c1/c2", …},    raw values as in the logs; a category is a path
     "history": {"time": […], "item": […], …},              a list per field, as long as that of the times; any order
                                                            (also "rank", if scorer.json says "ranked": how many
                                                            behaviours ago among all of the user's, 1 = the last one)
     "statistics": {"popularity.item.1d": 12.0, …},         point-in-time counts; what is missing is unknown
     "matches": {"item.count": 3.0, …}}                     only where scorer.json names some

Its answer is an object of the same line: target -> probability. From Python: `Scorer(folder).score(requests)`, or
`Scorer(folder).logits(inputs)` with ids and tensors of one's own. `scorer.json` says which fields, targets and
statistics there are; what is read of a history (the most recent behaviours, or what a search found) it says too.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

FORMAT = 1
MISSING, DAY = 1, 86_400
BATCH = 1024  # requests that are scored at a time


class Scorer:
    """An exported model.

    Args:
        folder: as `lsm export` wrote it.
        compiled: whether to run the compiled program; None = where there is one. It runs on processors like that of the
            machine that compiled it.
    """

    def __init__(self, folder: str | Path, compiled: bool | None = None) -> None:
        self.folder = Path(folder)
        self.about: dict[str, Any] = json.loads((self.folder / "scorer.json").read_text())
        if self.about["format"] != FORMAT:
            raise ValueError(f"{self.folder}: format {self.about['format']}, this scorer reads format {FORMAT}")
        self.tables = dict(sorted(load_file(self.folder / "tables.safetensors").items()))
        self.compiled = (self.folder / "compiled.pt2").is_file() if compiled is None else compiled
        self._vocabularies: dict[str, dict[str, int]] = {}

    @cached_property
    def program(self) -> Any:
        """Takes inputs and tables, see `logits`; loaded when first needed."""
        if self.compiled:
            return torch._inductor.aoti_load_package(str(self.folder / "compiled.pt2"))
        return torch.export.load(str(self.folder / "program.pt2")).module()

    @torch.no_grad()
    def logits(self, inputs: dict[str, Any]) -> Tensor:
        """Log-odds of some samples, by ids: float32 [B, targets].

        Args:
            inputs: offsets int64 [B + 1], history: field -> int32 [N] oldest first, age float32 [N] (seconds, > 0),
                rank int32 [N] (1 = the most recent), target: field -> int32 [B], calendar int64 [B, 2] (hour, day of
                the week, Monday = 0, UTC), statistics float32 [B, S], and matches float32 [B, M] where there are some.
        """
        return self.program(padded(inputs), self.tables)[:-1]

    def score(self, requests: Sequence[dict[str, Any]]) -> list[dict[str, float]]:
        """Probabilities, by raw values.

        Raises:
            ValueError: a request is not as it must be; says which, and why.
        """
        found: list[dict[str, float]] = []
        for start in range(0, len(requests), BATCH):
            inputs = self.inputs(requests[start : start + BATCH], start)
            for row in torch.sigmoid(self.logits(inputs)).tolist():
                found.append(dict(zip(self.about["targets"], row, strict=True)))
        return found

    def inputs(self, requests: Sequence[dict[str, Any]], first: int = 0) -> dict[str, Any]:
        """Requests as `logits` takes them."""
        about, fields = self.about, self.about["fields"]
        new: dict[str, dict[str, int]] = {}  # values that nobody has seen: ids of their own, so that they can match
        history: dict[str, list[int]] = {name: [] for name, field in fields.items() if field["in_history"]}
        target: dict[str, list[int]] = {name: [] for name, field in fields.items() if field["in_sample"]}
        lengths, ages, ranks = [], list[float](), list[int]()
        statistics, matches = [], []
        for number, request in enumerate(requests, start=first + 1):
            try:
                time, events = float(request["time"]), request.get("history", {})
                moments = np.asarray(events.get("time", []), np.float64)
                past = np.flatnonzero(moments < time)
                order = past[np.argsort(moments[past], kind="stable")]
                order = order[max(0, len(order) - about["max_len"]) :]
                lengths.append(len(order))
                ages += (time - moments[order]).tolist()
                ranks += self._ranks(events, len(moments), order)
                for name, ids in history.items():
                    values = events.get(_raw(name, fields), [None] * len(moments))
                    if len(values) != len(moments):
                        raise ValueError(f"history.{_raw(name, fields)} and history.time differ in length")
                    ids += [self._id(name, values[place], new) for place in order]
                for name, ids in target.items():
                    ids.append(self._id(name, request["candidate"].get(_raw(name, fields)), new))
                known = request.get("statistics", {})
                statistics.append([float(known.get(name, -1.0)) for name in about["statistics"]])
                matches.append([float(request["matches"][name]) for name in about["matches"]])
            except KeyError as error:
                raise ValueError(f"request {number}: {error.args[0]!r} is missing") from None
            except (TypeError, AttributeError, ValueError) as error:
                raise ValueError(f"request {number}: {error}") from None
        seconds = np.array([float(request["time"]) for request in requests])
        hours, days = (seconds // 3600 % 24).astype(np.int64), (seconds // DAY).astype(np.int64)
        found: dict[str, Any] = {
            "offsets": torch.from_numpy(np.cumsum([0, *lengths]).astype(np.int64)),
            "history": {name: torch.tensor(ids, dtype=torch.int32) for name, ids in history.items()},
            "age": torch.tensor(ages, dtype=torch.float32),
            "rank": torch.tensor(ranks, dtype=torch.int32),
            "target": {name: torch.tensor(ids, dtype=torch.int32) for name, ids in target.items()},
            "calendar": torch.from_numpy(np.stack([hours, (days + 3) % 7], 1)),
            "statistics": torch.tensor(statistics, dtype=torch.float32).view(len(requests), -1),
        }
        if about["matches"]:
            found["matches"] = torch.tensor(matches, dtype=torch.float32)
        return found

    def _ranks(self, events: dict[str, Any], size: int, order: np.ndarray) -> list[int]:
        """How many behaviours ago: by the history, if it is whole, else as the request says."""
        if not self.about.get("ranked") or not len(order):
            return list(range(len(order), 0, -1))
        if len(events["rank"]) != size:
            raise ValueError("history.rank and history.time differ in length")
        return [int(events["rank"][place]) for place in order]

    def _id(self, name: str, value: Any, new: dict[str, dict[str, int]]) -> int:
        """The id of a raw value; of a category, of its node at the level of the field."""
        if value is None:
            return MISSING
        level = self.about["fields"][name]["level"]
        known = self._vocabulary(_raw(name, self.about["fields"]))
        if not level:
            text = str(value)
            fresh = new.setdefault(name, {})
            return known[text] if text in known else fresh.setdefault(text, len(known) + MISSING + 1 + len(fresh))
        parts = ([str(part) for part in value] if isinstance(value, list) else str(value).split("/"))[:level]
        return known.get("/".join(parts), MISSING) if len(parts) == level else MISSING

    def _vocabulary(self, field: str) -> dict[str, int]:
        if field not in self._vocabularies:
            self._vocabularies[field] = json.loads((self.folder / "vocabularies" / f"{field}.json").read_text())
        return self._vocabularies[field]


def _raw(name: str, fields: dict[str, Any]) -> str:
    """The name of a field in the logs: levels of a category come from one path."""
    return "category" if fields[name]["level"] else name


def padded(inputs: dict[str, Any]) -> dict[str, Any]:
    """The same samples, and one more that has two behaviours: programs know no batch of one, and no empty history.

    Everything comes in the order of its name, by which alone compiled programs tell one argument from another.
    """

    def more(values: Tensor, extra: Any) -> Tensor:
        return torch.cat([values, torch.tensor(extra, dtype=values.dtype, device=values.device)])

    found = dict(inputs)
    found["offsets"] = torch.cat([inputs["offsets"], inputs["offsets"][-1:] + 2])
    found["history"] = {name: more(ids, [0, 0]) for name, ids in inputs["history"].items()}
    found["age"], found["rank"] = more(inputs["age"], [1.0, 1.0]), more(inputs["rank"], [2, 1])
    found["target"] = {name: more(ids, [0]) for name, ids in inputs["target"].items()}
    for name in ("calendar", "statistics", "matches"):
        if name in inputs:
            found[name] = torch.cat([inputs[name], inputs[name].new_zeros(1, inputs[name].shape[1])])
    found["history"], found["target"] = (dict(sorted(found[name].items())) for name in ("history", "target"))
    return dict(sorted(found.items()))


def main() -> None:
    scorer = Scorer(Path(__file__).parent)
    lines = [line for line in sys.stdin if line.strip()]
    try:
        found = scorer.score([json.loads(line) for line in lines])
    except ValueError as error:
        sys.exit(f"error: {error}")
    for answer in found:
        print(json.dumps(answer))


if __name__ == "__main__":
    main()
