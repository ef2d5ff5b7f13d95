"""Runs that are killed at random times, each gone on with to the weights of one that was not.

By hand: `python -m tests.crashes --kills 200 --pairs 50 --sharded 10`. It prints what it finds as it goes, and ends
with exit code 1 where a run was lost.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path

from chiasm.datasets.synthetic import write_hospital

from .workers import digest, start

SETTINGS = ("epochs=2", "width=16", "size=64", "batch_size=8")
_PATIENCE = 120.0
"""Seconds after which a run counts as hanging."""


def train_run(data: Path, folder: Path, timeout: float = 30, sharded: bool = False) -> None:
    """What `chiasm train demo` does, with a checkpoint after every update."""
    from chiasm.recipes.recipe import load_recipe
    from chiasm.recipes.runs import Run

    keeping = {"save_every": 0, "timeout": timeout, "sharded": sharded, "progress": False}
    Run(load_recipe("demo", SETTINGS), folder, keeping).train(data, say=lambda _: None)


def end(started: list[BaseProcess], *, patience: float = _PATIENCE) -> list[int | None]:
    """The exit codes of processes, after they ended by themselves; None of one that did not."""
    until = time.monotonic() + patience
    for process in started:
        process.join(max(0.1, until - time.monotonic()))
    codes = [process.exitcode for process in started]
    for process in started:
        process.kill()
    return codes


class Campaign:
    """One hospital, one run that nothing disturbed, and any number that are killed.

    Args:
        folder: an empty one.
        processes: that train together.
        sharded: whether weights are divided among them.
    """

    def __init__(self, folder: Path, *, processes: int = 1, sharded: bool = False) -> None:
        self.folder, self.processes, self.sharded, self.number = folder, processes, sharded, 0
        self.data = folder / "hospital"
        write_hospital(self.data, patients=40, seed=3, image_size=64)
        # The server of processes starts with the first one.
        end(start(print, said=folder / "said"))
        whole, began = folder / "whole", time.monotonic()
        codes = end(self.begin(whole))
        self.seconds = time.monotonic() - began
        assert set(codes) == {0}, (codes, self.said(whole))
        self.expected = digest(whole / "model")
        self.megabytes = sum(path.stat().st_size for path in whole.rglob("*")) / 1024**2
        """What a run needs at the least."""

    def begin(self, run: Path) -> list[BaseProcess]:
        said = run.with_name(f"{run.name}-said")
        return start(train_run, self.data, run, 30, self.sharded, processes=self.processes, said=said)

    def said(self, run: Path) -> str:
        """What the processes of a run wrote to standard error last."""
        return " | ".join(path.read_text()[-500:] for path in run.with_name(f"{run.name}-said").iterdir())

    def go_on(self, run: Path, what: str) -> str:
        """Go on with a run, and say what is wrong with what came of it; nothing if all is well."""
        codes = end(self.begin(run))
        if set(codes) != {0}:
            return f"exit codes {codes} after {what}: {self.said(run)}"
        return "" if digest(run / "model") == self.expected else f"other weights after {what}"

    def kill_once(self, after: float, number: int = signal.SIGKILL) -> str:
        """Kill a run, go on with it, and say what is wrong with what came of it; nothing if all is well.

        Args:
            after: seconds from its start.
            number: the signal.
        """
        self.number += 1
        run = self.folder / f"run{self.number}"
        started = self.begin(run)
        time.sleep(after)
        for process in started:
            if process.is_alive():
                os.kill(process.pid, number)
        if None in end(started):
            return f"hung after signal {number} at {after:.2f} s"
        return self.go_on(run, f"signal {number} at {after:.2f} s")

    def fill_disk_once(self, megabytes: float) -> str:
        """Train on a disk that is too small, and go on when it has grown."""
        self.number += 1
        with small_disk(self.folder / f"disk{self.number}", megabytes) as disk:
            codes, said = end(self.begin(disk / "run")), self.said(disk / "run")
            if set(codes) != {2} or "is full" not in said:
                return f"exit codes {codes} on a disk of {megabytes:.1f} MB: {said}"
            mount("-o", "remount,size=1g", disk)
            return self.go_on(disk / "run", f"a full disk of {megabytes:.1f} MB")

    def forbid_writing_once(self, after: float) -> str:
        """Train on a disk that becomes read-only, and go on when it can be written again."""
        self.number += 1
        with small_disk(self.folder / f"disk{self.number}", 1000) as disk:
            started = self.begin(disk / "run")
            time.sleep(after)
            # While a file is open for writing, the disk is busy.
            while mount("-o", "remount,ro", disk, check=False) and any(process.is_alive() for process in started):
                pass
            codes = end(started)
            mount("-o", "remount,rw", disk)
            # It may have been done before.
            if not set(codes) <= {0, 2}:
                return f"exit codes {codes} on a disk that became read-only: {self.said(disk / 'run')}"
            return self.go_on(disk / "run", f"a read-only disk at {after:.2f} s")

    def damage_once(self, chance: random.Random) -> str:
        """Train until some checkpoint, change one byte of it, and go on from the one before."""
        self.number += 1
        run = self.folder / f"run{self.number}"
        started = self.begin(run)
        while len(list((run / "checkpoints").glob("[0-9]*"))) < 2 and started[0].is_alive():
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.2 * self.seconds))
        for process in started:
            process.kill()
        end(started)
        newest = max((run / "checkpoints").glob("[0-9]*"))
        victim = chance.choice(sorted(newest.iterdir()))
        content = bytearray(victim.read_bytes())
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        victim.write_bytes(content)
        return self.go_on(run, f"a changed byte in {victim.name}")


def mount(*words: object, check: bool = True) -> int:
    """The exit code of mount."""
    return subprocess.run(["mount", *map(str, words)], check=check, capture_output=True).returncode


@contextmanager
def small_disk(folder: Path, megabytes: float) -> Iterator[Path]:
    """A file system of so many MB in memory; only root can make one."""
    folder.mkdir()
    mount("-t", "tmpfs", "-o", f"size={int(megabytes * 1024)}k", "tmpfs", folder)
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def main() -> None:
    """The long form."""
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--kills", type=int, default=200, help="in all")
    asked.add_argument("--pairs", type=int, default=50, help="of these, with two processes")
    asked.add_argument("--sharded", type=int, default=10, help="kills of two processes with divided weights, besides")
    asked.add_argument("--others", type=int, default=20, help="of SIGTERM, and of each kind of bad disk (as root)")
    asked.add_argument("--seed", type=int, default=0)
    given = asked.parse_args()
    chance, tried, lost = random.Random(given.seed), 0, 0
    kinds = {
        "1 process": ({}, given.kills - given.pairs, given.others),
        "2 processes": ({"processes": 2}, given.pairs, 0),
        "2 processes with divided weights": ({"processes": 2, "sharded": True}, given.sharded, 0),
    }
    for kind, (made, kills, others) in kinds.items():
        if not kills + others:
            continue
        with tempfile.TemporaryDirectory() as folder:
            campaign = Campaign(Path(folder), **made)
            print(f"{kind}: a run takes {campaign.seconds:.1f} s", flush=True)
            for name, (count, trial) in _trials(campaign, chance, kills, others).items():
                for number in range(count):
                    wrong = trial()
                    tried, lost = tried + 1, lost + bool(wrong)
                    print(f"{kind}, {name} {number + 1} of {count}: {wrong or 'gone on with'}", flush=True)
    print(f"{tried - lost} of {tried} runs ended with the weights of one that nothing disturbed")
    sys.exit(lost > 0)


def _trials(
    campaign: Campaign, chance: random.Random, kills: int, others: int
) -> dict[str, tuple[int, Callable[[], str]]]:
    """What befalls runs, by name: how often, and what tries it once."""
    seconds = campaign.seconds
    as_root = others if os.geteuid() == 0 else 0
    return {
        "kill": (kills, lambda: campaign.kill_once(chance.uniform(0, seconds))),
        "SIGTERM": (others, lambda: campaign.kill_once(chance.uniform(0.2, 1) * seconds, signal.SIGTERM)),
        "damaged checkpoint": (others, lambda: campaign.damage_once(chance)),
        "full disk": (as_root, lambda: campaign.fill_disk_once(chance.uniform(0.05, 0.9) * campaign.megabytes)),
        "read-only disk": (as_root, lambda: campaign.forbid_writing_once(chance.uniform(0.2, 1) * seconds)),
    }


if __name__ == "__main__":
    main()
