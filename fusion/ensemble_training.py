"""Several models trained one after the other, in one call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from inspect import signature
from pathlib import Path

from ..datasets.arguments import as_path, require_whole
from ..datasets.cohort import Cohort
from ..datasets.errors import InputError
from ..datasets.outcomes import encode_outcomes
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
    valid: Cohort | None = None,
    *,
    members: int = 5,
    seed: int = 0,
    training: Mapping[str, object] | None = None,
    out: str | Path | None = None,
    on_start: Callable[[History], None] | None = None,
) -> tuple[Ensemble, list[History]]:
    """Train several models that differ in their seed alone, and let them predict together.

    Args:
        make_model: makes one model, not yet trained; called once a member.
        train, valid: as `fit` takes them; every member is trained and validated on the same patients.
        members: how many.
        seed: of the first member; the others have those that follow, so that the first one is what
            `fit` makes of the same seed.
        training: further arguments of `fit`, the same for all members.
        out: a folder for `model/`, the ensemble, and `members/`, where each member's training is
            kept; one that was stopped goes on from there when it is called again in the same way.
        on_start: as `fit` takes it; called once.

    Returns:
        The ensemble, and what happened in the training of each member.

    Raises:
        InputError: no members, seeds out of range, another run in the same folder, or what `fit` and `Ensemble`
            refuse.

    Example:
        >>> ensemble, histories = fit_ensemble(make_model, train, valid, members=5, training={"epochs": 12})
    """
    require_whole("members", members, least=1)
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
    models, histories = [], []
    store = None if out is None else as_path("out", out)
    with alone_in(store):
        for number in range(members):
            model = make_model()
            if isinstance(model, FusionModel) and model.is_built:
                raise InputError("make_model gave a model that was trained before. Have it make a new one each time.")
            folder = store and store / "members" / str(number)
            start = None if number else on_start
            given = {"seed": seed + number, "out": folder, "on_start": start} | dict(training or {})
            histories.append(fit(model, train, valid, **given))
            models.append(model)
        ensemble = Ensemble(models)
        if valid is not None:
            ensemble.thresholds_ = _thresholds(ensemble, valid)
        if store:
            _save_once(ensemble, store / "model")
    return ensemble, histories


def _thresholds(ensemble: Ensemble, valid: Cohort) -> dict[str, float]:
    """By binary outcome, the threshold that maximises F1 of the mean risk, where that is not refused."""
    columns = ensemble.members[0].heads.columns
    # A row a sample and column, and blank where it is refused.
    risks = predict(ensemble, valid)["risk"].to_numpy().reshape(-1, len(columns))
    return chosen_thresholds(risks, columns, ensemble.outcomes, *encode_outcomes(valid.outcomes, ensemble.outcomes))


def _save_once(ensemble: Ensemble, folder: Path) -> None:
    """Write the ensemble, from the main process."""
    if is_main_process():
        ensemble.save(folder)
    wait_for_everyone()
