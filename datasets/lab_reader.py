"""Lab and vital-sign series of a cohort: vocabulary, robust scales, time steps."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from .arguments import require_counts, require_numbers
from .batch import Labs
from .cohort import Cohort
from .errors import InputError
from .lab_units import require_units, stated_units, tell_mixed
from .prepared import Packed
from .recent import select
from .windows import Window, subject_runs

# Between the 10th and the 90th percentile of a normal distribution lie 2.563 standard deviations, and
# between its quartiles 1.349. Of ten values or fewer, one wild one would move the 90th percentile.
_TAILS = ((0.1, 2.563), (0.25, 1.349))
_FEW = 10
# A distribution whose upper tail (median to 95th percentile) is this many times its lower one
# (5th percentile to median) is scaled logarithmically; a log-normal of shape 0.7 has a ratio of 3.2.
_SKEWED = 3.0
# Scaled values are cut here: far outside what separates patients, near enough to do no harm.
_LIMIT = 6.0
# Robust standard deviations from the median, of values and of logarithms, from which a value is a slip rather than a
# patient's: a pH of 735, a temperature of -17.8. Of 1.5 million measurements of PhysioNet 2012, whose impossible ones
# are taken out, 29 and none lie there.
_WILD, _WILD_LOGARITHM = 20.0, 10.0
# Values scaled at once: what is between fits the processor's cache, and no table takes several times its own memory.
_AT_ONCE = 1 << 17
# Codes that a remark names.
_NAMED = 5


class LabReader:
    """Turns measurements into (code, scaled value, time step).

    Scales come from quantiles, which a few wild values (a pH of 735) cannot move, and what lies
    far outside is cut at six robust standard deviations. Values in a unit that is stated, and is another
    than the training patients', are refused: to a model they would be other values.

    Args:
        rare: a code that fewer training patients than this have is left out of the vocabulary.
        resolution: hours that one time step covers; measurements within it are simultaneous.
        steps: time steps a sample at most; the most recent stay.
    """

    def __init__(self, *, rare: int = 5, resolution: float = 1.0, steps: int = 256) -> None:
        require_counts(rare=rare, steps=steps)
        require_numbers(resolution=resolution)
        if rare < 1 or not resolution > 0 or steps < 1:
            raise InputError(
                f"rare is {rare}, resolution {resolution} and steps {steps}; expected at least 1 patient, "
                "more than 0 hours and at least 1 step."
            )
        self.rare, self.resolution, self.steps = rare, resolution, steps
        self.codes_: list[str] = []
        self.units_: dict[str, list[str]] = {}
        self.centre_ = self.spread_ = self.floor_ = np.zeros(0)

    def fit(self, cohort: Cohort) -> None:
        """Learn the vocabulary and one scale a code from what the training samples may see."""
        self.codes_, self.units_ = [], {}
        scales: list[tuple[float, float, float]] = []
        if cohort.labs is not None:
            # Each measurement that some sample sees, once; the sort keeps those of a code by patient.
            rows = np.flatnonzero(cohort.window("labs").seen(len(cohort.labs)))
            units = stated_units(cohort.labs, rows)
            code, names = cohort.labs["code"].cat.codes.to_numpy()[rows], cohort.labs["code"].cat.categories
            rows = rows[np.argsort(code, kind="stable")]
            ends = np.cumsum(np.bincount(code, minlength=len(names))).tolist()
            values = cohort.labs["value"].to_numpy(np.float64)
            for name, start, end in zip(names, [0, *ends], ends, strict=False):
                # Of a million codes, as free text makes them, most stand in a row or two.
                if end - start < self.rare:
                    continue
                own = rows[start:end]
                patients, _ = subject_runs(cohort.labs["subject_id"].iloc[own])
                if len(patients) >= self.rare:
                    self.codes_.append(name)
                    scales.append(robust_scale(values[own]))
            self.units_ = {name: units[name] for name in self.codes_ if name in units}
        self.centre_, self.spread_, self.floor_ = np.array(scales, dtype=np.float64).reshape(-1, 3).T

    def pack(self, cohort: Cohort) -> Packed:
        """Measurements of the vocabulary, scaled; others, and values far outside, are counted in the remarks.

        Raises:
            InputError: a code comes in another unit than the training patients have it in.
        """
        window = cohort.window("labs")
        if cohort.labs is None:
            nothing = {"code": np.zeros(0, np.int64), "value": np.zeros(0, np.float32)}
            return Packed(Labs, window.offsets, window.rows, window.hours, nothing, {"step": np.zeros(0, np.int64)})
        category, names = cohort.labs["code"].cat.codes.to_numpy(np.intp), cohort.labs["code"].cat.categories
        place = pd.Index(self.codes_, dtype="str").get_indexer(names)
        code = place[category]
        remarks = []
        if self.units_:
            seen = np.flatnonzero(window.seen(len(code)) & (code >= 0))
            remarks = [*tell_mixed(self.units_), *require_units(cohort.labs, seen, self.units_)]
        if (place < 0).any():
            known = code[window.rows] >= 0
            strange = names[np.unique(category[window.rows[~known]])]
            if len(strange):
                remarks.append(
                    f"labs: {int((~known).sum())} measurements of {len(strange)} codes outside the vocabulary"
                )
            window = select(window, known)
        step, early = self._time_steps(window)
        if early.any():
            remarks.append(f"labs: {int(early.sum())} measurements before the last {self.steps} time steps")
            window, step = select(window, ~early), step[~early]
        value, wild = self._scaled(cohort.labs["value"].to_numpy(), code)
        wild = wild[window.seen(len(code))[wild]]
        if len(wild):
            own = [self.codes_[place] for place in np.unique(code[wild])]
            more = f" and {len(own) - _NAMED} more codes" if len(own) > _NAMED else ""
            remarks.append(f"labs: {tell_wild(len(wild), ', '.join(own[:_NAMED]) + more)}")
        arrays = {"code": code, "value": value}
        return Packed(Labs, window.offsets, window.rows, window.hours, arrays, {"step": step}, tuple(remarks))

    def scale(self, values: np.ndarray, code: np.ndarray) -> np.ndarray:
        """Values in robust standard deviations from the median, cut at ±6; 0 for unknown codes."""
        return self._scaled(values, code)[0]

    def _scaled(self, values: np.ndarray, code: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What `scale` gives, and the rows of wild values."""
        scaled, wild = np.zeros(len(values), np.float32), [np.zeros(0, np.intp)]
        for start in range(0, len(values) if self.codes_ else 0, _AT_ONCE):
            block = slice(start, start + _AT_ONCE)
            own, kind = values[block].astype(np.float64), code[block]
            floor = self.floor_[kind]
            logarithmic = np.flatnonzero(floor > 0)
            own[logarithmic] = np.log(np.maximum(own[logarithmic], floor[logarithmic]))
            deviations = (own - self.centre_[kind]) / self.spread_[kind]
            deviations[kind < 0] = 0
            scaled[block] = cut(deviations)
            far = np.flatnonzero(np.abs(deviations) > _LIMIT)
            wild.append(start + far[is_wild(deviations[far], floor[far])])
        return scaled, np.concatenate(wild)

    def _time_steps(self, window: Window) -> tuple[np.ndarray, np.ndarray]:
        """The number of each event's time step, and which events lie before the last `steps` of them.

        Steps without a measurement do not exist: a long silence costs nothing.
        """
        bins = window.hours.astype(np.float64)
        bins /= self.resolution
        np.floor(bins, out=bins)
        # Events of a sample ascend in time, so that a new step begins where the bin changes.
        begins = np.ones(len(bins), bool)
        np.not_equal(bins[1:], bins[:-1], out=begins[1:])
        counts = np.diff(window.offsets)
        filled = np.flatnonzero(counts)
        begins[window.offsets[filled]] = True
        number = np.cumsum(begins, dtype=np.int32 if len(bins) < 2**31 else np.int64)
        first, last = number[window.offsets[filled]], number[window.offsets[filled + 1] - 1]
        surplus = np.maximum(last - first + 1 - self.steps, 0)
        number -= np.repeat(first + surplus, counts[filled])
        return number, number < 0

    def state(self) -> dict[str, object]:
        scales = {name: getattr(self, name).tolist() for name in ("centre_", "spread_", "floor_")}
        return {"codes_": self.codes_, "units_": self.units_, **scales}

    def restore(self, state: Mapping[str, object]) -> None:
        self.codes_ = list(state["codes_"])
        # A model that was saved before units were kept takes any.
        self.units_ = {code: list(units) for code, units in state.get("units_", {}).items()}
        self.centre_, self.spread_, self.floor_ = (
            np.array(state[name], dtype=np.float64) for name in ("centre_", "spread_", "floor_")
        )


