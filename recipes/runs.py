"""A run: a recipe trained on some data, in a folder that tells everything about it."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import secrets
import shutil
import subprocess
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from ..datasets.errors import InputError
from ..datasets.files import find_table, read_cohort
from ..datasets.tables import EVENT_TABLES
from .recipe import BUILT_IN, Recipe, changed_settings, load_recipe

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ..datasets import Cohort
    from ..fusion import Ensemble, FusionModel, History

_RUN = "run.json"
_BEGUN = ("model", "checkpoints", "members")
"""What a run has from its first checkpoint on."""
_OF_A_RUN = {"history.jsonl", "skipped.jsonl", "trackers", "folds", "evaluation.json", "report.html", *_BEGUN}
"""What may stand in a run beside its description."""
_TOLD = {"schema": int, "recipe": str, "settings": dict, "salt": str, "trained_on": list}
_TOLD_VERSIONS = ("chiasm", "torch", "timm", "transformers", "accelerate", "pandas", "scikit-learn", "pydicom")


@dataclass(frozen=True)
class Run:
    """A recipe and the folder that it is trained into.

    The folder holds `run.json` (recipe, settings, versions, attrition), `history.jsonl`, the best
    `model/` so far, `checkpoints/`, and what `evaluate` adds. Where the recipe's setting `members` is
    more than 1, `model/` is an ensemble, and `members/` has the history and checkpoints of each.
    """

    recipe: Recipe
    folder: Path
    keeping: Mapping[str, object] = field(default_factory=dict)
    """Arguments of `fit` that tell how it is kept, watched and computed, and change nothing of what comes of it
    beyond rounding."""

    def keeping_by(self, **keeping: object) -> Run:
        """The same run, kept and watched in another way."""
        return replace(self, keeping=keeping)

    @property
    def model_folder(self) -> Path:
        return self.folder / "model"

    def train(self, data: Path, *, say: Callable[[object], None]) -> tuple[FusionModel | Ensemble, list[History]]:
        """Train, or go on where a run into the same folder was stopped.

        Returns:
            The model or ensemble, and what happened in the training of it or of each member.

        Raises:
            InputError: the folder holds something else, or a run of another recipe or other settings.
        """
        earlier = self._earlier_run()
        cohort = self.recipe.read(data)
        say(cohort.attrition.to_string(index=False))
        train, valid, test = self.recipe.divide(cohort)
        say(f"train {len(train)}, valid {len(valid)}, held out {len(test)} samples")
        if earlier and _pseudonyms((train, valid), earlier["salt"]) != earlier["trained_on"]:
            raise InputError(
                f"{self.folder} holds a run that was trained on other patients. Give another --out, or the data of "
                "that run to go on with it."
            )
        if not earlier and self._has_checkpoints():
            # Whether they are of this run, data and settings, is seen before it is written.
            say(f"{self.folder} holds checkpoints, but no {_RUN}, which is written again")
        if earlier:
            say(f"{self.folder} holds this run already: it goes on where it was stopped")
        # Nothing is written before the data and the settings were found to be in order.
        parts = {"train": train, "valid": valid, "held out": test}
        said: dict[str, None] = {}

        def tell(histories: Sequence[History]) -> None:
            for history in histories:
                notes = (f"note: {warning}" for warning in history.warnings)
                for line in (*(f"left out: {remark}" for remark in history.remarks), *history.tuning, *notes):
                    if line not in said:
                        said[line] = None
                        say(line)

        def on_start(history: History) -> None:
            tell([history])
            if not earlier:
                self._write(data, cohort, parts)

        if self.recipe.rotates:
            say("of train and valid together, each member holds out others for its validation")
            train, valid = self.recipe.development(cohort, train, valid), len(valid) / (len(train) + len(valid))
        model, histories = self._fit(train, valid, on_start)
        tell(histories)
        if skipped := sum(len(history.skipped) for history in histories):
            say(f"note: {skipped} batches were left out, since their loss or gradient was not finite: skipped.jsonl")
        for history in histories:
            done = history.epochs[history.best_epoch - 1]
            losses = ", ".join(f"{name.replace('_', ' ')} {done[name]:.4f}" for name in done if name.endswith("loss"))
            say(f"best epoch {history.best_epoch} of {len(history.epochs)}: {losses}")
        return model, histories

    def _fit(
        self, train: Cohort, valid: Cohort | float, on_start: Callable[[History], None]
    ) -> tuple[FusionModel | Ensemble, list[History]]:
        """One model, or as many as the recipe's setting `members` says, as an ensemble."""
        from ..fusion import fit, fit_ensemble

        training = self.recipe.training() | self.keeping
        if self.recipe.members == 1:
            model = self.recipe.model(train)
            return model, [fit(model, train, valid, out=self.folder, on_start=on_start, **training)]
        return fit_ensemble(
            lambda: self.recipe.model(train),
            train,
            valid,
            **self.recipe.ensemble,
            seed=training.pop("seed", 0),
            training=training,
            out=self.folder,
            on_start=on_start,
        )

    def model(self) -> FusionModel | Ensemble:
        """The trained model or ensemble.

        Raises:
            InputError: there is none, or it is damaged.
        """
        from ..fusion.ensemble import load_trained

        return load_trained(self.model_folder)

    def refuse_training_patients(self, test: Cohort) -> None:
        """Raise `InputError` if a patient who is to be evaluated on was trained on.

        That happens when the data are not those the run was trained on, and so divide otherwise.
        """
        told = _read_run(self.folder)
        known = set(told["trained_on"]) & set(_pseudonyms((test,), told["salt"]))
        if known:
            raise InputError(
                f"{len(known)} of the {test.subjects} held-out patients were trained on, so the data are not those of "
                "the run. Give the data that it was trained on."
            )

    def _earlier_run(self) -> dict | None:
        """What a run into the same folder told of itself; None where there is nothing to go on with.

        Raises:
            InputError: the folder holds something else, or a run of another recipe or other settings.
        """
        if not (self.folder / _RUN).is_file():
            # What a kill left half-written has a name that begins with a dot, or is a member of which nothing is done.
            own = {_RUN} | _OF_A_RUN if self._has_checkpoints() else {"members"}
            others = {path.name for path in self.folder.glob("*") if not path.name.startswith(".")} - own
            if self.folder.is_file() or others:
                raise InputError(f"{self.folder} exists and is no run of chiasm. Give another --out.")
            return None
        if not any((self.folder / name).exists() for name in _BEGUN):
            # It ended before its first epoch was done.
            return None
        earlier = _read_run(self.folder)
        mine = json.loads(json.dumps(self.recipe.stated_settings))
        if not self._is_of(earlier):
            raise InputError(
                f"{self.folder} holds a run of another recipe, {earlier['recipe']}. Give another --out, or that recipe "
                "to go on with it."
            )
        if earlier["settings"] != mine:
            raise InputError(
                f"{self.folder} holds a run of {earlier['recipe']} with other settings: "
                f"{changed_settings(earlier['settings'], mine)}. Give another --out, or the same recipe and settings "
                "to go on with it."
            )
        return earlier

    def _has_checkpoints(self) -> bool:
        folders = (self.folder, *(self.folder / "members").glob("*"))
        return any(next((folder / "checkpoints").glob("*/manifest.json"), None) for folder in folders)

    def _is_of(self, earlier: Mapping[str, object]) -> bool:
        """Whether an earlier run is of this recipe: by name, or, of one's own, by its place or its content."""
        name, own = str(earlier["recipe"]), self.recipe.file
        if own is None or name in BUILT_IN:
            return name == self.recipe.name
        return Path(name).resolve() == own or earlier.get("recipe_sha256") == self.recipe.digest

    def _write(self, data: Path, cohort: Cohort, parts: dict[str, Cohort]) -> None:
        from ..fusion.artifact import write_whole

        salt, own = secrets.token_hex(8), self.recipe.file
        told = {
            "schema": 1,
            "recipe": self.recipe.name if own is None else str(own),
            "recipe_sha256": self.recipe.digest,
            "settings": self.recipe.stated_settings,
            "data": str(data.resolve()),
            "data_sha256": _digest(cohort),
            "commit": commit_of(Path(__file__).resolve(), folder=f"{Path(__file__).resolve().parent.name}/"),
            "recipe_commit": own and commit_of(own),
            "versions": {name: version(name) for name in _TOLD_VERSIONS} | {"python": platform.python_version()},
            "attrition": cohort.attrition.to_dict("records"),
            "salt": salt,
            "trained_on": _pseudonyms((parts["train"], parts["valid"]), salt),
            "parts": {name: {"patients": part.subjects, "samples": len(part)} for name, part in parts.items()},
            "excluded": pd.Series([row.reason for row in cohort.exclusions], dtype="str").value_counts().to_dict(),
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(self.folder / _RUN, json.dumps(told | {"sha256": _seal(told)}, indent=2) + "\n")


def _digest(cohort: Cohort) -> str:
    """SHA-256 of the five tables, as they were read; of images their paths alone."""
    digest = hashlib.sha256()
    for table in ("outcomes", *EVENT_TABLES, "static"):
        if (rows := getattr(cohort, table)) is not None:
            digest.update(" ".join([table, *rows.columns]).encode())
            digest.update(pd.util.hash_pandas_object(rows, index=False).to_numpy().tobytes())
    return digest.hexdigest()


def commit_of(file: Path, *, folder: str | None = None) -> str | None:
    """The git commit of the repository that keeps a file, with "-dirty" where files there were changed.

    Args:
        file: resolved.
        folder: where in its repository the file has to be, with a slash at its end; anywhere, unless given.

    Returns:
        None where no repository keeps it, such as in an environment that lies inside somebody's repository.
    """
    git = shutil.which("git")
    if git is None:
        return None
    # In a hook of git, variables name another repository.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}

    def told(*words: str) -> str | None:
        asked = [git, "-C", str(file.parent), *words]
        ended = subprocess.run(
            asked, capture_output=True, text=True, check=False, env=environment | {"GIT_OPTIONAL_LOCKS": "0"}
        )
        return ended.stdout.strip() if ended.returncode == 0 else None

    if told("ls-files", "--error-unmatch", "--", file.name) is None:
        return None
    if folder is not None and told("rev-parse", "--show-prefix") != folder:
        return None
    return told("describe", "--always", "--abbrev=40", "--dirty", "--exclude=*")


def _pseudonyms(parts: Sequence[Cohort], salt: str) -> list[str]:
    """The patients of some cohorts as salted hashes, so that a run folder names nobody."""
    patients = {str(patient) for part in parts for patient in part.outcomes["subject_id"].unique()}
    return sorted(hashlib.sha256(f"{salt}/{patient}".encode()).hexdigest()[:16] for patient in patients)


def open_run(folder: Path, own_recipe: str | None = None, *, store: Path | None = None) -> Run:
    """A run by its folder.

    Args:
        folder: as `chiasm train --out` wrote it.
        own_recipe: path of the recipe's file, where it is not one of chiasm's. A run folder is data:
            no code is run because a folder names it.
        store: where the arrays of cohorts are kept, if not in memory.

    Raises:
        InputError: no run there, one of another schema, or its recipe was not given.
    """
    told = _read_run(folder)
    name = told["recipe"]
    if name.endswith(".py") and own_recipe is None:
        raise InputError(
            f"{folder} is a run of a recipe of your own. Name its file again: --recipe {name}; or for training, "
            f"chiasm train {name} --resume {folder}."
        )
    return Run(load_recipe(own_recipe or name, stated=told["settings"], store=store), folder)


def new_run(
    recipe: str | None, data: Path | None, folder: Path | None, assignments: Sequence[str], *, store: Path | None = None
) -> tuple[Run, Path]:
    """A run to begin, or to go on with by the words that began it, and the folder of its data.

    Raises:
        InputError: one of recipe, data and folder is not given, or the recipe cannot be loaded.
    """
    given = {"RECIPE": recipe, "--data": data, "--out": folder}
    missing = [name for name, value in given.items() if value is None]
    if missing:
        raise InputError(f"{missing[0]} is missing. Give RECIPE, --data and --out; or --resume, the folder of a run.")
    return Run(load_recipe(recipe, assignments, store=store), folder), data


def begun_run(
    folder: Path, own_recipe: str | None = None, data: Path | None = None, *, store: Path | None = None
) -> tuple[Run, Path]:
    """A run to go on with, and the folder of its data.

    Args:
        folder, own_recipe, store: as `open_run` takes them.
        data: where the data are by now; where they were, unless given.

    Raises:
        InputError: as `open_run`; or the run does not tell where its data are.
    """
    run = open_run(folder, own_recipe, store=store)
    told = _read_run(folder).get("data")
    if data is None and told is None:
        raise InputError(f"{folder / _RUN} does not tell where the data are. Give --data.")
    return run, data or Path(told)


def _seal(told: dict[str, object]) -> str:
    """SHA-256 of what a run tells, however it is laid out in the file."""
    plain = json.loads(json.dumps({name: value for name, value in told.items() if name != "sha256"}))
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _read_run(folder: Path) -> dict:
    path = folder / _RUN
    if not path.is_file():
        if (folder / "checkpoints").is_dir() or (folder / "members").is_dir():
            raise InputError(
                f"{folder} has lost its {_RUN}. The command that began it, with the same --out, writes it again."
            )
        raise InputError(f"{folder} is no run: it has no {_RUN}. Give a folder that chiasm train wrote.")
    try:
        told = json.loads(path.read_text())
        whole = all(isinstance(told[name], kind) for name, kind in _TOLD.items())
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path} is damaged. Take it from a backup, or train again.") from error
    if not whole:
        raise InputError(f"{path} is damaged. Take it from a backup, or train again.")
    if told["schema"] != 1:
        raise InputError(f"{folder} has the schema {told['schema']}, and this version of chiasm reads 1. Train again.")
    # A run that was begun before runs were sealed has none.
    if told.get("sha256", _seal(told)) != _seal(told):
        raise InputError(f"{path} is not as it was written. Take it from a backup, or train again.")
    return told


