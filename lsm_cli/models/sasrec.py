"""The encoder of SASRec (Kang & McAuley, ICDM'18, arXiv 1808.09781), read out by tokens behind the sequence."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lsm_cli.kernels.padded import head_size


class Encoder(nn.Module):
    """Causal self-attention over the behaviours, oldest first; nothing sees what comes after it.

    x ← x + Dropout(W_o Attention(LN(x)));  x ← x + Dropout(FFN(LN(x))),  FFN(s) = ReLU(s W₁ + b₁) W₂ + b₂ (§3.2–3.4),
    layer upon layer, then a last LN. The paper reads the state of the last behaviour; here each token stands behind
    the last behaviour, sees all of them and itself, but no other token, and its state is read. An empty history leaves
    what the token says by itself.

    Padding comes last, so that causality alone hides it from behaviours: the fused kernel runs without a mask and
    [length, length] is never written. In the last layer only tokens ask.
    """

    def __init__(self, width: int, layers: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(width, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, states: Tensor, tokens: Tensor, real: Tensor, whole: bool = False) -> tuple[Tensor, Tensor]:
        """States of the behaviours [b, length, width] and of the tokens [b, tokens, width].

        Args:
            states: [b, length, width], behaviours and then padding.
            tokens: [b, tokens, width].
            real: bool [b, length].
            whole: behaviours pass the last layer as well; otherwise their states are those before it.
        """
        one = torch.eye(tokens.shape[1], dtype=torch.bool, device=real.device).expand(len(real), -1, -1)
        seen = torch.cat([real.unsqueeze(1).expand(-1, tokens.shape[1], -1), one], 2)
        for number, layer in enumerate(self.layers, start=1):
            states, tokens = layer(states, tokens, seen, number == len(self.layers) and not whole)
        return self.norm(states) if whole else states, self.norm(tokens)


class Layer(nn.Module):
    """One layer for behaviours and tokens alike."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, size = heads, head_size(width, heads)
        self.project = nn.Linear(width, 3 * heads * size, bias=False)
        self.mix = nn.Linear(heads * size, width, bias=False)
        self.network = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, width)
        )
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, states: Tensor, tokens: Tensor, seen: Tensor, last: bool) -> tuple[Tensor, Tensor]:
        """
        Args:
            seen: bool [b, tokens, length + tokens], what each token may attend to.
            last: nobody asks for the behaviours' states after this layer; they stay as they are.
        """
        query, key, value = self._project(states)
        asked, own_key, own_value = self._project(tokens)
        keys, values = torch.cat([key, own_key], 2), torch.cat([value, own_value], 2)
        found = F.scaled_dot_product_attention(asked, keys, values, seen.unsqueeze(1))
        tokens = self._step(tokens, found)
        if last or not states.shape[1]:
            return states, tokens
        return self._step(states, F.scaled_dot_product_attention(query, key, value, is_causal=True)), tokens

    def _project(self, states: Tensor) -> Tensor:
        """Queries, keys and values: [3, b, heads, n, size]."""
        return self.project(self.norm(states)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)

    def _step(self, states: Tensor, found: Tensor) -> Tensor:
        states = states + self.dropout(self.mix(found.transpose(1, 2).flatten(2)))
        return states + self.dropout(self.network(states))
