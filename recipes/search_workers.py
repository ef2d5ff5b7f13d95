"""Several processes of one machine that work on the trials of a search."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING

from ..datasets.errors import InputError
from .search import PAUSE_S, Search, work

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .studies import Study

START = "spawn"
"""How processes are started: anew, since threads and GPUs do not outlive a fork."""
_PATIENCE_S = 30


@dataclass(frozen=True)
class _Worker:
    process: BaseProcess
    said: Connection
    """Where an error of it comes."""


def work_together(
    search: Search, open_study: Callable[[], Study], study: Study, *, jobs: int, tell: Callable[[], None]
) -> None:
    """Let processes work on the trials of a search until all are done.

    A process that is killed, as by a machine that has no memory left, leaves its trial to the others.

    Args:
        search: what is searched; can be pickled, as `open_study` can.
        open_study: opens the storage in a process of its own.
        study: the same, in this one.
        jobs: how many processes.
        tell: called when there may be something new.

    Raises:
        InputError: what a process raised, or all of them were killed.
    """
    with _started(search, open_study, jobs) as workers:
        running, lost = list(workers), 0
        while running:
            time.sleep(PAUSE_S)
            for worker in list(running):
                # Looked at first, so that the last words of one that ended are heard.
                lives = worker.process.is_alive()
                _raise_what_it_says(worker)
                if not lives:
                    running.remove(worker)
                    lost += worker.process.exitcode != 0
            tell()
    if not study.is_done(search.trials):
        raise InputError(
            f"{lost} of {jobs} processes ended before the search did, as happens where memory runs out. Finished "
            "trials are kept: the same command goes on from there. Give fewer --jobs."
        )


def _raise_what_it_says(worker: _Worker) -> None:
    try:
        if worker.said.poll():
            raise InputError(worker.said.recv())
    except EOFError:
        # It ended, and had nothing to say.
        return


@contextmanager
def _started(search: Search, open_study: Callable[[], Study], jobs: int) -> Iterator[list[_Worker]]:
    context = multiprocessing.get_context(START)
    workers = []
    try:
        for number in range(jobs):
            hears, says = context.Pipe(duplex=False)
            process = context.Process(target=_work, args=(search, open_study, number, jobs, says))
            process.start()
            says.close()
            workers.append(_Worker(process, hears))
        yield workers
    finally:
        # After an error or Ctrl-C: what they work on is marked when the search goes on.
        for worker in workers:
            worker.process.terminate()
        for worker in workers:
            worker.process.join(_PATIENCE_S)
            worker.said.close()


def _work(search: Search, open_study: Callable[[], Study], number: int, jobs: int, says: Connection) -> None:
    import torch
    from joblib import parallel_config

    threads = max(1, (os.cpu_count() or 1) // jobs)
    torch.set_num_threads(min(torch.get_num_threads(), threads))
    if torch.accelerator.is_available():
        torch.accelerator.set_device_index(number % torch.accelerator.device_count())
    parent = multiprocessing.parent_process()
    try:
        with open_study() as study, parallel_config("loky", n_jobs=threads):
            work(search, study, tell=lambda: None, alive=parent.is_alive)
    except InputError as error:
        says.send(str(error))
    except KeyboardInterrupt:
        # Whoever started the search says so.
        raise SystemExit(130) from None
