"""What a recipe is, where recipes are found, and how their settings are read from the command line."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import importlib.util
import inspect
import re
import sys
import traceback
import typing
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from ..datasets.arguments import require_cohort, require_numbers, require_whole
from ..datasets.errors import InputError
from ..fusion.settings import LARGEST_SEED

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..datasets import Cohort
    from ..fusion import FusionModel

BUILT_IN = {
    "demo": "demo",
    "icu-mortality": "icu_mortality",
    "covid-icu": "covid_icu",
    "mimic-iv": "mimic_iv",
}
PARTS = ("CARD", "Settings", "read", "divide", "model", "training")
"""What a recipe has. It may also have `patients`, where not all to predict for are among those it is
trained and evaluated on; `SEARCHED`, what `chiasm tune` may choose settings from; and, where patients
are few, `VARIANTS` and `sources`, which are scored by cross-validation with the settings `folds` and
`repeats`."""
_OF_A_RECIPE = (
    *(ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, NameError, OSError),
    *(RuntimeError, SystemExit, TypeError, ValueError),
)
"""What a user's own file raises while it is read."""
_WHOLE = {
    "seed": {"least": 0, "most": LARGEST_SEED},
    "folds": {"least": 2},
    "repeats": {"least": 1},
    "members": {"least": 1},
}
"""Settings that are counted with before `fit` sees any, by name, and what they must be in any recipe."""


@dataclass(frozen=True)
class Card:
    """What `chiasm recipes` prints of a recipe."""

    outcome: str
    data: str
    cost: str
    score: str


@dataclass(frozen=True)
class Recipe:
    """A recipe's module and its settings, ready to run."""

    name: str
    module: ModuleType
    settings: object
    store: Path | None = None
    """Where the arrays of its cohorts are kept, if not in memory."""

    def __reduce__(self) -> tuple[object, ...]:
        # A module does not travel to another process, where it is loaded again.
        return partial(load_recipe, self.name, (), self.stated_settings, store=self.store), ()

    @property
    def file(self) -> Path | None:
        """Where it stands, if it is a user's own."""
        return None if self.name in BUILT_IN else Path(self.name).resolve()

    @property
    def digest(self) -> str | None:
        """SHA-256 of its file, if it is a user's own: the same recipe by whatever path."""
        return self.file and hashlib.sha256(self.file.read_bytes()).hexdigest()

    def read(self, data: Path) -> Cohort:
        """Whose risk, when, from what: those whose outcome can be learned from or held against a risk."""
        return self.stored(self._asked("read", data))

    def patients(self, data: Path) -> Cohort:
        """Whom to predict for: all that the data have, whether or not their outcome is known."""
        return self.stored(self._asked("patients" if self.has_patients else "read", data))

    def stored(self, cohort: Cohort) -> Cohort:
        """The cohort with the recipe's store, if it has one."""
        _as_cohort(cohort)
        return cohort if self.store is None else cohort.with_store(self.store)

    @property
    def has_patients(self) -> bool:
        """Whether the recipe says whom to predict for."""
        return hasattr(self.module, "patients")

    @property
    def is_cross_validated(self) -> bool:
        """Whether the recipe says what its cross-validation is repeated with."""
        return hasattr(self.module, "VARIANTS")

    @property
    def members(self) -> int:
        """How many models are trained to predict together."""
        return getattr(self.settings, "members", 1)

    @property
    def ensemble(self) -> dict[str, int]:
        """How many these are, and how many of them are boosted trees, as `fit_ensemble` takes it."""
        return {"members": self.members, "boosted": int(self.members * getattr(self.settings, "boosted", 0.0))}

    @property
    def rotates(self) -> bool:
        """Whether each of them is validated on other patients."""
        return self.members > 1 and getattr(self.settings, "rotating", False)

    def divide(self, cohort: Cohort) -> tuple[Cohort, Cohort, Cohort]:
        """Training, validation and held-out patients."""
        parts = self._asked("divide", cohort)
        if not isinstance(parts, Sequence) or len(parts) != 3:
            given = f"{len(parts)} parts" if isinstance(parts, Sequence) else f"a {type(parts).__name__}"
            raise InputError(
                f"divide of the recipe {self.name} gives {given}; expected training, validation and held-out patients, "
                "such as cohort.split((0.7, 0.1, 0.2))."
            )
        return tuple(map(_as_cohort, parts))

    def development(self, cohort: Cohort, train: Cohort, valid: Cohort) -> Cohort:
        """The training and the validation patients of a cohort as one.

        Raises:
            InputError: `divide` makes other samples.
        """
        import pandas as pd

        samples, *parts = (part.outcomes[["subject_id", "prediction_time"]] for part in (cohort, train, valid))
        wanted = pd.MultiIndex.from_frame(pd.concat(parts))
        chosen = pd.MultiIndex.from_frame(samples).isin(wanted)
        if chosen.sum() != len(wanted):
            raise InputError(
                f"The recipe {self.name} divides {len(wanted)} samples into training and validation, of which its read "
                f"gives {int(chosen.sum())}. Let divide choose among the samples that read gives."
            )
        return cohort.keep(chosen, why="training and validation patients")

    def model(self, cohort: Cohort) -> FusionModel:
        """The model, not yet trained."""
        return self._asked("model", cohort)

    def training(self, *, kept: bool = True) -> dict[str, object]:
        """Arguments of `fit`; of a model that is not kept in a folder, without trackers, which may want one."""
        told = self._asked("training")
        if not isinstance(told, dict):
            raise InputError(
                f"training of the recipe {self.name} gives a {type(told).__name__}; expected a dictionary."
            )
        strange = sorted(set(told) - set(_arguments_of_fit()))
        if strange:
            raise InputError(
                f"training of the recipe {self.name} gives {strange[0]!r}, which is no argument of fit that a recipe "
                f"gives; those are {', '.join(_arguments_of_fit())}."
            )
        return told if kept else {name: value for name, value in told.items() if name != "trackers"}

    def sources(self, data: Path, cohort: Cohort) -> dict[str, Sequence[object]]:
        """What should not predict the outcome, one value a sample, by name; nothing where the recipe names none."""
        if not hasattr(self.module, "sources"):
            return {}
        # It takes no settings.
        with naming_recipe(self.name, but=OSError):
            told = self.module.sources(data, cohort)
        if not isinstance(told, dict):
            raise InputError(
                f"sources of the recipe {self.name} gives a {type(told).__name__}; expected a dictionary, by name one "
                "value a sample."
            )
        for name, values in told.items():
            given = len(values) if hasattr(values, "__len__") and not isinstance(values, str) else None
            if given != len(cohort):
                came = f"a {type(values).__name__}" if given is None else f"{given} values"
                raise InputError(
                    f"sources of the recipe {self.name} gives {came} of {name}; expected one value for each of the "
                    f"{len(cohort)} samples, in the order of cohort.outcomes."
                )
        return told

    def _asked(self, part: str, *given: object) -> object:
        """What a function of the recipe's module gives."""
        # What the disk says of the data names the file itself.
        with naming_recipe(self.name, but=OSError):
            return getattr(self.module, part)(*given, self.settings)

    @property
    def stated_settings(self) -> dict[str, object]:
        """The settings as plain values, for the run folder."""
        return dataclasses.asdict(self.settings)


