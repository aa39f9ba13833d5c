"""What a synthetic world is made of: behaviours and requests, in columns of numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

DOMAINS = ("ad", "video", "article")
ACTIONS = ("view", "click", "like", "share", "order", "install")
CODE = {action: number for number, action in enumerate(ACTIONS)}
CLOCK = 1 << 32  # (key, second) packed in one sortable number: key * CLOCK + second
NONE = -1  # the behaviour or ad lacks this field


@dataclass(frozen=True)
class Events:
    """Behaviours; all arrays are [events]. `item` counts within the domain's catalogue."""

    user: np.ndarray
    time: np.ndarray
    domain: np.ndarray
    scenario: np.ndarray
    action: np.ndarray
    item: np.ndarray
    brand: np.ndarray
    leaf: np.ndarray
    channel: np.ndarray  # whose the item is: a field that ads do not have

    def take(self, index: np.ndarray) -> Events:
        return Events(**{name: column[index] for name, column in vars(self).items()})

    @staticmethod
    def join(parts: list[Events]) -> Events:
        return Events(**{name: np.concatenate([getattr(p, name) for p in parts]) for name in vars(parts[0])})


@dataclass(frozen=True)
class Requests:
    """Impressions, ordered by (user, time); all arrays are [impressions]."""

    user: np.ndarray
    time: np.ndarray
    scenario: np.ndarray
    item: np.ndarray
    brand: np.ndarray
    leaf: np.ndarray

    def take(self, index: np.ndarray) -> Requests:
        return Requests(**{name: column[index] for name, column in vars(self).items()})


def ancestor(leaf: np.ndarray, level: int, branching: tuple[int, int, int]) -> np.ndarray:
    """The category of each leaf at `level` (1 = coarsest, 3 = the leaf itself)."""
    return leaf // int(np.prod(branching[level:]))