def read_patients(recipe: Recipe, data: Path, history: float | None, *, say: Callable[[object], None]) -> Cohort:
    """Patients to predict for: in the recipe's own layout, or as five tables or MEDS.

    Tables may come without outcome columns, as they do for patients of today, and those that there are are not looked
    at: they may be blank. They are read as they are, unless a recipe of the user's own has `patients`: its `read` may
    ask for outcomes, and what else it does is not done then, which is said.

    Args:
        recipe: the recipe.
        data: the folder.
        history: hours back that the model looks; None for all.
        say: prints a line.
    """
    from ..datasets import Cohort

    meds = (data / "data").is_dir() and (data / "metadata").is_dir()
    is_own = recipe.file is not None
    if (meds or find_table(data, "outcomes")) and not (is_own and recipe.has_patients):
        if is_own:
            say(
                f"note: {data} is read as it is, not by read of the recipe. Where that converts units or leaves "
                "patients out, give the recipe patients(data, settings), which is used for prediction"
            )
        return recipe.stored(read_cohort(Cohort, data, {"history": history}, labelled=False))
    return recipe.patients(data)


def check_risks_path(path: Path) -> None:
    """Raise `InputError` unless risks can be written there, before anything is computed."""
    if path.suffix not in (".csv", ".parquet"):
        raise InputError(f"{path} ends in {path.suffix or 'nothing'}; expected .csv or .parquet.")
    if path.is_dir():
        raise InputError(f"{path} is a folder. Give the path of a file, such as {path / ('risks' + path.suffix)}.")


def write_risks(risks: pd.DataFrame, path: Path) -> None:
    """Write risks as CSV or Parquet, by the path's ending; whole or not at all."""
    from ..fusion.artifact import new_file

    with new_file(path) as scratch:
        if path.suffix == ".csv":
            risks.to_csv(scratch, index=False)
        else:
            risks.to_parquet(scratch, index=False)
