"""What a whole series says of each analyte, as features that a network can bend and weigh."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..datasets.batch import Labs
from .lab_grid import Grid

STATISTICS = ("mean", "lowest", "highest", "first", "last", "spread", "slope", "count", "recency")

# Four ramps bend a risk at the median and at the quartiles; ten were no better than four, and more to learn.
_KNOTS = (0.005, 0.25, 0.5, 0.75, 0.995)
# Between the 10th and the 90th percentile of a normal distribution lie 2.563 standard deviations.
_TAILS, _DEVIATIONS = (0.1, 0.9), 2.563
_LIMIT = 6.0
# A feature that hardly varies is not blown up until rounding shows.
_NARROWEST = 0.05
# A slope needs times that differ: the sum of their squared distances from their mean, in square hours.
APART = 0.5


def summary_table(grid: Grid, part: Labs) -> Float[Tensor, "series code statistic"]:
    """Statistics of each analyte over the whole series, in the order of `STATISTICS`.

    Args:
        grid: the series on their time steps.
        part: the measurements that it was made of, patients numbered as its series.

    Returns:
        Values and their spread in robust standard deviations, slope in these a day, the logarithm of
        the count, and how recent the last value is: 1 when just measured, falling with the logarithm
        of its age. NaN where there is nothing to tell: all but the count of an analyte that was never
        measured, and the slope where all measurements are of about one time.
    """
    series, steps, codes = grid.value.shape
    cell = part.patient * codes + part.code
    # In double precision, so that the order of simultaneous measurements means nothing.
    value, hours = part.value.double(), part.hours.double()
    zero = value.new_zeros(series * codes)

    def summed(of: Tensor) -> Tensor:
        return zero.index_add(0, cell, of)

    def distance(of: Tensor, mean: Tensor) -> Tensor:
        # An index in brackets takes five times as long on a CPU.
        return of - mean.index_select(0, cell)

    count = summed(torch.ones_like(value))
    known = count.clamp(min=1)
    mean = summed(value) / known
    lowest = torch.full_like(zero, torch.inf).scatter_reduce(0, cell, value, "amin")
    highest = torch.full_like(zero, -torch.inf).scatter_reduce(0, cell, value, "amax")

    # Spread and slope from distances to the means.
    above, later = distance(value, mean), distance(hours, summed(hours) / known)
    spread = (summed(above.square()) / known).sqrt()
    apart = summed(later.square())
    slope = 24 * summed(above * later) / apart.clamp(min=APART)
    slope = torch.where(apart >= APART, slope, torch.nan)

    # First and last value are means of a time step, where measurements are simultaneous.
    last_step = part.step.new_zeros(series * codes).scatter_reduce(0, cell, part.step, "amax").view(series, codes)
    first_step = torch.full_like(last_step, steps - 1).flatten().scatter_reduce(0, cell, part.step, "amin")
    last = grid.value.gather(1, last_step[:, None]).flatten()
    first = grid.value.gather(1, first_step.view(series, 1, codes)).flatten()
    recency = 1 / (1 + torch.log1p(-grid.hours.gather(1, last_step))).flatten()

    columns = [mean, lowest, highest, first, last, spread, slope, torch.log1p(count), recency]
    table = torch.stack([column.to(grid.value.dtype) for column in columns], -1)
    never = (count == 0)[:, None] & (torch.arange(len(columns), device=table.device) != STATISTICS.index("count"))
    return table.masked_fill(never, torch.nan).view(series, codes, len(columns))


class SummaryFeatures(nn.Module):
    """Each statistic as a number and as ramps between its quantiles; and which analytes were measured.

    A linear layer over ramps is a curve that bends at the quantiles of the training patients, so
    that a risk may rise on both sides of what is normal; wild values reach the last ramp and no
    further. Nothing of this is learned by gradient: it is fitted once, on training patients.

    Args:
        codes: analytes in the vocabulary.

    Source: piecewise linear encoding, Gorishniy et al., On Embeddings for Numerical Features in
    Tabular Deep Learning, NeurIPS 2022, section 3.2. We differ: the outermost ramps end as the
    others do, the number itself stands beside its ramps, and all are standardised.
    """

    def __init__(self, codes: int) -> None:
        super().__init__()
        statistics, ramps = len(STATISTICS), len(_KNOTS) - 1
        self.features = codes * (statistics * (1 + ramps) + 1)
        # Until it is fitted: values in robust standard deviations, and ramps that cover them.
        start = torch.linspace(-2, 2, len(_KNOTS))
        self.register_buffer("knots", start.expand(codes, statistics, -1).clone())
        self.register_buffer("centre", torch.zeros(codes, statistics))
        self.register_buffer("scale", torch.ones(codes, statistics))
        self.register_buffer("mean", torch.zeros(self.features))
        self.register_buffer("std", torch.ones(self.features))

    @torch.no_grad()
    def fit(self, table: Float[Tensor, "sample code statistic"]) -> None:
        """Learn quantiles, scales and what the features' means and deviations are, from training samples."""
        levels = (*_KNOTS, *_TAILS, 0.5)
        # One analyte at a time: sorting makes copies.
        for code in range(table.shape[1]):
            found = _quantiles(table[:, code], levels)
            self.knots[code] = found[: len(_KNOTS)].T
            low, high, self.centre[code] = found[len(_KNOTS) :]
            self.scale[code] = ((high - low) / _DEVIATIONS).clamp(min=_NARROWEST)
        total = squares = 0.0
        for some in table.split(64):
            features = self._features(some).double()
            total, squares = total + features.sum(0), squares + features.square().sum(0)
        mean = total / len(table)
        self.mean.copy_(mean)
        self.std.copy_((squares / len(table) - mean.square()).clamp(min=_NARROWEST**2).sqrt())

    def forward(self, table: Float[Tensor, "series code statistic"]) -> Float[Tensor, "series feature"]:
        return (self._features(table) - self.mean) / self.std

    def _features(self, table: Tensor) -> Tensor:
        known = table.isfinite()
        # The number itself is one more ramp, from its centre and to both sides.
        begin = torch.cat([self.centre[..., None], self.knots[..., :-1]], -1)
        width = torch.cat([self.scale[..., None], self.knots.diff(dim=-1).clamp(min=_NARROWEST)], -1)
        low, high = torch.zeros_like(begin), torch.ones_like(begin)
        low[..., 0], high[..., 0] = -_LIMIT, _LIMIT
        ramps = (table[..., None] - begin).div_(width).clamp_(low, high)
        # What is not known lies on no ramp, and the last column says so.
        ramps.masked_fill_(~known[..., None], 0.0)
        return torch.cat([ramps.flatten(1), known[:, :, 0].to(table.dtype)], 1)


class PlainFeatures(nn.Module):
    """Each statistic as it stands, and which analytes were measured: little to learn by heart from.

    Args:
        codes: analytes in the vocabulary.
    """

    def __init__(self, codes: int) -> None:
        super().__init__()
        self.features = codes * (len(STATISTICS) + 1)

    def forward(self, table: Float[Tensor, "series code statistic"]) -> Float[Tensor, "series feature"]:
        known = table.isfinite()
        numbers = torch.where(known, table, 0.0).clamp(-_LIMIT, _LIMIT)
        return torch.cat([numbers.flatten(1), known[:, :, 0].to(table.dtype)], 1)


def _quantiles(columns: Float[Tensor, "sample statistic"], levels: tuple[float, ...]) -> Tensor:
    """Quantiles of each column's known values, `[level, statistic]`; 0 for a column that has none."""
    known = columns.isfinite()
    ordered = torch.where(known, columns, torch.inf).sort(0).values
    place = torch.tensor(levels)[:, None] * (known.sum(0) - 1).clamp(min=0)
    below = place.floor().long()
    above = place.ceil().long()
    found = torch.lerp(ordered.gather(0, below), ordered.gather(0, above), place - below)
    return torch.where(known.any(0), found, 0.0)
