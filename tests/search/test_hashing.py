"""Hashed search against what the papers say, position by position."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lsm_cli.kernels.ragged import Occurrences, Segments
from lsm_cli.search import hashing, soft

SIZES = {"hashes": st.integers(1, 20), "hash_bits": st.integers(1, 16), "seed": st.integers(0, 1 << 30)}


def world(seed: int, samples: int = 4) -> tuple[hashing.Keys, torch.Tensor, torch.Tensor, Segments]:
    """Keys of two fields, the same written out [N, width], queries [B, width], whose behaviours they are."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, 30, samples)
    segments = Segments(torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)])))
    keys = []
    for rows, width in ((15, 3), (4, 5)):
        table = torch.from_numpy(rng.standard_normal((rows, width)).astype(np.float32))
        keys.append((table, Occurrences(torch.from_numpy(rng.integers(0, rows, segments.total)), rows, segments)))
    written = torch.cat([table[at.ids] for table, at in keys], 1)
    return keys, written, torch.from_numpy(rng.standard_normal((samples, 8)).astype(np.float32)), segments


def literal(vector: torch.Tensor, hashes: int, hash_bits: int) -> list[tuple[bool, ...]]:
    """The signature in every hash group: on which side of its planes a vector lies."""
    planes = hashing.planes(len(vector), hashes * hash_bits, torch.device("cpu"))
    bits = [float(vector.double() @ plane.double()) > 0 for plane in planes.t()]
    return [tuple(bits[start : start + hash_bits]) for start in range(0, len(bits), hash_bits)]


def found(score: torch.Tensor, segments: Segments, k: int) -> list[int]:
    return soft.top_k(score, segments, k)[1].tolist()


@settings(max_examples=60, deadline=None)
@given(**SIZES, k=st.integers(1, 12))
def test_eta_is_the_brute_force_hamming_top_k(hashes: int, hash_bits: int, seed: int, k: int) -> None:
    keys, written, query, segments = world(seed)
    ours, wanted = hashing.codes(keys, query, hashes, hash_bits)
    score = hashing.eta(ours, wanted.index_select(0, segments.row))
    expected = []
    for b, (start, stop) in enumerate(zip(segments.offsets[:-1].tolist(), segments.offsets[1:].tolist(), strict=True)):
        candidate = sum(literal(query[b], hashes, hash_bits), ())
        distance = {}
        for i in range(start, stop):
            behaviour = sum(literal(written[i], hashes, hash_bits), ())
            distance[i] = sum(x != y for x, y in zip(behaviour, candidate, strict=True))
            assert score[i] == -distance[i]
        expected += sorted(sorted(distance, key=lambda i: (distance[i], -i))[:k])
    assert found(score, segments, k) == expected


@settings(max_examples=60, deadline=None)
@given(**SIZES)
def test_sdim_counts_the_hash_groups_that_collide(hashes: int, hash_bits: int, seed: int) -> None:
    keys, written, query, segments = world(seed)
    ours, wanted = hashing.codes(keys, query, hashes, hash_bits)
    score = hashing.sdim(ours, wanted.index_select(0, segments.row), hashes, hash_bits)
    for i, b in enumerate(segments.row.tolist()):
        mine, other = literal(written[i], hashes, hash_bits), literal(query[b], hashes, hash_bits)
        collisions = sum(x == y for x, y in zip(mine, other, strict=True))
        assert score[i] == (collisions or -np.inf)
    assert len(found(score, segments, 1000)) == int((score > 0).sum())


@settings(max_examples=60, deadline=None)
@given(**SIZES)
def test_packed_words_compare_as_single_bits_do(hashes: int, hash_bits: int, seed: int) -> None:
    keys, _, query, _ = world(seed)
    words = hashing.codes(keys, query, hashes, hash_bits, packed=True)
    bits = hashing.codes(keys, query, hashes, hash_bits, packed=False)
    assert words[0].dtype == torch.int64 and bits[0].shape == (len(words[0]), hashes, hash_bits)
    for measure, sizes in ((hashing.eta, ()), (hashing.sdim, (hashes, hash_bits))):
        packed = measure(words[0][None], words[1][:, None], *sizes)  # every behaviour with every candidate
        single = measure(bits[0][None], bits[1][:, None], *sizes)
        assert packed.shape == (len(query), len(words[0])) and torch.equal(packed, single)


def test_a_vector_and_its_opposite_are_farthest_apart() -> None:
    table = torch.randn(1, 8, generator=torch.Generator().manual_seed(0))
    segments = Segments(torch.tensor([0, 1, 2, 3]))
    at = Occurrences(torch.zeros(3, dtype=torch.int64), 1, segments)
    query = torch.cat([table, -table, 7 * table])
    ours, wanted = hashing.codes([(table, at)], query, 6, 4)
    assert hashing.eta(ours, wanted).tolist() == [0, -24, 0]
    assert hashing.sdim(ours, wanted, 6, 4).tolist() == [6, -np.inf, 6]


def test_many_behaviours_hash_as_few_do(monkeypatch: pytest.MonkeyPatch) -> None:
    keys, _, query, _ = world(3)
    whole = hashing.codes(keys, query, 5, 7)
    monkeypatch.setattr(hashing, "CHUNK", 3)
    assert torch.equal(hashing.codes(keys, query, 5, 7)[0], whole[0])
