"""The one-pass attention equals attention written out position by position, forward and backward: by Triton's
interpreter on the CPU, and on a GPU with -m gpu."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from lsm_cli.kernels import fused, ragged
from lsm_cli.kernels.ragged import Occurrences, Part, Reads, Segments

pytest.importorskip("triton", reason="the fused kernels need the package triton (extra `triton`)")

BLOCK, CHUNK = 8, 16
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
EDGES = [[1], [0, 3, 0], [BLOCK - 1, BLOCK, BLOCK + 1], [CHUNK - 1, CHUNK, CHUNK + 1], [3 * CHUNK + 2, 0, 1], [0, 0]]
DTYPES = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}  # rounding of a gradient, relative


@pytest.fixture(autouse=True, scope="module")
def small_blocks() -> object:
    """Blocks and chunks so small that short histories have several; tables of more than 8 rows are gathered."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ragged, "CHUNK", CHUNK)
        patch.setattr(fused, "TILE", 8)
        patch.setattr(fused, "FEW", 8)
        yield


class Case:
    """Random tables, queries and bias over histories of given lengths."""

    def __init__(
        self,
        lengths: list[int],
        fields: list[tuple[int, int]],
        added: list[int],
        heads: int = 1,
        decoupled: bool = False,
        biased: bool = True,
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
        device: str = DEVICE,
    ) -> None:
        make = torch.Generator().manual_seed(seed)
        self.segments = Segments(torch.tensor([0, *lengths]).cumsum(0).to(device))
        self.dtype, self.leaves = dtype, list[Tensor]()

        def leaf(*shape: int, to: torch.dtype = torch.float32) -> Tensor:
            self.leaves.append(torch.randn(*shape, generator=make).to(device, to).requires_grad_())
            return self.leaves[-1]

        def side(widths: list[tuple[int, int]]) -> fused.Side:
            def part(rows: int, width: int, to: torch.dtype) -> Part:
                ids = torch.randint(rows, (self.segments.total,), generator=make).to(device)
                return Part(leaf(rows, width, to=to), Occurrences(ids, rows, self.segments))

            whole = sum(width for _, width in widths)
            return fused.Side(
                [part(*shape, dtype) for shape in widths], [part(rows, whole, torch.float32) for rows in added]
            )

        self.keys = side([(rows, max(1, width // 2)) for rows, width in fields] if decoupled else fields)
        self.values = side(fields) if decoupled else None
        self.queries = [leaf(len(lengths), heads, self.keys.width) for _ in range(2)]
        self.bias = leaf(heads, self.segments.total) if biased else None

    def fused(self) -> Tensor:
        return fused.attend(self.keys, *self.queries, self.segments.reads, self.bias, self.values)

    def written_out(self) -> Tensor:
        row = self.segments.row
        (fields, time), (given, given_time) = _positions(self.keys), _positions(self.values or self.keys)
        found = []
        for head in range(self.queries[0].shape[1]):
            logits = (fields * self.queries[0][row, head]).sum(1) + (time * self.queries[1][row, head]).sum(1)
            weight = ragged.softmax(logits if self.bias is None else logits + self.bias[head], self.segments)
            total = torch.zeros(self.segments.size, given.shape[1], device=row.device)
            found.append(total.index_add(0, row, (given + given_time) * weight.unsqueeze(1)))
        return torch.stack(found, 1)

    def check(self) -> None:
        fast, plain = self.fused(), self.written_out()
        torch.testing.assert_close(fast, plain, rtol=1e-5, atol=1e-5)  # the same rounded tables, sums in fp32
        factor = torch.linspace(-1, 1, fast.numel(), device=fast.device).view_as(fast)
        ours, theirs = (
            torch.autograd.grad((out * factor).sum(), self.leaves, materialize_grads=True) for out in (fast, plain)
        )
        for leaf, fast_grad, plain_grad in zip(self.leaves, ours, theirs, strict=True):
            assert fast_grad.dtype == leaf.dtype
            close = DTYPES[leaf.dtype]
            scale = max(1.0, float(plain_grad.abs().max()) if plain_grad.numel() else 0.0)
            torch.testing.assert_close(fast_grad, plain_grad, rtol=close, atol=close * scale)


def _positions(side: fused.Side) -> tuple[Tensor, Tensor]:
    fields = torch.cat([part.table.float()[part.at.ids] for part in side.fields], 1)
    return fields, sum((part.table.float()[part.at.ids] for part in side.added), torch.zeros_like(fields))


@pytest.mark.parametrize("lengths", EDGES, ids=str)
def test_ragged_edges(lengths: list[int]) -> None:
    Case(lengths, [(30, 4), (5, 3)], [8]).check()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("decoupled", [False, True])
def test_types_of_tables(dtype: torch.dtype, decoupled: bool) -> None:
    Case([CHUNK + 3, 0, 5], [(20, 8), (6, 8)], [7], heads=2, decoupled=decoupled, dtype=dtype).check()


@settings(deadline=None, max_examples=6, suppress_health_check=[HealthCheck.too_slow], phases=[Phase.generate])
@given(
    st.lists(st.integers(0, 20), min_size=1, max_size=4),
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 9)), min_size=1, max_size=3),
    st.lists(st.integers(1, 40), max_size=2),
    st.integers(1, 3),
    st.booleans(),
    st.booleans(),
    st.integers(0, 1 << 16),
)
def test_any_shape(
    lengths: list[int],
    fields: list[tuple[int, int]],
    added: list[int],
    heads: int,
    decoupled: bool,
    biased: bool,
    seed: int,
) -> None:
    Case(lengths, fields, added, heads, decoupled, biased, seed=seed).check()


def test_repeated_ids_add_up() -> None:
    case = Case([CHUNK, 9], [(30, 4)], [])
    case.keys.fields[0].at.ids.fill_(3)
    case.check()
    (grad,) = torch.autograd.grad(case.fused().sum(), case.leaves[:1])
    torch.testing.assert_close(grad.sum(0), torch.full((4,), 2.0, device=DEVICE))  # every weight sums to one
    assert not grad[[0, 29]].any()


@pytest.mark.parametrize("layout", ["columns", "rows"])
def test_tables_that_are_not_contiguous(layout: str) -> None:
    case = Case([11, 2], [(30, 4)], [])
    part = case.keys.fields[0]
    whole = torch.randn(4, 30, device=DEVICE) if layout == "columns" else torch.randn(60, 7, device=DEVICE)
    case.leaves[0] = whole.requires_grad_()
    table = whole.t() if layout == "columns" else whole[::2, 1:5]
    case.keys = fused.Side([Part(table, part.at)], [])
    assert not table.is_contiguous()
    case.check()


def test_samples_that_read_the_same_history() -> None:
    case = Case([5, CHUNK + 2], [(30, 4)], [6])
    of = torch.tensor([1, 0, 1, 1], device=DEVICE)
    lengths = case.segments.lengths[of]
    rows = torch.cat([torch.arange(*case.segments.offsets[s : s + 2].tolist()) for s in of.tolist()]).to(DEVICE)
    alone = Segments(torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]))
    query, bias = torch.randn(4, 1, 4, device=DEVICE), torch.randn(1, alone.total, device=DEVICE)

    def apart(part: Part) -> Part:
        return Part(part.table, Occurrences(part.at.ids[rows], part.at.rows, alone))

    copies = fused.Side([apart(part) for part in case.keys.fields], [apart(part) for part in case.keys.added])
    results = []
    for keys, reads in ((case.keys, Reads(case.segments, of)), (copies, alone.reads)):
        out = fused.attend(keys, query, query, reads, bias)
        grads = torch.autograd.grad(out.square().sum(), case.leaves[:2])
        results.append([out, *grads, fused.scores(keys, query, query, reads, bias)])
    for shared, copied in zip(*results, strict=True):
        torch.testing.assert_close(shared, copied, rtol=1e-5, atol=1e-5)


