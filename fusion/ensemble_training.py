"""Several models trained one after the other, in one call."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from inspect import signature
from itertools import cycle, islice, repeat
from pathlib import Path

import numpy as np

from ..datasets.arguments import as_path, require_cohort, require_numbers, require_whole
from ..datasets.cohort import Cohort
from ..datasets.errors import InputError
from ..datasets.outcomes import encode_outcomes
from .boosted_trees import BoostedTrees
from .checkpoint import History
from .ensemble import Ensemble
from .inference import predict
from .model import FusionModel
from .processes import alone_in, is_main_process, wait_for_everyone
from .settings import LARGEST_SEED
from .thresholds import chosen_thresholds
from .training import fit


def fit_ensemble(
    make_model: Callable[[], FusionModel],
    train: Cohort,
    valid: Cohort | float | None = None,
    *,
    members: int = 5,
    boosted: int = 0,
    seed: int = 0,
    training: Mapping[str, object] | None = None,
    out: str | Path | None = None,
    on_start: Callable[[History], None] | None = None,
) -> tuple[Ensemble, list[History]]:
    """Train several models one after the other, each from a seed of its own, and let them predict together.

    Args:
        make_model: makes one model, not yet trained; called once a member.
        train, valid: as `fit` takes them; every member is trained and validated on the same patients. Or, in place
            of `valid`, a share of the training patients, up to 0.5: they are divided into so many parts as come
            nearest to it, and the members hold out one part after the other, so that together they learn from all.
            A threshold is then chosen on what each member alone says of those whom it did not see.
        members: how many.
        boosted: how many of these, the last ones, are gradient boosting on detailed summaries in place of networks,
            for models that read labs or static facts alone and predict binary outcomes. Trees are wrong about other
            patients than networks are, so that together they rank better than as many of either.
        seed: of the first member; the others have those that follow, so that the first one is what
            `fit` makes of the same seed.
        training: further arguments of `fit`, the same for all members.
        out: a folder for `model/`, the ensemble, and `members/`, where each member's training is
            kept; one that was stopped goes on from there when it is called again in the same way.
        on_start: as `fit` takes it; called once.

    Returns:
        The ensemble, and what happened in the training of each network.

    Raises:
        InputError: no members, seeds out of range, another run in the same folder, or what `fit`, `Ensemble` and
            `BoostedTrees` refuse.

    Example:
        >>> ensemble, histories = fit_ensemble(make_model, train, valid, members=5, training={"epochs": 12})
    """
    require_whole("members", members, least=1)
    require_whole("boosted", boosted, least=0, most=members - 1)
    require_whole("seed", seed, least=0, most=LARGEST_SEED + 1 - members)
    if not isinstance(training or {}, Mapping) or set(training or {}) - set(signature(fit).parameters):
        told = ", ".join(map(str, training)) if isinstance(training, Mapping) else type(training).__name__
        raise InputError(f"training= has {told}; expected arguments of fit by name.")
    taken = {"model", "train", "valid", "seed", "out", "on_start"} & set(training or {})
    if taken:
        raise InputError(f"training= gives {min(taken)}, which is an argument of fit_ensemble itself. Give it there.")
    if isinstance(make_model, FusionModel) or not callable(make_model):
        raise InputError(
            f"make_model is a {type(make_model).__name__}; expected a function that makes a model, so that each member "
            "has its own: lambda: FusionModel(...)."
        )
    divisions = list(_divisions(train, valid, members, seed))
    models, histories = [], []
    store = None if out is None else as_path("out", out)
    with alone_in(store):
        for number in range(members - boosted):
            model = make_model()
            if isinstance(model, FusionModel) and model.is_built:
                raise InputError("make_model gave a model that was trained before. Have it make a new one each time.")
            if isinstance(model, FusionModel) and boosted:
                # What trees cannot serve is refused before hours of training.
                BoostedTrees.beside(model)
            folder = store and store / "members" / str(number)
            start = None if number else on_start
            given = {"seed": seed + number, "out": folder, "on_start": start} | dict(training or {})
            histories.append(fit(model, *divisions[number], **given))
            models.append(model)
        trees = [BoostedTrees.beside(models[0]) for _ in range(boosted)]
        for number, member in enumerate(trees, members - boosted):
            # Each process and each start of a run learns them anew: they are the same, and take a minute.
            member.fit(divisions[number][0], seed=seed + number)
        ensemble = Ensemble([*models, *trees])
        if valid is not None:
            ensemble.thresholds_ = _thresholds(ensemble, [held_out for _, held_out in divisions])
        if store:
            _save_once(ensemble, store / "model")
    return ensemble, histories


def _divisions(
    train: Cohort, valid: Cohort | float | None, members: int, seed: int
) -> Iterator[tuple[Cohort, Cohort | None]]:
    """Whom each member is trained on, and whom it is validated on."""
    if valid is None or isinstance(valid, Cohort):
        return repeat((train, valid), members)
    require_cohort(train)
    require_numbers(valid=valid)
    if not 0 < valid <= 0.5:
        raise InputError(f"valid is {valid}; expected a cohort, or a share of the patients, above 0 and up to 0.5.")
    count = round(1 / valid)
    try:
        parts = list(train.folds(count, seed=seed))
    except InputError as error:
        raise InputError(
            f"valid is {valid}: of {train.subjects} patients {count} parts would be made, each with patients of every "
            "class, and they are too few for that. Give a larger share, or a cohort of others."
        ) from error
    return islice(cycle(parts), members)


def _thresholds(ensemble: Ensemble, held_out: Sequence[Cohort]) -> dict[str, float]:
    """By binary outcome, the threshold that maximises F1 of the risks that are not refused.

    Args:
        ensemble: its members' mean is the risk.
        held_out: for each member the patients whom it did not see; of each, the members who did not see them speak.
    """
    columns = ensemble.members[0].heads.columns
    risks, labels = [], []
    for cohort in {id(cohort): cohort for cohort in held_out}.values():
        unseen = [member for member, own in zip(ensemble.members, held_out, strict=True) if own is cohort]
        # A row a sample and column, and blank where it is refused.
        told = ensemble.mean([predict(member, cohort) for member in unseen])["risk"]
        risks.append(told.to_numpy().reshape(-1, len(columns)))
        labels.append(encode_outcomes(cohort.outcomes, ensemble.outcomes))
    outcomes, known = map(np.concatenate, zip(*labels, strict=True))
    return chosen_thresholds(np.concatenate(risks), columns, ensemble.outcomes, outcomes, known)


def _save_once(ensemble: Ensemble, folder: Path) -> None:
    """Write the ensemble, from the main process."""
    if is_main_process():
        ensemble.save(folder)
    wait_for_everyone()
