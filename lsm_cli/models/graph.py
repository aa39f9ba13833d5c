"""The item graph as side information: what is looked at together, known before anybody has learned it.

An item with few clicks has a poor embedding but many neighbours. Its vector is its row in the leading eigenvectors of
the graph's positive pointwise mutual information,

    M_ij = max(0, log(C_ij C / (C_i C_j))),   C_ij = users who had i and j close together, less one,

which is what skip-gram with negative sampling over the trajectories factorises (Levy & Goldberg, NIPS'14), all
directions weighing the same (Levy, Goldberg & Dagan, TACL'15, §3.3). As M V = V Λ, a walk or a round of averaging over
neighbours would stretch these directions and find no others. On `retail`, with C_ij the pairs of behaviours, the mean
cosine of the candidate to the last 50 behaviours alone ranks with .738 AUC for 64 such directions, .722 for those of
D^-½ C D^-½ (regularised) and .691 where directions weigh by √λ; with users less one, as here, .685 (window 10).

Less one, because a training sample's own behaviours are in the graph, and a model that sees its own traces there trusts
the graph more than it can be trusted later: of the users of a pair, each finds as many others (this is where absolute
discounting comes from, Ney, Essen & Kneser, PAMI 1995).

What it is worth depends on how long items live. On `retail`, where all items of the test are known, `stacked_tin` gains
.013 AUC and GAUC (one epoch, 50 behaviours, one seed). On `kuairand`, where 64 % of the test samples show new items, it
loses .006 AUC and .015 GAUC (click, 3 seeds): in training an item without a vector is one that hardly anybody will meet
(40 % clicked, against 71 %), later it is only new. Hiding half of the vectors in training does not mend that, and costs
`retail` most of its gain.
"""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import Tensor, nn

from lsm_cli.data.graph import Graph
from lsm_cli.data.store import Field
from lsm_cli.errors import InputError

GRAPH = "graph"
ROUNDS, SPARE = 10, 8
FAINT = 0.1  # of the root mean square length: shorter rows are mostly noise and stay short


def item_vectors(graph: Graph, dim: int, seed: int) -> Tensor:
    """float32 [rows, dim], rows of length 1 (or less); zero for items without neighbours.

    Randomised subspace iteration (Halko, Martinsson & Tropp, SIAM Review 2011, alg. 4.4), a function of the seed.
    """
    rows = len(graph.offsets) - 1
    item = np.repeat(np.arange(rows), np.diff(graph.offsets))
    others = graph.count - 1
    mass = np.bincount(item, others, rows)
    weight = np.log(others * mass.sum() / (mass[item] * mass[graph.neighbour])).clip(min=0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse")
        matrix = torch.sparse_csr_tensor(
            torch.from_numpy(graph.offsets),
            torch.from_numpy(graph.neighbour.astype(np.int64)),
            torch.from_numpy(weight.astype(np.float32)),
            (rows, rows),
            check_invariants=False,
        )
    basis = torch.randn(rows, min(rows, dim + SPARE), generator=torch.Generator().manual_seed(seed))
    for _ in range(ROUNDS):
        basis = torch.linalg.qr(matrix @ basis)[0]
    strength, turn = torch.linalg.eigh(basis.t() @ (matrix @ basis))
    order = strength.argsort(descending=True)[:dim]
    found = torch.zeros(rows, dim)
    found[:, : len(order)] = (basis @ turn[:, order]) * (strength[order] > 1e-6)
    found[torch.from_numpy(np.diff(graph.offsets) == 0)] = 0
    faint = FAINT * found.square().sum(1).mean().sqrt()
    return found / found.norm(dim=1, keepdim=True).clamp(min=max(float(faint), 1e-12))


def with_graph(fields: list[Field], dim: int) -> list[Field]:
    """Fields of the behaviours, and the item graph as the last of them where a recipe wants it (dim > 0).

    Raises:
        InputError: there are no items to draw it from, or a field of that name.
    """
    if not dim:
        return fields
    names = {field.name: field for field in fields}
    if "item" not in names:
        raise InputError("model.graph_dim: the item graph needs the field `item`; add it to data.fields")
    if GRAPH in names:
        raise InputError(f"model.graph_dim: the data have a field {GRAPH!r} of their own; rename it in the description")
    return [*fields, Field(GRAPH, names["item"].rows, True, True)]


class ItemVectors(nn.Module):
    """The frozen vectors, a row per row of the item table; they are kept with the weights. Zero until they are given:
    padding, missing, and items that nobody trained on stay so."""

    vectors: Tensor

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.register_buffer("vectors", torch.zeros(rows, width))

    @torch.no_grad()
    def fill(self, vectors: Tensor) -> None:
        """Take vectors [rows, width]."""
        self.vectors.copy_(vectors)

    def forward(self, index: Tensor) -> Tensor:
        return self.vectors.index_select(0, index)


class GraphField(nn.Module):
    """The graph as a field of one space: a learned projection of the frozen vectors to the width of a field.

    It starts so that the products of two fields are as large as those of fresh embeddings. In training vectors are
    hidden at random: items of the training period that have none are those that hardly anybody met, which the graph
    knows from their future (on `kuairand` 40 % of them are clicked, 71 % of the others), while later most of the items
    without one are new. A model that has not seen good items without a vector thinks little of new ones.

    Args:
        hidden: share of the vectors that are hidden wherever they are used, in training.
    """

    def __init__(self, items: ItemVectors, dim: int, std: float, hidden: float) -> None:
        super().__init__()
        self.hidden = hidden
        self.items = (items,)  # shared by the spaces of a model, which owns it
        self.project = nn.Parameter(torch.randn(items.vectors.shape[1], dim) * std)

    def forward(self, index: Tensor) -> Tensor:
        """Rows of the item table, int64 [U] -> float32 [U, dim], whatever the dense layers compute in."""
        vectors = self.items[0](index)
        if self.training and torch.is_grad_enabled():  # not where a search only looks
            vectors = vectors * (torch.rand(len(index), 1, device=vectors.device) >= self.hidden)
        return (vectors @ self.project).float()
