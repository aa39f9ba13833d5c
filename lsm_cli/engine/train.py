"""The one training loop."""

from __future__ import annotations

import bisect
import math
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lsm_cli.data.batches import Batch
from lsm_cli.data.epochs import epoch_order
from lsm_cli.engine import evaluate, fitting, schedule, trace
from lsm_cli.engine.batching import Plan
from lsm_cli.engine.dense import Dense
from lsm_cli.engine.feed import Feed
from lsm_cli.engine.run import RunFolder
from lsm_cli.engine.setup import Setup
from lsm_cli.engine.tracking import Tracking
from lsm_cli.errors import InputError, LsmError
from lsm_cli.models.scorer import Scorer
from lsm_cli.models.space import Rows
from lsm_cli.report.console import Progress, Silent

FIT_SAMPLES = 50_000  # training samples from which the scale of numeric features is taken
CHECK_STEPS = 100  # steps between looks at the loss; each look waits for the device


class InterruptedRunError(LsmError):
    """The user stopped the run; its state is saved."""

    exit_code = 130


@dataclass
class Position:
    """Where a run stands: a checkpoint holds it, a resumed run starts from it."""

    epoch: int = 0
    step: int = 0  # steps done, over all epochs
    best: float | None = None
    worse: int = 0  # validations since the best one
    finished: bool = False
    seconds: float = 0.0  # spent in training steps
    samples: int = 0
    loss: float = 0.0  # summed since the last look at it
    pending: int = 0  # steps in that sum
    seen: float = 0.0  # loss summed from the last validation to the last look
    counted: int = 0  # steps in that sum
    pieces: int = 1  # in which a step goes, so that it fits in memory


