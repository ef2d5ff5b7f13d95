"""`chiasm tune` from its arguments to its results: what is written, and what is said."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..datasets.arguments import require_whole
from ..datasets.errors import InputError
from ..datasets.progress import progress_bar
from ..fusion.processes import launched_processes
from .ranges import searched_settings
from .recipe import load_recipe

if TYPE_CHECKING:
    from .best_recipe import Trial
    from .search import Search
    from .studies import Study

Say = Callable[[object], None]
TABLE, RECIPE, STORAGE, WORKERS = "trials.csv", "best.py", "search.db", "workers"
_SHOWN = 5
"""Trials that are printed at the end."""


def tune_recipe(
    name: str,
    data: Path,
    out: Path,
    *,
    assignments: Sequence[str] = (),
    ranges: Sequence[str] = (),
    store: Path | None = None,
    trials: int = 20,
    folds: int = 3,
    storage: str | None = None,
    study: str = "search",
    jobs: int = 1,
    say: Say,
) -> Path:
    """Search the settings of a recipe, or go on with a search that was stopped or that others share.

    Args:
        name: of the recipe, or the path of a user's own.
        data: the recipe's data.
        out: folder for the trials as CSV, the best recipe, and the storage unless another is given.
        assignments: settings that are given, as `name=value`.
        ranges: what is searched besides or otherwise than the recipe says, as `name=low:high`.
        store: where the arrays of the patients are kept, if not in memory.
        trials: how many are wanted, those that are done included.
        folds: parts of the patients, by each of which a trial is scored.
        storage: URL of a database that several commands share; None for a file in `out`.
        study: name of the search in it.
        jobs: processes that work on trials at a time.
        say: prints a line.

    Returns:
        The recipe file with the best settings.

    Raises:
        InputError: nothing to search, data that cannot be used, a storage that cannot be reached or has another
            search, or no trial that can be trained.
    """
    from .search import Search, development, work
    from .search_workers import work_together
    from .storages import file_url
    from .studies import Study

    if launched_processes() > 1:
        raise InputError("chiasm tune starts its own processes: give --jobs, and leave the launcher out.")
    recipe = load_recipe(name, assignments, store=store)
    searched = searched_settings(recipe, assignments, ranges)
    _check_folder(out)
    require_whole("trials", trials, least=1)
    require_whole("folds", folds, least=2)
    search = Search(recipe, searched, development(recipe, data, searched), folds, trials)
    say(search.cohort.attrition.to_string(index=False))
    # The division is found to be possible before anything is written.
    say(f"{len(search.parts)} folds of {search.cohort.subjects} training and validation patients, no held-out ones")
    out.mkdir(parents=True, exist_ok=True)
    open_study = partial(
        Study,
        storage or file_url(out / STORAGE),
        name=study,
        asked=search.asked(),
        maximize=bool(search.binary),
        workers=out / WORKERS,
    )
    with open_study() as opened, progress_bar("searching", trials) as advance:
        _say_plan(search, opened, say)
        news = _News(search, opened, out, say, advance)
        try:
            if jobs > 1:
                work_together(search, open_study, opened, jobs=jobs, tell=news.tell)
            else:
                work(search, opened, tell=news.tell)
        finally:
            news.tell()
        return _finish(search, opened, out, data, say)


def _check_folder(out: Path) -> None:
    """Raise `InputError` or `OSError` before anything is computed if results cannot be written there."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file. Give a folder as --out.")
    there = {path.name for path in out.iterdir()} if out.exists() else set()
    visible = {name for name in there if not name.startswith(".")}
    if visible and not visible & {TABLE, STORAGE, WORKERS}:
        raise InputError(f"{out} exists and is no search of chiasm. Give another --out.")


def _say_plan(search: Search, study: Study, say: Say) -> None:
    say(f"score: {search.objective}")
    for name, one in search.searched.items():
        say(f"  {name}: {one}")
    if search.recipe.is_cross_validated:
        say(
            "This recipe is scored by cross-validation of all its patients, among them those of the search: with the "
            "settings found that score will be too good."
        )
    done = sum(trial.state.is_finished() for trial in study.standing.values())
    if done:
        say(f"{study.where} holds this search already: {done} trials are done, and it goes on")


class _News:
    """What has come of a search since it was last told: said by line, and written."""

    def __init__(self, search: Search, study: Study, out: Path, say: Say, advance: Callable[[int], None]) -> None:
        self._search, self._study, self._out, self._say, self._advance = search, study, out, say, advance
        self._told = {slot for slot, trial in study.standing.items() if trial.state.is_finished()}
        advance(len(self._told))
        write_results(search, study, out)

    def tell(self) -> None:
        """Tell of the trials that were finished, by whatever worker."""
        from .best_recipe import as_trial

        finished = {slot: trial for slot, trial in self._study.standing.items() if trial.state.is_finished()}
        new = sorted(set(finished) - self._told)
        if not new:
            return
        for slot in new:
            self._say(_line(as_trial(finished[slot]), self._search))
        self._told |= set(new)
        self._advance(len(new))
        write_results(self._search, self._study, self._out)


def _line(trial: Trial, search: Search) -> str:
    """What is said of a trial that is finished."""
    what = {
        "done": f"{search.score} {trial.score:.4f}",
        "pruned": f"{search.score} {trial.score:.4f} after {trial.folds} of {search.folds} folds, given up",
    }.get(trial.end, f"cannot be trained: {trial.reason}")
    settings = ", ".join(f"{name}={value}" for name, value in trial.settings.items())
    own = " (the recipe's own)" if trial.number == 1 and search.own == trial.settings else ""
    return f"  trial {trial.number} of {search.trials}: {what}; {settings}{own}"


def write_results(search: Search, study: Study, out: Path) -> None:
    """Write the trials so far as CSV, and the best of them, if there is one, as a recipe file."""
    from ..fusion.artifact import write_whole
    from .best_recipe import ranked, recipe_text, trials_table

    write_whole(out / TABLE, trials_table(study, search).to_csv(index=False))
    best = ranked(study)
    if best:
        first = next((own for own in best if own.number == 1 and search.own == own.settings), None)
        tried = sum(trial.state.is_finished() for trial in study.standing.values())
        path = out / RECIPE
        write_whole(path, recipe_text(search, best[0], trials=tried, first=first, path=path))


def _finish(search: Search, study: Study, out: Path, data: Path, say: Say) -> Path:
    from .best_recipe import ranked, ranked_table, unwritten

    best = ranked(study)
    assert best, "the first trial is trained on all folds, or ends the search"
    say("\n" + ranked_table(best, search, _SHOWN))
    say(
        f"\nTrial {best[0].number} is best, and flattered by being the best of {len(study.standing)}: chiasm evaluate "
        "tells what it is worth on held-out patients."
    )
    say(f"All trials are in {out / TABLE}, the best settings are the recipe {out / RECIPE}.")
    left_out = "".join(f" --set {name}=..." for name in unwritten(search))
    say(f"Next: chiasm train {out / RECIPE} --data {data} --out RUN{left_out}")
    return out / RECIPE