def load_recipe(
    name: str,
    assignments: Sequence[str] = (),
    stated: Mapping[str, object] | None = None,
    *,
    store: Path | None = None,
) -> Recipe:
    """A recipe by name or by the path of a Python file.

    Args:
        name: one of `BUILT_IN`, or a path that ends in `.py`.
        assignments: settings as `name=value`, from the command line.
        stated: settings as `Recipe.stated_settings` gave them, from a run folder.
        store: where the arrays of its cohorts are kept, if not in memory.

    Raises:
        InputError: no such recipe, a part of it is missing, or a setting is unknown or of another type.
    """
    module = _module(name)
    missing = [part for part in PARTS if not hasattr(module, part)]
    if missing:
        raise InputError(f"The recipe {name} lacks {missing[0]}. A recipe has {', '.join(PARTS)}.")
    if not dataclasses.is_dataclass(module.Settings):
        raise InputError(f"Settings of the recipe {name} is no dataclass. Write @dataclass(frozen=True) above it.")
    values = dict(stated or {}) | _parsed(module.Settings, assignments)
    known = {field.name for field in dataclasses.fields(module.Settings)}
    strange = sorted(set(values) - known)
    if strange:
        raise InputError(f"The recipe {name} has no setting {strange[0]}; it has {', '.join(sorted(known))}.")
    # What a file keeps as a list is a tuple in the settings.
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    settings = _made_settings(name, module.Settings, values)
    for own in known & set(_WHOLE):
        require_whole(own, getattr(settings, own), **_WHOLE[own])
    boosted = getattr(settings, "boosted", 0.0)
    require_numbers(boosted=boosted)
    if not 0 <= boosted < 1:
        raise InputError(f"boosted is {boosted}; expected a share of the members, from 0 to below 1.")
    recipe = Recipe(name, module, settings, store)
    if recipe.is_cross_validated and not (hasattr(module, "sources") and {"folds", "repeats"} <= known):
        raise InputError(
            f"The recipe {name} has VARIANTS, so it also needs sources, and the settings folds and repeats."
        )
    if recipe.is_cross_validated:
        _require_variants(name, module.VARIANTS, known)
    return recipe