def cut(deviations: np.ndarray) -> np.ndarray:
    """float32: robust standard deviations, of which six are as far as counts."""
    return np.clip(deviations, -_LIMIT, _LIMIT).astype(np.float32)


def is_wild(deviations: np.ndarray, floor: np.ndarray | float) -> np.ndarray:
    """bool: which values lie so far from the training patients' that they are slips; by the floor of `robust_scale`."""
    return np.abs(deviations) > np.where(np.asarray(floor) > 0, _WILD_LOGARITHM, _WILD)


def tell_wild(count: int, names: str) -> str:
    """A remark on so many such values."""
    return (
        f"{count} values of {names} lie far outside of all that training patients have, as slips do: what is beyond "
        f"{_LIMIT:g} robust standard deviations is cut off. Look them up"
    )


def robust_scale(values: np.ndarray) -> tuple[float, float, float]:
    """Centre, spread and floor of one analyte's values, from quantiles.

    Returns:
        Median; spread, the 10th to 90th percentile in normal standard deviations (the quartiles
        where there are ten values or fewer); and the floor:
        0 where values are used as they are, and otherwise, for a positive analyte with a long upper
        tail, the smallest value that is told apart before the logarithm is taken.
    """
    tail, deviations = _TAILS[len(values) <= _FEW]
    low, lower, middle, upper, high = np.quantile(values, [0.05, tail, 0.5, 1 - tail, 0.95])
    positive = values[values > 0]
    floor = 0.0
    if low >= 0 and middle > 0 and high - middle > _SKEWED * (middle - low):
        floor = float(np.quantile(positive, 0.01))
        lower, middle, upper = np.log(np.maximum([lower, middle, upper], floor))
    spread = (upper - lower) / deviations
    if not spread > 1e-6 * max(abs(middle), 1e-6):
        # Nearly all values are equal: what differs at all is what matters.
        spread = float(np.std(np.clip(values, *np.quantile(values, [0.01, 0.99])))) if not floor else 0.0
    if not spread > 1e-6 * max(abs(middle), 1e-6):
        spread = max(abs(middle), 1.0)
    return float(middle), float(spread), floor