class Trainer:
    """Trains one model.

    Args:
        setup: recipe, store and device.
        run: where to write.
        progress: who watches.
        stop: asked after every step; True saves the state and raises `InterruptedRunError`.
        model: goes on with this one instead of a fresh one.
        watch: called after every validation with its line of metrics.jsonl; may raise to end the run there.
    """

    def __init__(
        self,
        setup: Setup,
        run: RunFolder,
        progress: Progress | None = None,
        stop: Callable[[], bool] = lambda: False,
        model: Scorer | None = None,
        watch: Callable[[dict[str, Any]], None] = lambda line: None,
    ) -> None:
        self.setup, self.run, self.progress, self.stop = setup, run, progress or Silent(), stop
        self.watch = watch
        self.options = setup.recipe.train
        self.train = Feed(setup, "train")
        every = np.arange(len(self.train))
        self.plan = Plan(
            setup.recipe,
            len(every),
            self.train.lengths(every) if setup.recipe.engine.token_budget else None,
            self.train.requests() if self.options.shuffle == "requests" else None,
        )
        self.total = self.plan.total
        self.model = setup.model() if model is None else model
        self.dense = Dense(self.model, self.options, setup.compute)
        self.weights = torch.tensor(
            [self.options.weights.get(target, 1.0) for target in setup.targets], device=setup.compute.device
        )
        self.at, self.prepared = Position(), False
        self.pieces = fitting.Pieces("batch", setup.compute.device, self.progress.warn)
        self.train.tell(self.progress.warn)
        self.tracking = Tracking(setup.recipe, run)
        self.saved = time.monotonic()

    @cached_property
    def valid(self) -> Feed:
        return Feed(self.setup, "valid")

    @property
    def history(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl."""
        return self.tracking.lines

    # the loop

    def prepare(self) -> None:
        """Stand where the run stands: before the first step, or where its state was saved."""
        state = self.run.load_state(mapped=self.setup.recipe.engine.table_tier == "file")
        if state is None:
            self.fit_scales()
            self.model.start(self.rates(), self.setup.item_vectors)
            self.tracking.start([])
        else:
            self._restore(state)
        self.prepared = True

    def fit(self) -> None:
        """Train to the end, from wherever the run stands."""
        if not self.prepared:
            self.prepare()
        self.prepared = False
        self.progress.advance(self.at.samples, total=len(self.train) * self.options.epochs)
        validate_at = self._validation_steps()
        while not self.at.finished:
            self._epoch(validate_at)

    def best(self) -> Scorer:
        """The model with the weights of the best validation."""
        self.run.fill(self.model)
        return self.model

    def _epoch(self, validate_at: set[int]) -> None:
        batches, done = self.plan.batches(self.at.epoch), self.at.step - self.plan.start[self.at.epoch]
        if self.options.fresh_tables and self.at.epoch and not done:
            self.model.reset_tables()
        loss = torch.tensor(self.at.loss, device=self.setup.compute.device)
        with closing(self.updates(batches[done:])) as updates:
            self._follow(updates, batches, done, loss, validate_at)

    def _follow(
        self, updates: Iterator[Tensor], batches: list[np.ndarray], done: int, loss: Tensor, validate_at: set[int]
    ) -> None:
        """Count, look, validate and save after every update of an epoch from the step `done` of it."""
        for number in range(done, len(batches)):
            started = time.perf_counter()
            loss += next(updates)
            self.at.samples += len(batches[number])
            self.at.pending += 1
            last = number + 1 == len(batches)
            look = self.at.pending == CHECK_STEPS or last or self.at.step in validate_at
            summed = float(loss) if look else 0.0  # waits for the device
            self.at.seconds += time.perf_counter() - started
            self.progress.advance(len(batches[number]))
            if look:
                self._check(summed / self.at.pending)
                self.at.seen += summed
                self.at.counted += self.at.pending
                loss.zero_()
                self.at.pending = 0
            self.at.epoch += last
            self.at.finished = self.at.epoch == self.options.epochs
            self.at.loss = 0.0
            if self.at.step in validate_at:
                mean = self.at.seen / self.at.counted
                self.at.seen, self.at.counted = 0.0, 0
                self._validate(mean)
            if self.at.finished:
                return
            overdue = time.monotonic() - self.saved > self.options.checkpoint_seconds
            if overdue or self.stop():
                self.at.loss = float(loss)
                self._save()
                if self.stop():
                    raise InterruptedRunError(
                        f"{self.run.path}: stopped after {self.at.step:,} of {self.total:,} steps; the state is saved, "
                        "go on with --resume"
                    )

    def updates(self, batches: Iterable[np.ndarray]) -> Generator[Tensor, None, None]:
        """One update per group of samples; yields its detached loss, still on the device. What training and profiling
        both go through."""
        with closing(self.train.batches(batches, self.model)) as made:
            while True:
                with trace.part(trace.DATA):
                    batch = next(made, None)
                if batch is None:
                    return
                loss = self._step(batch)
                del batch  # the next one is made without this one in memory
                self.at.step += 1
                yield loss

    def _step(self, batch: Batch) -> Tensor:
        self.model.train()
        rate = schedule.factor(self.at.step, self.total, self.options)
        device = self.setup.compute.device
        back = partial(fitting.restore, fitting.random_state(device), device)
        rows, loss = self.pieces.run(batch.size, partial(self._learn, batch), back)
        self.at.pieces = self.pieces.count
        with trace.part(trace.OPTIMISER):
            moved = self.dense.move(self.model.leaves(rows), rate)
        if moved:
            with trace.part(trace.ROWS):
                self.model.update(rows, self.options.table_lr * (rate if self.options.table_decay else 1.0))
        with trace.part(trace.OPTIMISER):
            self.dense.follow(self.at.step)
        return loss

    def _learn(self, batch: Batch, bounds: Sequence[tuple[int, int]]) -> tuple[list[Rows], Tensor]:
        """The gradients of a batch, summed over its pieces, in the dense weights and in the leaves of its rows.

        Pieces share the rows, and count by the samples of the whole batch where a target was observed: the step is the
        same in any number of them, up to the order of sums (and what dropout draws; a softmax over what occurs in the
        batch, `train.softmax` and `train.next_item`, becomes one over what occurs in a piece).
        """
        with trace.part(trace.FETCH):
            rows = self.model.fetch(batch)
            self.dense.optimizer.zero_grad(set_to_none=True)
        losses = []
        for low, high in bounds:
            part, own = (batch, rows) if high - low == batch.size else self.model.part(batch, rows, low, high)
            with trace.part(trace.NUMBERS), self.setup.compute.autocast():
                logits, extra = self.model.learn(part, own)
            with trace.part(trace.LOSS):
                loss = self._loss(logits.float(), part.labels, batch.labels)
                if extra is not None:
                    loss = loss + (extra * self.weights).sum() * ((high - low) / batch.size)
            with trace.part(trace.BACKWARD):
                self.dense.backward(loss)
            losses.append(loss.detach())
            del part, own, logits, extra, loss
        return rows, losses[0] if len(losses) == 1 else torch.stack(losses).sum()

    def _loss(self, logits: Tensor, labels: Tensor, every: Tensor | None = None) -> Tensor:
        """Weighted sum over targets of the mean log loss over the samples where the target was observed.

        Args:
            every: labels of the whole batch, of which these are a piece: the mean is over all of it.
        """
        losses = F.binary_cross_entropy_with_logits(logits, labels.nan_to_num(), reduction="none") * ~labels.isnan()
        seen = (~(labels if every is None else every).isnan()).sum(0)
        return ((losses.sum(0) / seen.clamp(min=1)) * self.weights).sum()

    # validation and the best weights

    def _validation_steps(self) -> set[int]:
        parts = self.options.evaluations
        return {
            self.plan.start[epoch] + max(1, round(self.plan.steps(epoch) / parts * (place + 1)))
            for epoch in range(self.options.epochs)
            for place in range(parts)
        }

    def _validate(self, loss: float) -> None:
        """Score, log and save.

        Args:
            loss: of training, mean of the steps since the last validation.
        """
        index = evaluate.validated(self.setup)
        started = time.perf_counter()
        with self.dense.averaged():
            logits = evaluate.score(self.model, self.valid, self.setup.compute, index)
            found = evaluate.validate(logits, self.valid, index, self.setup.targets)
            quality = evaluate.quality(self.setup, found)
            better = self.at.best is None or quality > self.at.best
            if better:
                self.at.best, self.at.worse = quality, 0
                self.run.save_weights(weights(self.model))
            else:
                self.at.worse += 1
        line = {
            "step": self.at.step,
            "epoch": round(self._epochs(), 4),
            "train_loss": loss,
            "valid": found,
            "metric": quality,
            "best": better,
            "samples_per_second": round(self.at.samples / max(self.at.seconds, 1e-9), 1),
            "validation_seconds": round(time.perf_counter() - started, 3),
        }
        self.tracking.log(line)
        self.progress.note(f"loss {loss:.4f}  valid {self.options.metric} {abs(quality):.4f}")
        if self.options.patience and self.at.worse >= self.options.patience:
            self.at.finished = True
        self.watch(line)
        self._save()

    def _epochs(self) -> float:
        """Passes over the data so far."""
        epoch = bisect.bisect_right(self.plan.start, self.at.step - 1) - 1
        return epoch + (self.at.step - self.plan.start[epoch]) / self.plan.steps(epoch)

    def _check(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise LsmError(
                f"the loss became {loss} before step {self.at.step:,}; try a smaller train.lr or train.table_lr, or "
                "train.precision=fp32"
            )

    # state

    def fit_scales(self, samples: int = FIT_SAMPLES) -> None:
        """Take the scale of numeric features from some training samples."""
        index = epoch_order(len(self.train), self.options.seed, 1 << 30)[:samples]
        values = [
            self.model.numbers(self.train.batch(index[start : start + 4096], self.model))
            for start in range(0, len(index), 4096)
        ]
        self.model.fit_numbers(torch.cat(values))
        self.dense = Dense(self.model, self.options, self.setup.compute)

    def rates(self) -> Tensor:
        """Share of positives of every target among the training samples where it was observed, never 0 or 1."""
        seen = [np.asarray(label)[np.asarray(label) >= 0] for label in self.train.labels]
        return torch.tensor([(label.sum(dtype=np.int64) + 1) / (len(label) + 2) for label in seen]).float()

    def _save(self) -> None:
        self.run.save_state(
            {
                "position": vars(self.at).copy(),
                "model": self.model.state_dict(),
                **self.dense.state(),
                "rng": torch.get_rng_state(),
                "cuda_rng": torch.cuda.get_rng_state() if self.setup.compute.device.type == "cuda" else None,
                "history": self.tracking.lines,
            }
        )
        self.saved = time.monotonic()

    def _restore(self, state: dict[str, Any]) -> None:
        self.at = Position(**state["position"])
        self.at.finished |= self.at.epoch == self.options.epochs
        self.pieces.count = self.at.pieces
        try:
            self.model.load_state_dict(state["model"])
        except RuntimeError:  # tensors of other names or shapes
            raise InputError(
                f"{self.run.path}: its saved state is not that of the model of its recipe; it was written by another "
                "version of lsm: start the run again in another --out"
            ) from None
        self.dense = Dense(self.model, self.options, self.setup.compute)
        self.dense.restore(state)
        torch.set_rng_state(state["rng"])
        if state["cuda_rng"] is not None and self.setup.compute.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda_rng"])
        self.tracking.start(state["history"])


def weights(model: torch.nn.Module) -> dict[str, Tensor]:
    """What scoring needs: everything but the optimisers' state."""
    return {name: tensor for name, tensor in model.state_dict().items() if ".optimizers." not in name}
