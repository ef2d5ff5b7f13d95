"""What a search may choose from: ranges and choices of a recipe's settings, declared in the recipe or in words."""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..datasets.errors import InputError
from .recipe import parsed_setting

if TYPE_CHECKING:
    import optuna

    from .recipe import Recipe

DECLARE = (
    "Declare what may be searched: in the recipe, as SEARCHED = {'learning_rate': Range(1e-4, 1e-2, log=True)} with "
    "Range and Choice from chiasm.recipes.ranges, or here, as --range learning_rate=1e-4:1e-2:log"
)
_FORM = "expected low:high, low:high:log, low:high:STEP, or choices with commas between"
_LUCK = ("seed", "folds", "repeats", "members")
"""Settings by which a score gets better, or less uncertain, without a better model."""
_DIGITS = 4
"""Significant digits of what is drawn, so that a recipe can be read; more would change nothing."""


@dataclass(frozen=True)
class Range:
    """All numbers from one to another.

    Args:
        low, high: ends, included. For a setting that is a whole number, whole.
        log: whether the logarithm is drawn evenly, as suits rates.
        step: from `low`, the distance of the numbers that may be drawn; None for all.

    Example:
        >>> SEARCHED = {"learning_rate": Range(1e-4, 1e-2, log=True), "epochs": Range(4, 16)}
    """

    low: float
    high: float
    log: bool = False
    step: float | None = None

    @property
    def values(self) -> tuple[object, ...]:
        """Its ends, which are of the setting's type as all of it are."""
        return (self.low, self.high)

    def __contains__(self, value: object) -> bool:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not self.low <= value <= self.high:
            return False
        return self.step is None or math.isclose(math.remainder(value - self.low, self.step), 0, abs_tol=1e-9)

    def draw(self, trial: optuna.Trial, name: str, *, whole: bool) -> int | float:
        """The number that a trial tries, without digits that nobody reads."""
        if whole:
            return trial.suggest_int(name, int(self.low), int(self.high), log=self.log, step=int(self.step or 1))
        low, high = float(self.low), float(self.high)
        drawn = trial.suggest_float(name, low, high, log=self.log, step=self.step)
        return min(max(float(f"{drawn:.{_DIGITS}g}"), low), high)

    def problem(self) -> str | None:
        """What is wrong with it, whatever it is the range of."""
        numbers = (self.low, self.high) if self.step is None else (self.low, self.high, self.step)
        if not all(math.isfinite(number) for number in numbers):
            return "is not finite"
        if self.low >= self.high:
            return "is reversed or empty; the first number is the lower one"
        if self.log and self.low <= 0:
            return "is to be drawn by its logarithm, which needs numbers above 0"
        if self.log and self.step is not None:
            return "has both log and a step; it can have one of them"
        if self.step is not None and not 0 < self.step <= self.high - self.low:
            return f"has the step {self.step:g}; expected one above 0 that fits into it"
        return None

    def __str__(self) -> str:
        further = ":log" if self.log else "" if self.step is None else f":{self.step:g}"
        return f"{self.low:g}:{self.high:g}{further}"


@dataclass(frozen=True, init=False)
class Choice:
    """Some values, in no order: numbers, words, true and false, or None.

    Example:
        >>> SEARCHED = {"width": Choice(32, 64, 128)}
    """

    values: tuple[object, ...]

    def __init__(self, *values: object) -> None:
        object.__setattr__(self, "values", values)

    def __contains__(self, value: object) -> bool:
        return any(value == one and type(value) is type(one) for one in self.values)

    def draw(self, trial: optuna.Trial, name: str, *, whole: bool) -> object:  # noqa: ARG002 - as `Range` has it
        """The value that a trial tries."""
        return trial.suggest_categorical(name, self.values)

    def problem(self) -> str | None:
        """What is wrong with it, whatever it is the choice of."""
        if not all(value is None or isinstance(value, (bool, int, float, str)) for value in self.values):
            return "has a value that is no number, word, true or false, or None"
        if len(self.values) < 2 or len(set(map(repr, self.values))) < len(self.values):
            return "needs two or more values, all different"
        return None

    def __str__(self) -> str:
        return ",".join(map(str, self.values))


Searched = Mapping[str, Range | Choice]


