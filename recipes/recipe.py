"""What a recipe is, where recipes are found, and how their settings are read from the command line."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import importlib.util
import inspect
import sys
import traceback
import typing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from ..datasets.errors import InputError
from ..fusion.settings import LARGEST_SEED, require_whole

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

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
    *(RuntimeError, TypeError, ValueError),
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
        return self.stored(self.module.read(data, self.settings))

    def patients(self, data: Path) -> Cohort:
        """Whom to predict for: all that the data have, whether or not their outcome is known."""
        return self.stored(getattr(self.module, "patients", self.module.read)(data, self.settings))

    def stored(self, cohort: Cohort) -> Cohort:
        """The cohort with the recipe's store, if it has one."""
        return cohort if self.store is None else cohort.with_store(self.store)

    @property
    def is_cross_validated(self) -> bool:
        """Whether the recipe says what its cross-validation is repeated with."""
        return hasattr(self.module, "VARIANTS")

    @property
    def members(self) -> int:
        """How many models are trained to predict together."""
        return getattr(self.settings, "members", 1)

    def divide(self, cohort: Cohort) -> tuple[Cohort, Cohort, Cohort]:
        """Training, validation and held-out patients."""
        return self.module.divide(cohort, self.settings)

    def model(self, cohort: Cohort) -> FusionModel:
        """The model, not yet trained."""
        return self.module.model(cohort, self.settings)

    def training(self, *, kept: bool = True) -> dict[str, object]:
        """Arguments of `fit`; of a model that is not kept in a folder, without trackers, which may want one."""
        told = self.module.training(self.settings)
        return told if kept else {name: value for name, value in told.items() if name != "trackers"}

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
    values = dict(stated or {}) | _parsed(module.Settings, assignments)
    known = {field.name for field in dataclasses.fields(module.Settings)}
    strange = sorted(set(values) - known)
    if strange:
        raise InputError(f"The recipe {name} has no setting {strange[0]}; it has {', '.join(sorted(known))}.")
    # What a file keeps as a list is a tuple in the settings.
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    settings = module.Settings(**values)
    for own in known & set(_WHOLE):
        require_whole(own, getattr(settings, own), **_WHOLE[own])
    recipe = Recipe(name, module, settings, store)
    if recipe.is_cross_validated and not (hasattr(module, "sources") and {"folds", "repeats"} <= known):
        raise InputError(
            f"The recipe {name} has VARIANTS, so it also needs sources, and the settings folds and repeats."
        )
    return recipe


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
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise InputError(f"The recipe {path} is not valid Python (line {error.lineno}).") from error
    except _OF_A_RECIPE as error:
        # Whatever the user's own file raises is for the user to mend; --verbose shows the way to it.
        told = traceback.extract_tb(error.__traceback__)
        line = next((frame.lineno for frame in reversed(told) if Path(frame.filename) == path), None)
        raise InputError(
            f"The recipe {path} cannot be run{f', line {line}' if line else ''}: {type(error).__name__}: {error}. "
            "Mend it; --verbose shows the traceback."
        ) from error
    return module


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


def docstring(module: ModuleType) -> str:
    """The first line of a recipe's docstring."""
    return (inspect.getdoc(module) or "").partition("\n")[0]
