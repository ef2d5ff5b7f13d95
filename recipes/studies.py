"""A study: the trials of a search, in a storage that several workers share and that a stopped search goes on from.

Optuna keeps the trials. What is added here: a trial belongs to a slot, of which there are as many as trials
are wanted. Its draws are keyed by the seed and the slot, and a slot whose worker died is worked on again.
"""

from __future__ import annotations

import json
import secrets
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import optuna
from filelock import FileLock, Timeout
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from ..datasets.errors import InputError
from .storages import open_storage

BEAT_S = 10.0
"""Seconds between the signs of life that a worker gives while it works on a trial."""
GRACE_S = 60.0
"""Seconds without one after which it is taken for dead; time enough for a database that starts again."""
_UNPRUNED = 5
"""Trials that are done before any is given up as worse than half of them; Optuna's own number."""
RANDOM = 10
"""Trials that are done before draws depend on them; Optuna's own number."""
_ASKED = "search"


class Study:
    """The trials of a search.

    Args:
        url: SQLAlchemy's URL of the storage.
        name: of the study in it.
        asked: what must be equal for a search to go on, by what it is called in messages.
        maximize: whether a higher score is better.
        workers: a folder that tells workers of this machine that live from those that died.

    Raises:
        InputError: the storage cannot be opened, or has another search of this name.
    """

    def __init__(self, url: str, *, name: str, asked: Mapping[str, object], maximize: bool, workers: Path) -> None:
        self._storage, self.where = open_storage(url)
        self._workers, self._worker = workers, secrets.token_hex(8)
        self._lock = FileLock(workers / f"{self._worker}.lock")
        self._beats: dict[int, tuple[int, float]] = {}
        with self._talking():
            pruner = optuna.pruners.MedianPruner(n_startup_trials=_UNPRUNED)
            self._study = optuna.create_study(
                storage=self._storage,
                study_name=name,
                direction="maximize" if maximize else "minimize",
                pruner=pruner,
                load_if_exists=True,
            )
            self._refuse_others(name, json.loads(json.dumps(asked)))

    def __enter__(self) -> Study:
        return self

    def __exit__(self, *_: object) -> None:
        self._storage.remove_session()
        if self._lock.is_locked:
            self._lock.release()
            Path(self._lock.lock_file).unlink(missing_ok=True)

    def _refuse_others(self, name: str, asked: dict[str, object]) -> None:
        if _ASKED not in self._study.user_attrs:
            self._study.set_user_attr(_ASKED, asked)
        earlier = self._study.user_attrs[_ASKED]
        other = [part for part, value in asked.items() if earlier.get(part) != value]
        if other:
            raise InputError(
                f"The study {name} in {self.where} is a search with other {other[0]}. Give what it was begun with to "
                "go on with it; or to begin another search, another --out, or another --study where you gave --storage."
            )

    @property
    def trials(self) -> list[FrozenTrial]:
        """All trials, those of dead workers too, in the order in which they were begun."""
        with self._talking():
            return [trial for trial in self._study.get_trials(deepcopy=False) if "slot" in trial.user_attrs]

    @property
    def standing(self) -> dict[int, FrozenTrial]:
        """The trials that count, by slot: neither those of dead workers nor second ones of a slot."""
        standing: dict[int, FrozenTrial] = {}
        for trial in self.trials:
            if trial.state != TrialState.FAIL:
                standing.setdefault(trial.user_attrs["slot"], trial)
        return standing

    def is_better(self, score: float) -> bool:
        """Whether a score is better than that of all finished trials."""
        done = [trial.value for trial in self.standing.values() if trial.state == TrialState.COMPLETE]
        return all(score > value if self.maximizes else score < value for value in done)

    @property
    def maximizes(self) -> bool:
        return self._study.direction == optuna.study.StudyDirection.MAXIMIZE

    def free_slot(self, wanted: int) -> int | None:
        """A slot below `wanted` that nobody has done or works on, other than the dead; None where there is none."""
        self._bury()
        standing = self.standing
        return next((slot for slot in range(wanted) if slot not in standing), None)

    def is_done(self, wanted: int) -> bool:
        """Whether the trials of all slots below `wanted` are finished."""
        standing = self.standing
        return all(slot in standing and standing[slot].state.is_finished() for slot in range(wanted))

    def run(
        self, slot: int, objective: Callable[[optuna.Trial], float], *, seed: int, fixed: Mapping[str, object]
    ) -> None:
        """Work on a slot, unless another worker was quicker to take it.

        Args:
            slot: as `free_slot` gave it.
            objective: draws the settings of a trial and gives its score; raises `TrialPruned` to give it up.
            seed: what is drawn depends on it, on the slot, and on the trials that are done.
            fixed: settings of the trial that are not drawn.
        """
        with self._talking():
            trial = self._claim(slot, seed, fixed)
            if trial is None:
                return
            state, score = TrialState.FAIL, None
            with self._beating(trial._trial_id):
                try:
                    score = objective(trial)
                    state = TrialState.COMPLETE
                except optuna.TrialPruned:
                    state = TrialState.PRUNED
                except UpdateFinishedTrialError:
                    # This process slept for so long that others took it for dead.
                    pass
                finally:
                    self._study.tell(trial, score, state=state, skip_if_finished=True)

    def _claim(self, slot: int, seed: int, fixed: Mapping[str, object]) -> optuna.Trial | None:
        if not self._lock.is_locked:
            self._workers.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
        claim = secrets.token_hex(8)
        told = {"slot": slot, "worker": self._worker, "claim": claim, "beat": 0}
        given = {"fixed_params": dict(fixed)} if fixed else {}
        self._study.add_trial(
            optuna.create_trial(state=TrialState.RUNNING, user_attrs=told, system_attrs=given),
        )
        mine = next(trial for trial in self.trials if trial.user_attrs["claim"] == claim)
        if self.standing[slot].number != mine.number:
            self._study.tell(mine.number, state=TrialState.FAIL)
            return None
        key = np.random.SeedSequence((seed, slot)).generate_state(1)[0]
        self._study.sampler = optuna.samplers.TPESampler(seed=int(key), n_startup_trials=RANDOM)
        return optuna.Trial(self._study, mine._trial_id)

    @contextmanager
    def _beating(self, trial: int) -> Iterator[None]:
        """Give signs of life of a trial while it is worked on."""
        done = threading.Event()

        def beat() -> None:
            number = 0
            while not done.wait(BEAT_S):
                number += 1
                try:
                    self._storage.set_trial_user_attr(trial, "beat", number)
                except UpdateFinishedTrialError:
                    break
                except (SQLAlchemyError, StorageInternalError):
                    # A database that starts again may be back at the next beat.
                    continue
            self._storage.remove_session()

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def _bury(self) -> None:
        """Mark the running trials of dead workers as failed."""
        for trial in self.trials:
            if trial.state == TrialState.RUNNING and self._is_dead(trial):
                with self._talking():
                    try:
                        self._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
                    except UpdateFinishedTrialError:
                        # Another worker found it, or it came to its end after all.
                        continue

    def _is_dead(self, trial: FrozenTrial) -> bool:
        worker = trial.user_attrs["worker"]
        if worker == self._worker:
            return False
        path = self._workers / f"{worker}.lock"
        if path.is_file():
            # A lock goes with the process that held it.
            lock = FileLock(path)
            try:
                with lock.acquire(timeout=0):
                    path.unlink(missing_ok=True)
                    return True
            except Timeout:
                return False
        beat, now = trial.user_attrs["beat"], time.monotonic()
        if self._beats.get(trial._trial_id, (None,))[0] != beat:
            self._beats[trial._trial_id] = beat, now
        return now - self._beats[trial._trial_id][1] > GRACE_S

    @contextmanager
    def _talking(self) -> Iterator[None]:
        """Keep Optuna silent, and turn what a storage raises into an error that says what is kept."""
        optuna_is = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                yield
        except (SQLAlchemyError, StorageInternalError) as error:
            cause = error.__cause__ if isinstance(error, StorageInternalError) else error
            raise InputError(
                f"The storage {self.where} went away or cannot be written ({type(cause).__name__}). Finished trials "
                "are kept: the same command goes on from there."
            ) from None
        finally:
            optuna.logging.set_verbosity(optuna_is)
