"""`chiasm demo`: the whole of chiasm on a hospital that it makes up."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .comparison import Comparison, compare, write_comparison
from .preparing import prepare_parts
from .recipe import load_recipe
from .scoring import all_remarks, curves
from .variants import FUSED, usual_jobs, variants

if TYPE_CHECKING:
    import pandas as pd

    from ..datasets import Cohort
    from ..datasets.truth import Truth
    from ..fusion import FusionModel
    from ..fusion.report import Contributions

REACHABLE = "best reachable"


def demonstrate(
    out: Path,
    *,
    patients: int,
    assignments: Sequence[str],
    resamples: int,
    jobs: int | None = None,
    say: Callable[[object], None],
) -> Comparison:
    """Make a hospital, train, compare, explain one patient, report; print where everything lies.

    Args:
        out: folder; gets `hospital/`, `prepared/`, `model/`, two tables, `report.html`.
        patients: how many to make up.
        assignments: settings of the demo recipe, as name=value.
        resamples: of patients, for the intervals.
        jobs: models that are trained at a time; `usual_jobs()` unless given.
        say: prints a line.
    """
    from ..datasets.synthetic import write_hospital
    from ..datasets.truth import draw_truth
    from ..fusion.processes import is_main_process, wait_for_everyone

    began = time.perf_counter()
    recipe = load_recipe("demo", assignments)
    say(f"1. A synthetic hospital of {patients} patients: {out / 'hospital'}")
    truth = draw_truth(patients, seed=recipe.settings.seed)
    if is_main_process():
        # What a kill left half-written; no other command writes into the folder.
        for left in out.glob(".hospital-*"):
            shutil.rmtree(left, ignore_errors=True)
        write_hospital(out / "hospital", patients=patients, seed=recipe.settings.seed)
    wait_for_everyone()
    cohort = recipe.read(out / "hospital").with_store(out / "prepared")
    say(cohort.attrition.to_string(index=False))
    parts = recipe.divide(cohort)
    # Decoded once, for all models.
    prepare_parts(recipe, parts)

    say("\n2. A fused model, each of its parts alone, and plain concatenation, on the same patients")
    models = variants(recipe, parts[0], pairs=False, heads=["concatenation"])
    comparison = compare(recipe, parts, models, resamples=resamples, jobs=jobs or usual_jobs(), say=say)
    test = parts[2]
    comparison = comparison.with_model(REACHABLE, _ideal_risks(truth, test, comparison.outcome))
    if not is_main_process():
        return comparison
    models[FUSED].save(out / "model")
    write_comparison(comparison, out)

    say(f"\n3. On {len(test)} held-out patients; {REACHABLE}: by an ideal reader of what these patients have")
    say(comparison.table.to_string(index=False))
    say(comparison.verdict)
    say(comparison.missingness.verdict)
    for remark in all_remarks(test, comparison.remarks):
        say(f"left out: {remark}")

    shown = explained_patient(models[FUSED], test, comparison.outcome)
    say(f"\n4. {shown.patient}: risk {shown.risk:.2f}, where the baseline is {shown.baseline:.2f}")
    for name, value in shown.values.items():
        say(f"   {name:<8} {value:+.3f}")

    _report(out, comparison, shown)
    _say_places(out, say)
    say(f"done in {time.perf_counter() - began:.0f} s")
    return comparison


def _say_places(out: Path, say: Callable[[object], None]) -> None:
    say("\n5. Where everything lies")
    places = {
        "hospital": "the data",
        "prepared": "its images, decoded once",
        "model": "the fused model",
        "comparison.csv": "the table above",
        "missingness.csv": "how the score falls as each modality goes missing",
        "report.html": "the report; open it in a browser",
    }
    for name, what in places.items():
        say(f"   {out / name}: {what}")


def _ideal_risks(truth: Truth, test: Cohort, outcome: str) -> pd.DataFrame:
    """What an ideal reader of the same files would predict, as `predict` gives it."""
    reachable = truth.table.set_index("subject_id")["reachable_risk"]
    keys = test.outcomes[["subject_id", "prediction_time"]]
    return keys.assign(outcome=outcome, risk=keys["subject_id"].map(reachable), status="ok")


def explained_patient(model: FusionModel, test: Cohort, outcome: str) -> Contributions:
    """The contributions of the modalities to the risk of one patient who has all of them."""
    from ..fusion import contributions
    from ..fusion.report import Contributions

    whole = test.has_input().all(axis=1).to_numpy()
    candidates = test.keep(whole, why="all modalities") if whole.any() else test
    table = contributions(model, candidates)
    table = table[table["outcome"] == outcome]
    # The one at the highest risk: there is most to explain.
    highest = table["risk"].idxmax()
    keys = ["subject_id", "prediction_time"]
    own = table[(table[keys] == table.loc[highest, keys]).all(axis=1)]
    return Contributions(
        outcome=outcome,
        baseline=float(own["baseline"].iloc[0]),
        values={name: float(value) for name, value in zip(own["modality"], own["contribution"], strict=True)},
        risk=float(own["risk"].iloc[0]),
        patient="the held-out patient at the highest risk, of those with all modalities",
    )


def _report(out: Path, comparison: Comparison, shown: Contributions) -> None:
    from ..fusion.report import Report, write_report

    test = comparison.test
    reachable = comparison.evaluations[REACHABLE].value(comparison.outcome, "AUROC")
    drawn = {name: comparison.risks[name] for name in (FUSED, REACHABLE)}
    report = Report(
        title="A synthetic hospital",
        evaluations=comparison.evaluations,
        summary=f"{comparison.verdict} An ideal reader of the same inputs would reach AUROC {reachable:.3f}.",
        synthetic=True,
        facts={"patients held out": str(test.subjects)},
        differences={f"{FUSED} less {name}": gap for name, gap in comparison.differences.items()},
        curves=curves(drawn, test, comparison.outcome),
        curves_outcome=comparison.outcome,
        missingness=comparison.missingness.table,
        missingness_verdict=comparison.missingness.verdict,
        attrition=test.attrition,
        remarks=all_remarks(test, comparison.remarks),
        contributions=shown,
    )
    write_report(report, out / "report.html")
