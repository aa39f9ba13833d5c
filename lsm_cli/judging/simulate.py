"""Two policies serve the same users of a synthetic world: who earns more, and did the log foretell it?

From the test day on every request offers its slate, the policy shows the candidate that it ranks first, and what the
user does is drawn from the world's true probabilities, which look at the history that this policy has made. Clicks and
orders enter it, and both the world and the model see them at the next request. The luck of every request, delay and
basket size are the same for all policies (common random numbers), so that policies which choose alike earn alike.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial

import numpy as np

from lsm_cli.data.store import MISSING, Store
from lsm_cli.data.synth.rows import DOMAINS, Events
from lsm_cli.data.synth.slates import candidates
from lsm_cli.data.synth.world import Drawn, chances, past, rounds, trace
from lsm_cli.data.synth.worlds import DAY
from lsm_cli.data.views import Grown
from lsm_cli.engine.evaluate import score
from lsm_cli.engine.feed import Feed
from lsm_cli.engine.setup import Setup
from lsm_cli.errors import InputError
from lsm_cli.judging.compare import Difference, Resampling
from lsm_cli.judging.contenders import Contender
from lsm_cli.judging.gmv import lift
from lsm_cli.report.console import Progress, Silent

SPLIT = "test"
BASKET_SD = 0.2  # of the logarithm of an order's size
AD = DOMAINS.index("ad")

Policy = Callable[["Round"], np.ndarray]


@dataclass(frozen=True)
class Round:
    """What a policy is asked to rank.

    Attributes:
        rows: int [n * K], test samples of the store, slate by slate.
        candidates: int [n * K], the same among the world's candidates.
        p: target -> true probability [n * K]; for the truth alone to look at.
        view: makes the store as it is now.
    """

    rows: np.ndarray
    candidates: np.ndarray
    p: dict[str, np.ndarray]
    view: Callable[[], Store]


@dataclass
class Outcome:
    """What a policy earned, request by request: [requests].

    Attributes:
        earned: money, drawn. expected: money, by the true probabilities of what was shown.
        shown: which of the slate.
    """

    earned: np.ndarray
    expected: np.ndarray
    shown: np.ndarray


class Simulation:
    """A world and a store that was built from it.

    Args:
        drawn: with slates.
        store: whose test samples are the slates.
        seed: of the luck.

    Raises:
        InputError: the store was built from something else.
    """

    def __init__(self, drawn: Drawn, store: Store, seed: int = 0) -> None:
        assert drawn.slates is not None
        self.drawn, self.store, self.slates = drawn, store, drawn.slates
        self.size, self.width = (int(number) for number in drawn.slates.item.shape)
        self.could = candidates(drawn)
        self.user = drawn.requests.user[drawn.slates.request]
        samples, place = store.samples(SPLIT), np.tile(np.arange(self.width), self.size)
        order = np.lexsort((place, self.could.user, self.could.time))  # as the impressions were written
        self.row = np.empty(len(order), np.int64)
        self.row[order] = np.arange(len(order))
        paid = drawn.world.paid
        if not len(samples) == len(order) or not samples.has(f"truth.{paid}"):
            raise InputError(f"{store.path}: was not built from this world; build it from the world's dataset.toml")
        p = chances(drawn, self.could, past(drawn, drawn.events, self.could))[paid]
        if not np.allclose(samples.column(f"truth.{paid}")[self.row], p, rtol=1e-4):
            raise InputError(f"{store.path}: was built from another world; build it from this one's dataset.toml")
        self.logged_p = p
        start = drawn.world.test * DAY
        kept = (drawn.events.domain != AD) | (drawn.events.time < start)
        self.before = drawn.events.take(np.flatnonzero(kept))
        self.past = past(drawn, self.before, self.could)
        rng = np.random.default_rng([seed, 55])
        self.luck = {target.name: rng.random(self.size) for target in drawn.world.targets}
        self.wait = {
            target.name: 1 + (rng.standard_exponential(self.size) * target.delay).astype(np.int64)
            for target in drawn.world.targets
        }
        self.basket = rng.lognormal(0.0, BASKET_SD, self.size)
        self._prepare_store()

    def _prepare_store(self) -> None:
        """The store's behaviours without the ads' own of the test days: those are each policy's to make."""
        store, fields = self.store, self.store.manifest["fields"]
        ads = [int(number) for number, name in fields["domain"]["names"].items() if name == "ad"]
        began = datetime.fromisoformat(self.drawn.world.start).replace(tzinfo=UTC)
        start = (int(began.timestamp()) + self.drawn.world.test * DAY) * store.ticks_per_second - store.base
        time = np.asarray(store.column("time"), np.int64)
        keep = ~(np.isin(store.column("domain"), ads) & (time >= start))
        self.columns = {name: np.asarray(store.column(name))[keep] for name in fields if fields[name]["in_history"]}
        self.columns["time"] = time[keep]
        self.owner = np.repeat(np.arange(store.users), np.diff(store.offsets))[keep]
        self.action = {name: int(number) for number, name in fields["action"]["names"].items()}

    def live(self, policy: Policy, progress: Progress | None = None) -> Outcome:
        """Let a policy serve all requests, in rounds: the first of every user, the second …"""
        progress = progress or Silent()
        drawn, paid, width = self.drawn, self.drawn.world.paid, self.width
        outcome = Outcome(np.zeros(self.size), np.zeros(self.size), np.zeros(self.size, np.int64))
        trail, made = drawn.events.take(np.arange(0)), _Made()
        for now in rounds(self.user):
            at = (now[:, None] * width + np.arange(width)).ravel()
            shown = self.could.take(at)
            fresh = past(drawn, trail, shown)
            p = chances(drawn, shown, {name: self.past[name][..., at] + fresh[name] for name in fresh})
            ranked = policy(Round(self.row[at], at, p, partial(self._view, made)))
            best = np.asarray(ranked.reshape(-1, width).argmax(1))
            chosen = np.arange(len(now)) * width + best
            outcome.shown[now] = best
            worth = drawn.price[shown.item[chosen]]
            outcome.expected[now] = p[paid][chosen] * worth * np.exp(BASKET_SD**2 / 2)
            for target in drawn.world.targets:
                name = target.name
                label = self.luck[name][now] < p[name][chosen]
                done, wait = chosen[label], self.wait[name][now[label]]
                trail = Events.join([trail, trace(shown.take(done), wait, name)])
                made.add(self.row[at[done]], wait, self.action[name])
                if name == paid:
                    outcome.earned[now] = np.where(label, worth * self.basket[now], 0.0)
            progress.advance(len(now))
        return outcome

    def _view(self, made: _Made) -> Store:
        """The store with what users did since the test day began."""
        samples = self.store.samples(SPLIT)
        row, wait, action = made.columns()
        columns = {}
        for name, before in self.columns.items():
            if name == "time":
                after = samples.column("time")[row] + wait * self.store.ticks_per_second
            elif name == "action":
                after = action
            elif samples.has(name):
                after = samples.column(name)[row]
            else:
                after = np.full(len(row), MISSING)
            columns[name] = np.concatenate([before, after.astype(before.dtype)])
        user = np.concatenate([self.owner, samples.column("user")[row]])
        return Grown(self.store, user, columns, "with what the policy made of it")

    def ranked_by(self, contender: Contender, target: str) -> Policy:
        """Shows what a model finds most likely."""

        def rank(asked: Round) -> np.ndarray:
            setup = Setup.of(contender.setup.recipe, asked.view())
            logits = score(contender.model, Feed(setup, SPLIT), setup.compute, asked.rows)
            return logits[:, contender.targets.index(target)]

        return rank

    def known(self, name: str, seed: int = 0) -> tuple[Policy, np.ndarray]:
        """A policy without a model, and its scores of the log's test samples: random, popularity or truth."""
        paid = self.drawn.world.paid
        every: dict[str, np.ndarray] = {
            "random": np.random.default_rng([seed, 56]).random(len(self.row)),
            "popularity": self.drawn.catalogues["ad"].weight[self.could.item],
            "truth": self.logged_p,
        }
        scores = every[name]
        logged = np.empty(len(scores))
        logged[self.row] = scores
        if name == "truth":
            return lambda asked: asked.p[paid], logged
        return lambda asked: scores[asked.candidates], logged

    def lifts(self, ours: Outcome, theirs: Outcome, replicates: int, seed: int) -> dict[str, Difference]:
        """GMV lift with interval over users: as it was drawn, and by the true probabilities."""
        resampling = Resampling(self.user, replicates, seed)
        return {
            name: lift(resampling, *(resampling.sums(getattr(one, name)) for one in (ours, theirs)))
            for name in ("earned", "expected")
        }


@dataclass
class _Made:
    """Ad behaviours that a policy has brought about: test samples, delays in seconds, action ids."""

    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = field(default_factory=list)

    def add(self, row: np.ndarray, wait: np.ndarray, action: int) -> None:
        self.parts.append((row, wait, np.full(len(row), action)))

    def columns(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if not self.parts:
            return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.int64)
        row, wait, action = (np.concatenate(part) for part in zip(*self.parts, strict=True))
        return row, wait, action
