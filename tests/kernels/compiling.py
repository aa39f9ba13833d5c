"""Compile the kernels that attention, row updates and selection would launch, for a GPU that need not be there."""

from __future__ import annotations

import sys
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from lsm_cli.embedding.optimizer import row_optimizer
from lsm_cli.embedding.tables import Table
from lsm_cli.kernels import fused, ragged, topk, triton_ragged, triton_rows, triton_topk
from lsm_cli.kernels.ragged import Segments
from tests.kernels.test_fused import Case

HOPPER = GPUTarget("cuda", 90, 32)
TYPES = {
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.bool: "i1",
}


class Compiled:
    """Stands for a kernel: what would be launched is compiled instead."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return self

    def __call__(self, *arguments: Any, num_warps: int = 4, **named: Any) -> None:
        given = dict(zip(self.kernel.arg_names, arguments, strict=False)) | named
        constants: dict[tuple[int, ...], Any] = {}

        def kind(value: Any, place: tuple[int, ...], fixed: bool) -> Any:
            if isinstance(value, tuple):
                return tuple(kind(part, (*place, number), fixed) for number, part in enumerate(value))
            if fixed:
                constants[place] = value
                return "constexpr"
            if isinstance(value, torch.Tensor):
                return f"*{TYPES[value.dtype]}"
            return "fp32" if isinstance(value, float) else "i32"

        signature = {
            parameter.name: kind(given[parameter.name], (number,), parameter.is_constexpr)
            for number, parameter in enumerate(self.kernel.params)
        }
        source = ASTSource(self.kernel, signature, constants)
        made = triton.compile(source, HOPPER, {"num_warps": num_warps})
        print(self.kernel.fn.__name__, len(made.asm["cubin"]), flush=True)


def attention(**options: Any) -> None:
    case = Case([7, 30], [(200, 16), (90, 6), (5, 16)], [33], device="cpu", **options)
    out = case.fused()
    out.sum().backward()
    fused.scores(case.keys, *case.queries, case.segments.reads, case.bias)


def main() -> None:
    for module in (triton_ragged, triton_rows, triton_topk):
        for name, kernel in list(vars(module).items()):
            if isinstance(kernel, triton.runtime.JITFunction) and not name.startswith("_"):
                setattr(module, name, Compiled(kernel))
    attention()
    torch.use_deterministic_algorithms(True)
    attention(heads=2, decoupled=True, dtype=torch.bfloat16, biased=False)
    ragged.prefer("triton")
    for name, dtype in (("adagrad", torch.bfloat16), ("adam", torch.float32)):
        table = Table(50, 12, 1.0, 0, dtype)
        rows = table.fetch(torch.arange(9), grad=True)
        rows.values.sum().backward()
        table.update(rows, row_optimizer(name, 50, 12), 0.1)
    topk.best(torch.randn(9), Segments(torch.tensor([0, 4, 9])), 3)


if __name__ == "__main__":
    sys.exit(main())
