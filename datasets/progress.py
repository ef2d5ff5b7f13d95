"""A progress bar for long work."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_allowed = ContextVar("progress", default=True)


@contextmanager
def showing_progress(show: bool) -> Iterator[None]:
    """Whether work inside the block may show bars."""
    before = _allowed.set(show)
    try:
        yield
    finally:
        _allowed.reset(before)


@contextmanager
def progress_bar(task: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show how far a task is; gives a function that is told how many steps were done.

    None is drawn inside `showing_progress(False)`, in any but the first of several processes of a
    launcher, and where standard error is no terminal.

    Args:
        task: what is being done, in a word or two.
        total: steps in all.
    """
    if not _allowed.get() or os.environ.get("RANK", "0") != "0":
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal and not console.is_jupyter:
        yield lambda _: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task(task, total=total)
        yield lambda done: progress.advance(bar, done)
