"""The dense weights of a model in training: their optimiser, the average of their course, and the scale of gradients.

The rows of the tables move by themselves (`Scorer.update`); their gradients are scaled and clipped here with the rest.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from lsm_cli.engine.device import Compute
from lsm_cli.models.scorer import Scorer
from lsm_cli.options import TrainOptions


class Dense:
    """What of a model is trained by AdamW.

    Args:
        model: in the form in which it is trained.
        options: `lr`, `weight_decay` of matrices, `clip`, `ema`.
        compute: in fp16 losses are scaled.

    Attributes:
        parameters: the weights, matrices first.
        average: of them over the steps, in the same order; empty without `ema`.
    """

    def __init__(self, model: Scorer, options: TrainOptions, compute: Compute) -> None:
        self.options = options
        decays = [p for p in model.parameters() if p.ndim > 1]
        flat = [p for p in model.parameters() if p.ndim <= 1]
        self.optimizer = torch.optim.AdamW(
            [{"params": decays, "weight_decay": options.weight_decay}, {"params": flat, "weight_decay": 0.0}],
            lr=options.lr,
        )
        self.parameters: list[Tensor] = [*decays, *flat]
        self.average = [p.detach().clone() for p in self.parameters] if options.ema else []
        self.scaler = torch.amp.GradScaler(compute.device.type, enabled=compute.precision == "fp16")

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss to those that are there, scaled until `move`."""
        self.scaler.scale(loss).backward()

    def move(self, leaves: list[Tensor], rate: float) -> bool:
        """Unscale and clip all gradients and move the weights; False = fp16 overflowed, the step is skipped.

        Args:
            leaves: the rows of the tables, whose gradients are unscaled and clipped with the others.
            rate: of the learning rate.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self.options.lr * rate
        self.scaler.unscale_(self.optimizer)
        if self.scaler.is_enabled():
            for leaf in leaves:
                if leaf.grad is not None:
                    leaf.grad.mul_(1 / self.scaler.get_scale())
        grads = [p.grad for p in (*self.parameters, *leaves) if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(grads) if self.options.clip or self.scaler.is_enabled() else None
        if norm is not None and self.scaler.is_enabled() and not norm.isfinite():  # the scaler knows no leaves
            self.scaler.update(self.scaler.get_scale() * self.scaler.get_backoff_factor())
            return False
        if norm is not None and self.options.clip:
            torch._foreach_mul_(grads, (self.options.clip / (norm + 1e-6)).clamp(max=1.0))
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return True

    def follow(self, step: int) -> None:
        """Let the average follow the weights after so many steps."""
        if self.average:
            keep = min(self.options.ema, (1 + step) / (10 + step))  # soon forget the first weights
            torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1 - keep)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The averaged weights in place of the current ones."""
        if not self.average:
            yield
            return
        current = [p.detach().clone() for p in self.parameters]
        with torch.no_grad():
            torch._foreach_copy_(self.parameters, self.average)
            yield
            torch._foreach_copy_(self.parameters, current)

    def state(self) -> dict[str, Any]:
        """What goes on where it stood, but for the weights themselves."""
        return {
            "dense": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "average": self.average,
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["dense"])
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        for kept, value in zip(self.average, state["average"], strict=True):
            kept.copy_(value)