def test_scores_are_the_logits() -> None:
    case = Case([9, 0, CHUNK + 1], [(30, 4), (5, 3)], [20], heads=2)
    found = fused.scores(case.keys, *case.queries, case.segments.reads, case.bias)
    (fields, time), row = _positions(case.keys), case.segments.row
    for head, logits in enumerate(found):
        wanted = (fields * case.queries[0][row, head]).sum(1) + (time * case.queries[1][row, head]).sum(1)
        torch.testing.assert_close(logits, wanted + case.bias[head], rtol=1e-5, atol=1e-5)


def test_in_a_fixed_order_the_gradients_are_the_same() -> None:
    case = Case([CHUNK + 5, 4], [(20, 4), (5, 3)], [7], heads=2, decoupled=True, biased=False)
    loss = case.fused().square().sum()
    plain = torch.autograd.grad(loss, case.leaves, retain_graph=True)
    torch.use_deterministic_algorithms(True)
    try:
        ordered, again = (torch.autograd.grad(loss, case.leaves, retain_graph=True) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    for one, two, three in zip(plain, ordered, again, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)
        assert torch.equal(two, three)


def test_tables_that_do_not_learn() -> None:
    case = Case([9, 4], [(30, 4), (20, 4)], [], heads=2)
    fixed = case.leaves.pop(0).requires_grad_(False)
    case.check()
    assert fixed.grad is None
    torch.use_deterministic_algorithms(True)
    try:
        case.check()
    finally:
        torch.use_deterministic_algorithms(False)


def test_no_samples_and_large_logits() -> None:
    case = Case([], [(30, 4)], [])
    assert case.fused().shape == (0, 1, 4)
    case = Case([4], [(30, 4)], [], biased=False)
    case.queries = [query.detach() * 1e4 for query in case.queries]
    torch.testing.assert_close(case.fused(), case.written_out())


def test_kernels_compile_for_a_gpu_that_is_not_there() -> None:
    """What the interpreter accepts the compiler may refuse."""
    command = [sys.executable, "-m", "tests.kernels.compiling"]
    done = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "0"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    names = {line.split()[0] for line in done.stdout.splitlines()}
    assert names == {"forward", "backward", "join", "spread", "score", "adagrad", "adam", "best"}


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("heads", [1, 4])
def test_real_sizes_on_a_gpu(dtype: torch.dtype, heads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ragged, "CHUNK", 512)
    monkeypatch.setattr(fused, "TILE", 8192)
    monkeypatch.setattr(fused, "FEW", 64)
    lengths = [0, 1, 511, 512, 513, 10_000, *range(100, 400)]
    for decoupled in (False, True):
        Case(lengths, [(5000, 16), (300, 16), (5, 16)], [33, 33], heads, decoupled, dtype=dtype).check()