def searched_settings(recipe: Recipe, assignments: Sequence[str] = (), ranges: Sequence[str] = ()) -> Searched:
    """What a search of a recipe chooses from, by setting, in the order of its settings.

    Args:
        recipe: may declare ranges as `SEARCHED`.
        assignments: settings given as `name=value`; they are as they were given, and not searched.
        ranges: further ranges as `name=low:high`, or in place of the recipe's own.

    Raises:
        InputError: nothing is to be searched, or a range is of no setting, of another type, or reversed.
    """
    given = {assignment.partition("=")[0] for assignment in assignments}
    types = typing.get_type_hints(type(recipe.settings))
    words = dict(map(_divided, ranges))
    both = sorted(given & set(words))
    if both:
        raise InputError(f"{both[0]} is given by --set and to be searched by --range. Leave one of them out.")
    declared = getattr(recipe.module, "SEARCHED", {})
    if not isinstance(declared, Mapping):
        raise InputError(f"SEARCHED of the recipe {recipe.name} is no dictionary. {DECLARE}.")
    own = {name: one for name, one in declared.items() if name not in given}
    own |= {name: _parsed(name, text, types.get(name)) for name, text in words.items()}
    known = [field.name for field in dataclasses.fields(recipe.settings)]
    for name, one in own.items():
        if name not in known:
            raise InputError(f"The recipe {recipe.name} has no setting {name} to search; it has {', '.join(known)}.")
        _check(name, one, types[name])
    if not own:
        raise InputError(f"Nothing of the recipe {recipe.name} is to be searched. {DECLARE}.")
    return {name: own[name] for name in known if name in own}


def draw(trial: optuna.Trial, recipe: Recipe, searched: Searched) -> dict[str, object]:
    """The settings that a trial tries."""
    types = typing.get_type_hints(type(recipe.settings))
    return {
        name: one.draw(trial, name, whole=float not in _alternatives(types[name])) for name, one in searched.items()
    }


def _divided(text: str) -> tuple[str, str]:
    name, equals, values = text.partition("=")
    if not equals or not name or not values:
        raise InputError(f"--range was given {text!r}; expected name=low:high, such as learning_rate=1e-4:1e-2:log.")
    return name, values


def _parsed(name: str, text: str, kind: object) -> Range | Choice:
    """A range as it is written on the command line."""
    if kind is None:
        # Of no setting: it is told by its name.
        return Choice()
    if ":" not in text:
        return Choice(*(parsed_setting(name, part.strip(), kind) for part in text.split(",")))
    first, second, *further = (part.strip() for part in text.split(":"))
    try:
        step = None if further in ([], ["log"]) else _number(*further)
        return Range(_number(first), _number(second), log=further == ["log"], step=step)
    except (TypeError, ValueError):
        raise InputError(f"The range of {name} is {text!r}; {_FORM}.") from None


def _number(text: str) -> int | float:
    try:
        return int(text)
    except ValueError:
        return float(text)


def _alternatives(kind: object) -> tuple[object, ...]:
    """The types that a setting may be of: `float` and `None` of `float | None`."""
    return typing.get_args(kind) if type(None) in typing.get_args(kind) else (kind,)


def _check(name: str, one: object, kind: object) -> None:
    """Raise `InputError` unless it is a range or choice of values that the setting can have."""
    if name in _LUCK:
        raise InputError(f"{name} is not searched: the best of many would be luck. Give one by --set {name}=VALUE.")
    if not isinstance(one, (Range, Choice)):
        raise InputError(f"What is searched of {name} is {one!r}; expected a Range or a Choice. {DECLARE}.")
    problem = one.problem()
    if problem:
        raise InputError(f"The range {one} of {name} {problem}.")
    allowed = _alternatives(kind)
    if isinstance(one, Range) and not {int, float} & set(allowed):
        told = getattr(kind, "__name__", kind)
        raise InputError(f"{name} is of type {told}, which has no range. Give choices, with commas between.")
    numbers = (one.low, one.high, one.step) if isinstance(one, Range) else one.values
    for value in numbers:
        right = (isinstance(one, Range) and value is None) or type(value) in allowed
        # A whole number is a number, too.
        right |= type(value) is int and float in allowed
        if not right:
            raise InputError(f"The range {one} of {name} has {value!r}; the setting is of type {_told(allowed)}.")


def _told(allowed: tuple[object, ...]) -> str:
    return " or ".join("None" if one is type(None) else getattr(one, "__name__", str(one)) for one in allowed)
