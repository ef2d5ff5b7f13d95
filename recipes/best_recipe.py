"""What comes of a search: the trials as a table, and the best settings as a recipe file."""

from __future__ import annotations

import ast
import dataclasses
import json
import os
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from .recipe import BUILT_IN, PARTS

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from .search import Search
    from .studies import Study

_FURTHER_PARTS = ("patients", "VARIANTS", "sources", "SEARCHED")
_ENDS = {"COMPLETE": "done", "PRUNED": "pruned", "FAIL": "stopped", "RUNNING": "running"}


@dataclass(frozen=True)
class Trial:
    """One trial of a search, as it is told."""

    number: int
    """From 1, the recipe's own settings."""
    end: str
    """done; pruned: worse than half of the others; untrainable; running; stopped: its worker was, or died."""
    score: float
    low: float
    high: float
    """The 95 % interval of the score, of trials that were the best so far; NaN of others."""
    folds: int
    settings: Mapping[str, object]
    seconds: float
    reason: str

    @property
    def cell(self) -> str:
        """The score with its interval."""
        from ..fusion.evaluation import interval_cell

        return interval_cell(self.score, self.low, self.high)


def as_trial(frozen: FrozenTrial) -> Trial:
    """A trial out of a study."""
    told = frozen.user_attrs
    scores = told.get("scores", [])
    low, high = told.get("interval", (float("nan"),) * 2)
    reason = told.get("reason", "")
    return Trial(
        number=told["slot"] + 1,
        end="untrainable" if reason else _ENDS[frozen.state.name],
        score=sum(scores) / len(scores) if scores else float("nan"),
        low=low,
        high=high,
        folds=len(scores),
        settings=told.get("settings", {}),
        seconds=told.get("seconds", float("nan")),
        reason=reason,
    )


def trials_table(study: Study, search: Search) -> pd.DataFrame:
    """One row a trial, in the order in which they were begun; those whose worker died are done again further down."""
    columns = ["trial", "end", search.score, "low", "high", "folds", *search.searched, "seconds", "reason"]
    rows = [
        {
            "trial": own.number,
            "end": own.end,
            search.score: own.score,
            "low": own.low,
            "high": own.high,
            "folds": own.folds,
            **own.settings,
            "seconds": round(own.seconds, 1),
            "reason": own.reason,
        }
        for own in map(as_trial, study.trials)
        # Of two workers that took the same slot, one let it be.
        if own.settings
    ]
    return pd.DataFrame(rows, columns=columns)


def ranked(study: Study) -> list[Trial]:
    """The trials that were scored on all folds, from the best one on."""
    done = [as_trial(frozen) for frozen in study.standing.values()]
    sign = -1 if study.maximizes else 1
    return sorted((own for own in done if own.end == "done"), key=lambda own: (sign * own.score, own.number))


def ranked_table(trials: list[Trial], search: Search, most: int) -> str:
    """The best trials, and the recipe's own settings wherever they stand."""
    shown = trials[:most] + [own for own in trials[most:] if own.number == 1]
    rows = [{"trial": own.number, search.score: own.cell, **own.settings} for own in shown]
    return pd.DataFrame(rows).to_string(index=False)


def unwritten(search: Search) -> list[str]:
    """Settings that differ from the recipe's defaults and cannot stand in a recipe file."""
    return [name for name in _changed(search) if not _is_plain(search, name)]


def recipe_text(search: Search, best: Trial, *, trials: int, first: Trial | None, path: Path) -> str:
    """A recipe file with the settings of a trial, which takes everything else from the recipe that was searched.

    Args:
        search: of which recipe.
        best: whose settings.
        trials: how many were tried.
        first: the trial of the recipe's own settings, where it was scored on all folds.
        path: where the file will be.
    """
    module = search.recipe.module
    types_ = typing.get_type_hints(type(search.recipe.settings))
    values = {name: value for name, value in _changed(search).items() if _is_plain(search, name)} | dict(best.settings)
    name = re.sub(r"[^\w-]", "-", Path(search.recipe.name).stem)
    own = "" if first is None or first.number == best.number else f" Trial 1, of the recipe as it was: {first.cell}."
    lines = [
        f'"""{name} with the settings of trial {best.number}, the best of {trials} of a search.',
        "",
        f"Its {search.objective}:",
        f"{best.cell}.{own}",
        "The best of many is flattered by its own score; chiasm evaluate tells what it is worth on held-out patients.",
        "",
        "Command: `chiasm train best.py --data DIR --out RUN`",
        '"""',
        "",
        "from dataclasses import dataclass",
        *_origin(search.recipe.name, path),
        "",
        *(
            f"{part} = recipe.{part}"
            for part in (*PARTS, *_FURTHER_PARTS)
            if part != "Settings" and hasattr(module, part)
        ),
        "",
        "",
        "@dataclass(frozen=True)",
        "class Settings(recipe.Settings):",
        '    """The settings of the recipe, of which these were searched or given to the search."""',
        "",
    ]
    for setting, value in values.items():
        note = f"  # of {search.searched[setting]}" if setting in search.searched else ""
        lines.append(f"    {setting}: {_annotation(types_[setting])} = {value!r}{note}")
    return "\n".join(lines) + "\n"


def _origin(name: str, path: Path) -> list[str]:
    """How a recipe file gets at the recipe that it is made of."""
    if name in BUILT_IN:
        return ["", f"from chiasm.recipes import {BUILT_IN[name]} as recipe"]
    way = os.path.relpath(Path(name).resolve(), path.resolve().parent)
    return [
        "from pathlib import Path",
        "",
        "from chiasm.recipes.recipe import load_recipe",
        "",
        f"recipe = load_recipe(str(Path(__file__).resolve().parent / {json.dumps(Path(way).as_posix())})).module",
    ]


def _changed(search: Search) -> dict[str, object]:
    """Settings that are not searched and are not as the recipe has them."""
    settings = search.recipe.settings
    return {
        field.name: getattr(settings, field.name)
        for field in dataclasses.fields(settings)
        if field.name not in search.searched and getattr(settings, field.name) != field.default
    }


def _is_plain(search: Search, name: str) -> bool:
    """Whether a setting can be written and read again."""
    value = getattr(search.recipe.settings, name)
    try:
        same = ast.literal_eval(repr(value)) == value
    except (ValueError, SyntaxError):
        return False
    return same and _annotation(typing.get_type_hints(type(search.recipe.settings))[name]) is not None


def _annotation(kind: object) -> str | None:
    """A type as it is written, or None where it is none of the plain ones."""
    if kind in (int, float, bool, str):
        return kind.__name__
    if kind in (type(None), Ellipsis):
        return "None" if kind is type(None) else "..."
    parts = [_annotation(part) for part in typing.get_args(kind)]
    if not parts or None in parts:
        return None
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        return " | ".join(parts)
    return f"tuple[{', '.join(parts)}]" if typing.get_origin(kind) is tuple else None