def _made_settings(name: str, kind: type, values: Mapping[str, object]) -> object:
    """The settings of a recipe with some values, and its own for the others."""
    blank = (dataclasses.MISSING, dataclasses.MISSING)
    needed = [own.name for own in dataclasses.fields(kind) if (own.default, own.default_factory) == blank and own.init]
    missing = sorted(set(needed) - set(values))
    if missing:
        raise InputError(
            f"The setting {missing[0]} of the recipe {name} has no default. Give it: --set {missing[0]}=..."
        )
    with naming_recipe(name):
        return kind(**values)


def _require_variants(name: str, variants: object, known: set[str]) -> None:
    """Raise `InputError` unless these are settings by the name of a variant, which is also that of a folder."""
    whole = isinstance(variants, dict) and all(
        isinstance(one, str)
        and re.fullmatch(r"\w[\w +-]*", one)
        and isinstance(changes, dict)
        and set(changes) <= known
        for one, changes in variants.items()
    )
    if not whole or not variants:
        raise InputError(
            f"VARIANTS of the recipe {name} is not as it should be: settings that the recipe has, by the name of a "
            'variant in letters and digits, such as {"without notes": {"use_notes": False}}. Mend it.'
        )


def _module(name: str) -> ModuleType:
    if name in BUILT_IN:
        return importlib.import_module(f".{BUILT_IN[name]}", __package__)
    path = Path(name)
    if path.suffix != ".py":
        raise InputError(f"There is no recipe {name!r}. There are {', '.join(BUILT_IN)}; or give a path to a .py file.")
    if not path.is_file():
        raise InputError(f"There is no recipe file {path}. Check the path.")
    spec = importlib.util.spec_from_file_location(f"chiasm_recipe_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up while they are made.
    sys.modules[spec.name] = module
    try:
        with naming_recipe(name):
            spec.loader.exec_module(module)
    except SyntaxError as error:
        raise InputError(f"The recipe {path} is not valid Python (line {error.lineno}).") from error
    return module


@contextmanager
def naming_recipe(name: str, *, but: type[BaseException] = InputError) -> Iterator[None]:
    """Turn what a user's own recipe raises, for the user to mend, into an `InputError` that names the line.

    Args:
        name: of the recipe; what one of chiasm's raises is a defect of ours.
        but: what is told as it is, besides `InputError`.
    """
    try:
        yield
    except (InputError, but):
        raise
    except _OF_A_RECIPE as error:
        if name in BUILT_IN:
            raise
        told, own = traceback.extract_tb(error.__traceback__), Path(name).resolve()
        line = next((frame.lineno for frame in reversed(told) if Path(frame.filename).resolve() == own), None)
        raise InputError(
            f"The recipe {name} cannot be run{f', line {line}' if line else ''}: {type(error).__name__}: {error}. "
            "Mend it; --verbose shows the traceback."
        ) from error


def _as_cohort(cohort: object) -> Cohort:
    require_cohort(cohort)
    return cohort


def _arguments_of_fit() -> list[str]:
    """Of all, those that a recipe may give."""
    from ..fusion.training import fit

    return [name for name in list(inspect.signature(fit).parameters)[3:] if name not in ("out", "on_start")]


def _parsed(settings: type, assignments: Sequence[str]) -> dict[str, object]:
    """`name=value` texts in the types that the settings declare."""
    types = typing.get_type_hints(settings)
    values: dict[str, object] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise InputError(f"--set was given {assignment!r}; expected name=value.")
        values[name] = parsed_setting(name, text, types[name]) if name in types else text
    return values


def parsed_setting(name: str, text: str, kind: object) -> object:
    """A setting out of its text, in the type that it is declared with.

    Raises:
        InputError: it is of another type.
    """
    choices = typing.get_args(kind)
    if typing.get_origin(kind) is tuple:
        return tuple(parsed_setting(name, part.strip(), choices[0]) for part in text.split(",") if part.strip())
    if type(None) in choices:
        inner = next(choice for choice in choices if choice is not type(None))
        return None if text.lower() in ("", "none") else parsed_setting(name, text, inner)
    if kind is bool:
        if text.lower() not in ("true", "false", "1", "0", "yes", "no"):
            raise InputError(f"The setting {name} is {text!r}; expected true or false.")
        return text.lower() in ("true", "1", "yes")
    try:
        return kind(text)
    except (TypeError, ValueError) as error:
        raise InputError(f"The setting {name} is {text!r}; expected a value of type {kind.__name__}.") from error


def changed_settings(there: Mapping[str, object], here: Mapping[str, object]) -> str:
    """The settings that differ, with their values in the run that is there."""
    names = [name for name in {**there, **here} if there.get(name) != here.get(name)]
    return ", ".join(f"{name} was {there[name]!r}" if name in there else f"{name} was not there" for name in names)


def summary(module: ModuleType) -> str:
    """The first line of a recipe's docstring."""
    return (inspect.getdoc(module) or "").partition("\n")[0]
