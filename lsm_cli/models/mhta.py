"""Multi-head target attention: the second stage of SIM, ETA and TWIN."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lsm_cli.kernels.ragged import full
from lsm_cli.models.history import History


class MHTA(nn.Module):
    """u = W_O [o¹, …, o^H],  o^h = Σ_i α^h_i W^h_V ẽ_i,  α^h = softmax_i(⟨W^h_K ẽ_i, W^h_Q ṽ⟩ / √d_H)

    SIM (Pi et al., CIKM'20, arXiv 2006.05639, §3.2) reads so what it found, with the time of each behaviour in ẽ; ETA
    (arXiv 2209.12212, §3.3) and TWIN (KDD'23, arXiv 2302.02352, §4.2) do the same, and TWIN searches by the same
    logits, here by their mean over the heads. What TWIN adds to them for features that only a behaviour has comes from
    the learned constants that stand for such fields in ṽ.

    ⟨W_K ẽ, W_Q ṽ⟩ = ⟨ẽ, W_Kᵀ W_Q ṽ⟩ and Σ_i α_i W_V ẽ_i = W_V Σ_i α_i ẽ_i, so that neither keys nor values are made:
    the heads are those of `History`, each with a query of its own. W_Q, W_K and W_V start alike and orthogonal, W_O
    as their transpose: the mean of the logits is then the inner product of behaviour and candidate, by which a search
    finds its like from the first step on, and u is an average of behaviours that lies where ṽ does. Validation GAUC
    on retail, one seed: .758 so, .742 with W_V and W_O at random; .785 with encodings of time that start at zero, and
    .853 with `train.lr` .005 besides (.01 learns nothing), as the recipes have it.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.out, size = width, -(-width // heads)
        alike = nn.init.orthogonal_(torch.empty(heads * size, width)).view(heads, size, width)
        self.query, self.key, self.value = (nn.Parameter(alike.clone()) for _ in range(3))
        self.mix = nn.Linear(heads * size, width, bias=False)
        self.mix.weight.data = alike.flatten(0, 1).t().clone()

    def asks(self, candidate: Tensor) -> Tensor:
        """What the heads compare behaviours with, [B, width] -> [B, heads, width]; they divide by √width."""
        _, size, width = self.key.shape
        asked = torch.einsum("bw,hsw->bhs", candidate, self.query)
        return full(torch.einsum("bhs,hsw->bhw", asked, self.key) * (width / size) ** 0.5)

    def forward(self, history: History, candidate: Tensor, query: Tensor) -> Tensor:
        found = history.read(self.asks(query)).unflatten(1, (len(self.key), -1))
        return self.mix(torch.einsum("bhw,hsw->bhs", found, self.value).flatten(1))
