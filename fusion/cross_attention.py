"""Queries that read the tokens of all modalities by cross-attention."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from ..datasets.arguments import require_counts, require_numbers
from ..datasets.errors import InputError
from ..encoders.dropout import Dropout
from ..encoders.tokens import Tokens
from .state import FusedState, refuse_other_sizes
from .token_entry import TokenEntry


class CrossAttentionFusion(nn.Module):
    """One query an outcome, and a few latent ones, read all tokens, block after block.

    Args:
        width: of the queries and of the joint token sequence.
        depth: blocks; each reads the tokens once.
        heads: attention heads; they divide the width.
        latents: queries besides the outcomes', which carry what outcomes share.
        dropout: probability that a hidden unit of a block is dropped in training.
        gist_dropout: the same for a modality's gist, of which less can be spared: what is dropped there is
            evidence, and the more of it the less the model trusts any.

    Raises:
        InputError: sizes that do not agree.

    Source: latent queries that cross-attend to a long input follow Perceiver IO (Jaegle et al.,
    ICLR 2022). We differ: a query stands for an outcome, the blocks are pre-norm with
    cross-attention, self-attention and a perceptron each, and absence is a learned token. What two
    modalities say together enters as products, as in factorization machines (Rendle, ICDM 2010,
    equations 1 and 5): few patients are enough to learn a product, and many are needed to learn it
    from attention and perceptrons alone.
    """

    def __init__(
        self,
        width: int = 256,
        *,
        depth: int = 2,
        heads: int = 8,
        latents: int = 4,
        dropout: float = 0.1,
        gist_dropout: float = 0.1,
    ) -> None:
        super().__init__()
        require_counts(width=width, heads=heads, depth=depth, latents=latents)
        require_numbers(dropout=dropout, gist_dropout=gist_dropout)
        if width < 1 or heads < 1 or width % heads:
            raise InputError(f"width is {width} and heads {heads}; expected heads that divide the width.")
        if depth < 1 or latents < 0 or not 0 <= dropout < 1 or not 0 <= gist_dropout < 1:
            raise InputError(
                f"depth is {depth}, latents {latents}, dropout {dropout} and gist_dropout {gist_dropout}; expected at "
                "least 1, at least 0, and 0 to below 1."
            )
        self.width, self.depth, self.heads = width, depth, heads
        self.latents, self.dropout, self.gist_dropout = latents, dropout, gist_dropout
        self.widths: dict[str, int] = {}
        self.outcomes = 0

    def build(self, widths: Mapping[str, int], outcomes: int) -> None:
        refuse_other_sizes(self, widths, outcomes)
        self.widths, self.outcomes = dict(widths), outcomes
        self.entry = TokenEntry(widths, self.width)
        self.queries = nn.Parameter(0.02 * torch.randn(outcomes + self.latents, self.width))
        self.gist = nn.ModuleDict({name: nn.Linear(self.width, self.width) for name in widths})
        self.factor = nn.ModuleDict({name: nn.Linear(self.width, self.width, bias=False) for name in widths})
        self.pairs = nn.Linear(self.width, self.width)
        self.drop = Dropout(self.gist_dropout)
        self.token_norm = nn.LayerNorm(self.width)
        self.blocks = nn.ModuleList([_Block(self.width, self.heads, self.dropout) for _ in range(self.depth)])

    def describe(self) -> dict[str, object]:
        names = ("width", "depth", "heads", "latents", "dropout", "gist_dropout")
        return {name: getattr(self, name) for name in names}

    def forward(self, tokens: Mapping[str, Tokens], *, attention: bool = False) -> FusedState:
        # All modalities side by side; their order means nothing to attention.
        entered = self.entry(tokens)
        sequence = self.token_norm(torch.cat([part.values for part in entered.values()], 1))
        mask = torch.cat([part.mask for part in entered.values()], 1)

        # Each query starts from the gist of every modality and of every pair, and then reads the rest.
        gists = {name: self.drop(part.values[:, 0]) for name, part in entered.items()}
        single = torch.stack([self.gist[name](gist) for name, gist in gists.items()]).sum(0)
        factors = torch.stack([self.factor[name](gist) for name, gist in gists.items()])
        # The sum of the products of all pairs, from the square of the sum.
        together = (factors.sum(0).square() - factors.square().sum(0)) / 2
        state = self.queries + (single + self.pairs(together))[:, None]
        weights = []
        for block in self.blocks:
            if attention:
                weights.append(block.read.weights(block.read_norm(state), sequence, mask))
            state = block(state, sequence, mask)

        fused = state[:, : self.outcomes]
        if not attention:
            return FusedState(fused)
        looked = torch.stack(weights).mean(0)[:, : self.outcomes]
        lengths = [part.mask.shape[1] for part in entered.values()]
        return FusedState(fused, dict(zip(entered, looked.split(lengths, -1), strict=True)))


class _Block(nn.Module):
    """Cross-attention to the tokens, self-attention among the queries, a perceptron; all pre-norm."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.read_norm, self.read = nn.LayerNorm(width), _Attention(width, heads)
        self.talk_norm, self.talk = nn.LayerNorm(width), _Attention(width, heads)
        self.think = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, 4 * width),
            nn.GELU(),
            Dropout(dropout),
            nn.Linear(4 * width, width),
        )
        self.drop = Dropout(dropout)

    def forward(self, state: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        state = state + self.drop(self.read(self.read_norm(state), tokens, mask))
        peers = self.talk_norm(state)
        state = state + self.drop(self.talk(peers, peers, None))
        return state + self.drop(self.think(state))


class _Attention(nn.Module):
    """Multi-head attention from queries to tokens; masked tokens have no weight at all."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.ask = nn.Linear(width, width)
        self.tell = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def _projected(self, queries: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        k, v = self.tell(tokens).chunk(2, -1)
        return tuple(x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (self.ask(queries), k, v))

    def forward(
        self,
        queries: Float[Tensor, "batch query width"],
        tokens: Float[Tensor, "batch token width"],
        mask: Bool[Tensor, "batch token"] | None,
    ) -> Float[Tensor, "batch query width"]:
        q, k, v = self._projected(queries, tokens)
        allowed = None if mask is None else mask[:, None, None, :]
        read = _attended(q, k, v, allowed)
        return self.out(read.transpose(1, 2).flatten(-2))

    def weights(self, queries: Tensor, tokens: Tensor, mask: Tensor) -> Float[Tensor, "batch query token"]:
        """The attention weights, mean over heads; each query's sum to 1."""
        q, k, _ = self._projected(queries, tokens)
        scores = (q @ k.transpose(-1, -2)).float() * q.shape[-1] ** -0.5
        return scores.masked_fill(~mask[:, None, None, :], -torch.inf).softmax(-1).mean(1)


def _attended(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None) -> Tensor:
    """What queries read; on a CPU in fp32, as the gradient for a few queries takes it four times as long in bf16."""
    if q.device.type != "cpu":
        return functional.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
    with torch.autocast("cpu", enabled=False):
        return functional.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=allowed)
