"""The models that a comparison holds against each other: what they are, and how all of them are trained."""

from __future__ import annotations

import inspect
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ..datasets.errors import InputError
from .recipe import Recipe

if TYPE_CHECKING:
    from ..datasets import Cohort
    from ..fusion import FusionModel
    from ..fusion.state import Fusion

FUSED, ALONE = "fused", " alone"
"""What the recipe's own model is called, and how the names of others end that read one thing only."""
# Each process holds the cohort and a model of its own.
_MOST_JOBS = 4
Entry = tuple[str, "FusionModel | None"]
"""A model by its name; None for a baseline."""
Parts = tuple["Cohort", "Cohort | None", "Cohort"]
"""Training, validation (if there are any) and held-out patients."""


def variants(
    recipe: Recipe, train: Cohort, *, pairs: bool, heads: Sequence[str] | None = None
) -> dict[str, FusionModel]:
    """The recipe's model, its modalities alone (and in pairs), and with other fusion heads.

    Args:
        recipe: the recipe.
        train: training patients.
        pairs: whether to build pairs of modalities too.
        heads: fusion heads to build besides the recipe's own, by name; every one unless given.

    Returns:
        Models that are not trained yet, by name; the recipe's own is "fused".

    Raises:
        InputError: no head has such a name.
    """
    from ..fusion.model import FUSIONS

    chosen_heads = known_heads(heads)
    whole = recipe.model(train)
    names = whole.modalities
    models = {FUSED: whole}
    sizes = [1] if len(names) > 1 else []
    sizes += [2] if pairs and len(names) > 2 else []
    for size in sizes:
        for chosen in combinations(names, size):
            models[" + ".join(chosen) + (ALONE if size == 1 else "")] = restricted(recipe.model(train), chosen)
    for name in chosen_heads if len(names) > 1 else ():
        if type(whole.fusion) is not FUSIONS[name]:
            models[name] = restricted(recipe.model(train), names, fusion=_like(FUSIONS[name], whole.fusion))
    return models


def known_heads(names: Sequence[str] | None) -> list[str]:
    """Names of fusion heads in the order of comparisons; all of them for None.

    Raises:
        InputError: no head has such a name.
    """
    from ..fusion.model import FUSIONS

    unknown = sorted(set(names or ()) - set(FUSIONS))
    if unknown:
        raise InputError(f"There is no fusion head {unknown[0]!r}; there are {', '.join(FUSIONS)}.")
    return [name for name in FUSIONS if names is None or name in names]


def _like(head: type[Fusion], own: Fusion) -> Fusion:
    """Another head with what it has in common with the recipe's own, so that heads are compared and not sizes."""
    known = inspect.signature(head).parameters
    shared = {name: value for name, value in own.describe().items() if name in known}
    if "heads" in known and "heads" not in shared:
        # The recipe's head has a width, and need not have one that the usual number divides.
        shared["heads"] = math.gcd(own.width, known["heads"].default)
    return head(**shared)


def restricted(model: FusionModel, modalities: Sequence[str], *, fusion: Fusion | None = None) -> FusionModel:
    """An untrained model with only some of its encoders, or with another fusion head.

    Raises:
        InputError: a modality that the model does not read.
    """
    from ..fusion import FusionModel

    unknown = sorted(set(modalities) - set(model.modalities))
    if unknown:
        raise InputError(f"The model does not read {unknown[0]!r}; it reads {', '.join(model.modalities)}.")
    return FusionModel(
        **{name: model.encoders[name] for name in modalities},
        fusion=fusion or model.fusion,
        outcomes=model.outcomes,
        modality_dropout=model.modality_dropout if len(modalities) > 1 else 0.0,
        auxiliary=model.auxiliary,
        label_smoothing=model.label_smoothing,
    )


def unrefused_risks(model: FusionModel, cohort: Cohort) -> pd.DataFrame:
    """Risks for all samples, also where `predict` would refuse one because nothing is known."""
    from ..fusion import predict
    from ..fusion.inference import NOTHING_KNOWN, infer

    risks = predict(model, cohort)
    unknown = (risks["status"] == NOTHING_KNOWN).to_numpy()
    if unknown.any():
        values = infer(model, model.read(cohort)).ravel()
        unknown = unknown & np.isfinite(values)
        risks.loc[unknown, "risk"], risks.loc[unknown, "status"] = values[unknown], "ok"
    return risks


