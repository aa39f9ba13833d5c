"""Optimisers of embedding rows: state and time only for the rows that a step touches."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RowOptimizer(nn.Module):
    """Turns the gradient of some rows into their step; its buffers are its state."""

    def step(self, index: Tensor, grad: Tensor, lr: float) -> Tensor:
        """index int64 [U] distinct rows, grad [U, d] -> what to subtract from them, [U, d]."""
        raise TypeError(f"{type(self).__name__} has no step")


class RowwiseAdagrad(RowOptimizer):
    """Adagrad with one accumulator per row: the mean square of the row's gradients (4 bytes a row)."""

    total: Tensor

    def __init__(self, rows: int, dim: int, eps: float = 1e-8) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("total", torch.zeros(rows))

    def step(self, index: Tensor, grad: Tensor, lr: float) -> Tensor:
        total = self.total.index_select(0, index) + grad.square().mean(1)
        self.total.index_copy_(0, index, total)
        return grad * (lr / (total.sqrt() + self.eps)).unsqueeze(1)


class LazyAdam(RowOptimizer):
    """Adam whose moments decay only when their row is touched; bias correction counts the row's own steps."""

    first: Tensor
    second: Tensor
    count: Tensor

    def __init__(self, rows: int, dim: int, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8) -> None:
        super().__init__()
        self.betas, self.eps = betas, eps
        self.register_buffer("first", torch.zeros(rows, dim))
        self.register_buffer("second", torch.zeros(rows, dim))
        self.register_buffer("count", torch.zeros(rows))

    def step(self, index: Tensor, grad: Tensor, lr: float) -> Tensor:
        fast, slow = self.betas
        first = self.first.index_select(0, index).lerp_(grad, 1 - fast)
        second = self.second.index_select(0, index).mul_(slow).addcmul_(grad, grad, value=1 - slow)
        count = self.count.index_select(0, index).add_(1)
        for state, value in ((self.first, first), (self.second, second), (self.count, count)):
            state.index_copy_(0, index, value)
        scale = lr / (1 - torch.pow(fast, count))
        return first / ((second / (1 - torch.pow(slow, count)).unsqueeze(1)).sqrt_() + self.eps) * scale.unsqueeze(1)


def row_optimizer(name: str, rows: int, dim: int) -> RowOptimizer:
    """`adagrad` or `adam`."""
    return {"adagrad": RowwiseAdagrad, "adam": LazyAdam}[name](rows, dim)
