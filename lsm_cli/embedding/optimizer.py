"""Optimisers of embedding rows: state and time only for the rows that a step touches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lsm_cli.kernels import fused

BLOCK = 32  # rows per program


class RowOptimizer(nn.Module):
    """Turns the gradient of some rows into their step; its buffers are its state."""

    def step(self, index: Tensor, grad: Tensor, lr: float) -> Tensor:
        """index int64 [U] distinct rows, grad [U, d] -> what to subtract from them, [U, d]."""
        raise TypeError(f"{type(self).__name__} has no step")

    def move(self, weight: Tensor, index: Tensor, values: Tensor, grad: Tensor, lr: float) -> None:
        """Write rows back, moved against their gradient; in one launch where `engine.kernels` means Triton.

        Args:
            weight: the table [R, d], fp32 or bf16.
            index: int64 [U], distinct rows of it; values, grad: float32 [U, d], what they were and their gradient.
        """
        if fused.chosen(weight.device.type):
            rounds = weight.dtype == torch.bfloat16
            seed = int(torch.randint(1 << 31, ())) if rounds else 0
            dim = weight.shape[1]
            constants = {"DIM": dim, "PAD": 1 << (dim - 1).bit_length(), "ROUND": rounds, "BLOCK": BLOCK}
            self._launch(weight, index, values, grad.contiguous(), lr, seed, constants)
            return
        moved = values - self.step(index, grad, lr)
        weight.index_copy_(0, index, moved if weight.dtype == moved.dtype else rounded(moved))

    def _launch(
        self, weight: Tensor, index: Tensor, values: Tensor, grad: Tensor, lr: float, seed: int, constants: Any
    ) -> None:
        raise TypeError(f"{type(self).__name__} has no kernel")


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

    def _launch(
        self, weight: Tensor, index: Tensor, values: Tensor, grad: Tensor, lr: float, seed: int, constants: Any
    ) -> None:
        from lsm_cli.kernels import triton_rows

        triton_rows.adagrad[_programs(index)](
            weight, self.total, index, values, grad, len(index), lr, self.eps, seed, **constants
        )


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

    def _launch(
        self, weight: Tensor, index: Tensor, values: Tensor, grad: Tensor, lr: float, seed: int, constants: Any
    ) -> None:
        from lsm_cli.kernels import triton_rows

        state = (self.first, self.second, self.count)
        triton_rows.adam[_programs(index)](
            weight, *state, index, values, grad, len(index), lr, *self.betas, self.eps, seed, **constants
        )


def _programs(index: Tensor) -> tuple[int]:
    return (-(-len(index) // BLOCK),)


def rounded(value: Tensor) -> Tensor:
    """float32 -> bfloat16, up or down with a chance that keeps the mean: steps far smaller than a table's precision
    are then not lost (stochastic rounding, Gupta et al., ICML'15, arXiv 1502.02551)."""
    chance = torch.randint(1 << 16, value.shape, dtype=torch.int32, device=value.device)
    return ((value.contiguous().view(torch.int32) + chance) & -65536).view(torch.float32).to(torch.bfloat16)


def row_optimizer(name: str, rows: int, dim: int) -> RowOptimizer:
    """`adagrad` or `adam`."""
    return {"adagrad": RowwiseAdagrad, "adam": LazyAdam}[name](rows, dim)
