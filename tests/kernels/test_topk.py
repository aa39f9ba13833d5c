"""The k best of each sample by the kernel, against sorting: ties, edges of blocks, and what may never be found."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lsm_cli.kernels import ragged, topk
from lsm_cli.kernels.ragged import Segments

pytest.importorskip("triton", reason="the kernel needs the package triton (extra `triton`)")

BLOCK = 8
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True, scope="module")
def by_the_kernel() -> object:
    patch = pytest.MonkeyPatch()
    patch.setattr(topk, "BLOCK", BLOCK)
    ragged.prefer("triton")
    yield
    ragged.prefer("auto")
    patch.undo()


def both(value: torch.Tensor, lengths: list[int], k: int) -> None:
    segments = Segments(torch.tensor([0, *np.cumsum(lengths)], device=DEVICE))
    value = value.to(DEVICE)
    assert torch.equal(topk.best(value, segments, k), topk.by_sorting(value, segments, k))


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.sampled_from([0, 1, 3, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 2]), max_size=4),
    seed=st.integers(0, 1 << 30),
    k=st.integers(0, 3 * BLOCK),
    values=st.sampled_from([1, 3, 1000]),
    never=st.sampled_from([0.0, 0.3, 1.0]),
)
def test_equals_sorting(lengths: list[int], seed: int, k: int, values: int, never: float) -> None:
    rng = np.random.default_rng(seed)
    total = sum(lengths)
    value = (rng.integers(-values, values + 1, total) / 7).astype(np.float32)
    value[rng.random(total) < never] = -np.inf
    both(torch.from_numpy(value), lengths, k)


def test_scores_of_any_size_are_in_their_order() -> None:
    tiny = float(np.finfo(np.float32).smallest_subnormal)
    value = [0.0, -0.0, tiny, -tiny, 3e38, -3e38, 1.0, 1.0 + 1e-7, -1.0, -1.0 - 1e-7, torch.inf, -torch.inf]
    for k in range(1, len(value) + 1):
        both(torch.tensor(value), [len(value)], k)


@pytest.mark.gpu
def test_real_sizes_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topk, "BLOCK", 1024)
    lengths = [0, 1, 1023, 1024, 1025, 10_000, 100_000, *range(0, 4000, 50)]
    for k in (1, 50, 1000):
        both(torch.randn(sum(lengths)), lengths, k)
        both(torch.randint(0, 9, (sum(lengths),)).float(), lengths, k)