def usual_jobs() -> int:
    """How many small models to train at a time on this machine, if nobody says."""
    import torch

    from ..fusion.processes import launched_processes

    if torch.accelerator.is_available() or launched_processes() > 1:
        return 1
    return min(os.cpu_count() or 1, _MOST_JOBS)


@dataclass(frozen=True)
class Trained:
    """What came of one model of a comparison."""

    name: str
    risks: pd.DataFrame
    """Of the held-out patients."""
    seconds: float
    model: FusionModel | None = None
    """The trained model, where it is the recipe's own."""
    without: dict[str, pd.DataFrame] = field(default_factory=dict)
    """Of the recipe's own and of each modality alone: the risks without a modality, by modality."""


Work = Callable[[list[Entry]], list[Trained]]


def train_all(
    recipe: Recipe, parts: Parts, models: dict[str, FusionModel], outcome: str, *, jobs: int = 1
) -> Iterator[Trained]:
    """Train every model, and the baselines, on the same patients, and predict for the same held-out ones.

    Several models at a time, each by a process with its share of the processors, are quicker than one after
    the other by all of them: a small network has too little to share out.

    Args:
        recipe: gives the arguments of `fit`.
        parts: the patients.
        models: untrained, by name; in place of the recipe's own comes the trained one.
        outcome: what the baselines predict.
        jobs: models that are trained at a time.

    Yields:
        What came of each as soon as it is there: with several jobs, in any order.
    """
    from ..fusion.baselines import BASELINES

    train = parts[0]
    plain = BASELINES if train.labs is not None or train.static is not None else ()
    plan = [*models.items(), *((name, None) for name in plain)]
    work = partial(_train_some, parts, recipe.training(kept=False) | {"progress": jobs == 1}, outcome)
    with closing(_by_several(work, plan, jobs) if jobs > 1 else _in_turn(work, plan)) as results:
        for trained in results:
            if trained.model is not None:
                models[trained.name] = trained.model
            yield trained


def _in_turn(work: Work, plan: list[Entry]) -> Iterator[Trained]:
    for entry in plan:
        yield from work([entry])


def _by_several(work: Work, plan: list[Entry], jobs: int) -> Iterator[Trained]:
    from joblib import parallel_config

    from ..datasets.parallel import in_parallel

    # What reads most takes longest, and begins first.
    plan = sorted(plan, key=lambda entry: len(entry[1].modalities) if entry[1] else 0, reverse=True)
    threads = max(1, (os.cpu_count() or 1) // jobs)
    with warnings.catch_warnings(), parallel_config("loky", n_jobs=jobs, inner_max_num_threads=threads):
        # A worker that has grown by a model and its data is renewed, as it should be.
        warnings.filterwarnings("ignore", message="A worker stopped", category=UserWarning)
        for results in in_parallel(work, plan, "training models", chunk=1):
            yield from results


def _train_some(parts: Parts, training: Mapping[str, object], outcome: str, plan: list[Entry]) -> list[Trained]:
    """Train models of a plan, or fit baselines, one after the other; a worker's part of the work."""
    from ..fusion import fit
    from ..fusion.baselines import baseline_risks
    from ..fusion.missingness import risks_without

    train, valid, test = parts
    done = []
    for name, model in plan:
        began = time.perf_counter()
        without = {}
        if model is None:
            risks = baseline_risks(name, train, test, outcome, valid=valid)
        else:
            history = fit(model, train, valid, **training)
            risks = unrefused_risks(model, test)
            told = [f"in training, {remark}" for remark in history.remarks]
            risks.attrs["remarks"] = [*told, *risks.attrs["remarks"]]
            if name == FUSED or len(model.modalities) == 1:
                without = risks_without(model, test)
        own = model if name == FUSED else None
        done.append(Trained(name, risks, time.perf_counter() - began, own, without))
    return done
