"""What is watched while mutants are read: seconds of the processor, memory, and what came of each kind."""

from __future__ import annotations

import ctypes
import gc
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

ENDS = ("read", "refused")
"""How a mutant may end; all else is a defect."""


def peak_bytes() -> int:
    """The largest resident memory of this process since it was last reset (VmHWM of Linux)."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def hand_back() -> None:
    """Give memory that is free back to the system (Linux with glibc).

    What one mutant leaves behind would otherwise be taken up by the next unseen, as if it were no memory.
    """
    gc.collect()
    pa.default_memory_pool().release_unused()
    ctypes.CDLL(None).malloc_trim(0)


@contextmanager
def alarmed(seconds: float) -> Iterator[None]:
    """An end to whatever takes too much of the processor; code in C cannot be stopped so, and shows in the seconds."""

    def stop(*_: object) -> None:
        # Not an error that a reader would take for one of the file's.
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


@dataclass
class Watch:
    """Reads mutants one after the other, and keeps a tally.

    Args:
        most_seconds: of one processor, which other programs do not change.
        most_bytes: that reading may take beside what was there before.
        report: whether to tell on the way how far it is.
    """

    most_seconds: float
    most_bytes: int
    report: bool = False
    found: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By kind of mutant and how it ended: read, refused or defect."""
    slowest: tuple[float, str] = (0.0, "")
    largest: tuple[int, str] = (0, "")

    def take(self, number: int, kind: str, outcome: Callable[[], str]) -> None:
        """Note what came of a mutant; a defect is printed."""
        result, seconds, more = self._watched(outcome)
        if seconds > self.most_seconds:
            # What a machine that is shared does with its clocks, it does not do twice.
            result, seconds, more = self._watched(outcome)
        if seconds > self.most_seconds or more > self.most_bytes:
            result = f"took {seconds:.1f} s and {more / 2**20:.0f} MiB"
        self.slowest, self.largest = max(self.slowest, (seconds, kind)), max(self.largest, (more, kind))
        self.found[kind, result if result in ENDS else "defect"] += 1
        if result not in ENDS:
            print(f"mutant {number} ({kind}): {result}", flush=True)
        if self.report and number % 500 == 499:
            print(f"mutant {number}, slowest {self.slowest}, largest {self.largest}", file=sys.stderr, flush=True)

    def _watched(self, outcome: Callable[[], str]) -> tuple[str, float, int]:
        hand_back()
        # Resets the peak (Linux).
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        before, start = peak_bytes(), time.process_time()
        try:
            with alarmed(4 * self.most_seconds):
                result = outcome()
        except (Exception, KeyboardInterrupt) as error:
            result = f"raised {type(error).__name__}: {str(error)[:300]!r}"
        return result, time.process_time() - start, peak_bytes() - before

    def require_sound(self, refused: int) -> None:
        """Fail at a defect, or where too few mutants were refused for the rest to mean anything."""
        assert not {kind for kind, result in self.found if result == "defect"}
        assert sum(count for (_, result), count in self.found.items() if result == "refused") > refused


def by_hand(run: Callable[[int, Path, int], Watch]) -> None:
    """Run as many mutants as the command line says, from the one that it says, and tell what came of them."""
    # What the imports made is no garbage, and need not be looked through after each mutant.
    gc.freeze()
    count, first = (int(word) for word in [*sys.argv[1:], "0"][:2])
    with tempfile.TemporaryDirectory() as scratch:
        watch = run(count, Path(scratch), first)
    print(f"slowest {watch.slowest[0]:.2f} s ({watch.slowest[1]}); most memory {watch.largest[0] / 2**20:.0f} MiB")
    results: Counter[str] = Counter()
    for kind in sorted({kind for kind, _ in watch.found}):
        print(f"{kind:>24}: " + ", ".join(f"{watch.found[kind, end]} {end}" for end in (*ENDS, "defect")))
    for (_, end), number in watch.found.items():
        results[end] += number
    print(dict(results))
    sys.exit(results["defect"] > 0)
