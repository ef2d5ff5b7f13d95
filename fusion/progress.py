"""A progress bar for long work."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(task: str, total: int, *, show: bool) -> Iterator[Callable[[int], None]]:
    """Show how far a task is; gives a function that is told how many steps were done.

    Args:
        task: what is being done, in a word or two.
        total: steps in all.
        show: False for no bar at all; none is drawn either where standard error is no terminal.
    """
    if not show:
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task(task, total=total)
        yield lambda done: progress.advance(bar, done)
