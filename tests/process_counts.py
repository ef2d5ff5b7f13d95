"""One training by any number of processes: every number of patients, every batch size, the same losses and risks.

By hand: `python -m tests.process_counts --processes 1 2 3 4 --patients 40 --batches 8`.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from chiasm.datasets import Cohort, InputError
from chiasm.encoders import LabAugmentation, LabEncoder, StaticEncoder
from chiasm.fusion import ConcatenationFusion, FusionModel, fit, predict

from .crashes import end
from .workers import start

Told = dict[str, tuple[float, list[float]] | str]
"""By patients and batch size: the training losses' mean, and the risks; or why nothing was trained."""
_PATIENCE = 60
"""Seconds a training after which the processes count as hanging."""


def ward(patients: int) -> Cohort:
    """So many patients; one in three has no labs, and a batch may have none."""
    numbers = np.arange(patients)
    now = pd.Timestamp("2024-03-01 12:00")
    outcomes = pd.DataFrame({"subject_id": numbers, "prediction_time": now, "days": np.sin(numbers) * 3 + 5})
    measured = numbers[numbers % 3 > 0].repeat(4)
    labs = pd.DataFrame(
        {
            "subject_id": measured,
            "time": now - pd.to_timedelta(np.tile([1.0, 3.0, 9.0, 30.0], len(measured) // 4), "h"),
            "code": np.tile(["lactate", "urea", "lactate", "urea"], len(measured) // 4),
            "value": np.cos(np.arange(len(measured))) + 3,
        }
    )
    static = pd.DataFrame({"subject_id": numbers, "age": 40.0 + numbers})
    return Cohort(outcomes=outcomes, labs=labs, static=static)


def train_all(sizes: Sequence[int], batches: Sequence[int], accumulate: int, told: Path) -> None:
    """Train on every number of patients with every batch size, in one program; each process tells what it got."""
    results: Told = {}
    for patients in sizes:
        cohort = ward(patients)
        for batch in batches:
            # Nothing is drawn at random in training, so that all that may differ is who computes what.
            model = FusionModel(
                labs=LabEncoder(8, rare=1, dropout=0, summary_dropout=0, augmentation=LabAugmentation(dropped=0)),
                static=StaticEncoder(8, dropout=0),
                fusion=ConcatenationFusion(8, dropout=0),
                outcomes=cohort.outcome_kinds,
                modality_dropout=0,
            )
            settings = {"epochs": 1, "batch_size": batch, "optimizer": "sgd", "learning_rate": 0.01, "average": 0}
            settings["accumulate"] = accumulate
            try:
                history = fit(model, cohort, progress=False, **settings)
            except InputError as error:
                results[f"{patients}/{batch}"] = str(error)
                continue
            risks = predict(model, cohort)
            assert not risks.duplicated(["subject_id", "prediction_time"]).any()
            assert len(risks) == patients
            losses = [record["train_loss"] for record in history.epochs]
            results[f"{patients}/{batch}"] = (float(np.mean(losses)), risks["risk"].tolist())
    (told / f"{os.environ.get('RANK', '0')}.json").write_text(json.dumps(results))


def differences(
    folder: Path,
    processes: Sequence[int],
    sizes: Sequence[int],
    batches: Sequence[int],
    *,
    accumulate: int = 1,
    say: Callable[[str], None] = lambda _: None,
) -> list[str]:
    """What was not as with one process; relative differences of losses and of risks of more than 1e-5 count.

    Args:
        folder: an empty one.
        processes: how many train together, one after the other.
        sizes, batches: numbers of patients, and of samples an update.
        accumulate: parts that each of several processes divides its share of a batch into.
        say: told how long each number of processes took.
    """
    wrong: list[str] = []
    expected: Told = {}
    for count in (1, *(count for count in processes if count > 1)):
        place = folder / str(count)
        place.mkdir(exist_ok=True)
        parts = 1 if count == 1 else accumulate
        began = time.monotonic()
        trained = start(train_all, sizes, batches, parts, place, processes=count, said=place / "said")
        codes = end(trained, patience=_PATIENCE * (1 + len(sizes) * len(batches)))
        if set(codes) != {0}:
            said = (place / "said" / "0.txt").read_text()[-500:]
            return [*wrong, f"{count} processes ended with {codes}: {said}"]
        told = [json.loads((place / f"{rank}.json").read_text()) for rank in range(count)]
        expected = expected or told[0]
        unlike = [
            f"{count} processes, process {rank}, patients/batch {case}"
            for rank, own in enumerate(told)
            for case, result in own.items()
            if not _same(result, expected[case])
        ]
        say(f"{count} process(es): {len(unlike)} differ; {time.monotonic() - began:.0f} s")
        wrong += unlike
    return wrong


def _same(result: tuple[float, list[float]] | str, expected: tuple[float, list[float]] | str) -> bool:
    """Whether losses and risks are the same, up to rounding, or the message is."""
    if isinstance(result, str) or isinstance(expected, str):
        return result == expected
    return all(np.allclose(own, theirs, rtol=1e-5, atol=0) for own, theirs in zip(result, expected, strict=True))


def main() -> None:
    """The long form."""
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--processes", type=int, nargs="+", default=[1, 2, 3, 4])
    asked.add_argument("--patients", type=int, default=40, help="every number up to this")
    asked.add_argument("--batches", type=int, default=8, help="every size up to this")
    given = asked.parse_args()
    sizes, batches = range(1, given.patients + 1), range(1, given.batches + 1)
    with tempfile.TemporaryDirectory() as folder:
        wrong = differences(Path(folder), given.processes, sizes, batches, say=partial(print, flush=True))
    cases = len(sizes) * len(batches)
    print("\n".join([*wrong, f"{cases} cases by {given.processes} processes: {len(wrong)} differ from one process"]))
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
