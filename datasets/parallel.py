"""The same work on many items, in chunks, wherever joblib has workers: processes, threads, Ray, Dask, Spark."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import TypeVar

from .progress import progress_bar

Item = TypeVar("Item")
Result = TypeVar("Result")
# Starting worker processes costs about two seconds, as much as reading this many small files.
WORTH_PROCESSES = 256
# What a run that is killed loses is at most a chunk a worker; what a chunk costs beside its work is about 2 ms.
CHUNK = 32
# Where results come only when all of a call are there: chunks a worker in one call.
_CHUNKS_A_CALL = 8


def in_parallel(
    work: Callable[[list[Item]], list[Result]],
    items: Sequence[Item],
    task: str,
    *,
    chunk: int = CHUNK,
    of: Sequence[Item] | None = None,
) -> Iterator[list[Result]]:
    """The results of `work` on chunks of the items, each chunk's as soon as they are there, in any order.

    Many items are shared out among processes, one a processor; a few are worked on here. Inside
    `joblib.parallel_config(...)`, its backend and number of workers are taken.

    Args:
        work: from some items to one result an item, in their order; can be pickled.
        items: what is to be worked on.
        task: what the progress bar says, in a word or two.
        chunk: items at most that are worked on at a time.
        of: all items, of which those are what is left to do. Then an item comes in a chunk with the same others
            wherever work was stopped, and what depends on them in its last bits is the same.
    """
    from joblib import effective_n_jobs
    from joblib.parallel import get_active_backend

    backend, jobs = get_active_backend()
    if jobs is None:
        jobs = -1 if len(items) >= WORTH_PROCESSES else 1
    workers = effective_n_jobs(jobs)
    # Small enough that no worker is left alone with the last one.
    whole = items if of is None else of
    size = max(1, min(chunk, len(whole) // (4 * workers)))
    chunks = [list(whole[first : first + size]) for first in range(0, len(whole), size)]
    if of is not None:
        left = set(items)
        chunks = [rest for own in chunks if (rest := [item for item in own if item in left])]
    share = _as_they_come if backend.supports_return_generator else _call_by_call
    if workers == 1:
        share = _in_turn
    with progress_bar(task, len(items)) as advance, closing(share(work, chunks, workers)) as results:
        for result in results:
            yield result
            advance(len(result))


def _in_turn(work: Callable, chunks: list[list], _: int) -> Iterator[list]:
    yield from map(work, chunks)


def _as_they_come(work: Callable, chunks: list[list], workers: int) -> Iterator[list]:
    from joblib import Parallel, delayed

    parallel = Parallel(workers, batch_size=1, return_as="generator_unordered")
    results = parallel(delayed(work)(chunk) for chunk in chunks)
    try:
        for result in results:  # noqa: UP028 - `yield from` would close them before the filter below is there
            yield result
    finally:
        with warnings.catch_warnings():
            # Whoever stops at a failure knows that the other chunks are not done.
            warnings.filterwarnings("ignore", message=".*tasks", category=UserWarning)
            results.close()


def _call_by_call(work: Callable, chunks: list[list], workers: int) -> Iterator[list]:
    from joblib import Parallel, delayed

    at_once = _CHUNKS_A_CALL * workers
    with Parallel(workers, batch_size=1) as parallel:
        for first in range(0, len(chunks), at_once):
            yield from parallel(delayed(work)(chunk) for chunk in chunks[first : first + at_once])
