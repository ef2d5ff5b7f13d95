"""One HTML file that says how good a model is, on whom, and what one risk is made of."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ..datasets.errors import InputError
from .artifact import write_whole
from .evaluation import METRICS, Difference, Evaluation
from .metrics import calibration_bins

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito (2008): told apart in every common form of colour blindness, and on grey paper by the dashes.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
DASHES = ("-", "--", "-.", ":")
INK, FAINT = "#1b1f24", "#8a929b"

# What a reader compares first; the rest stands in the table of all metrics.
HEADLINE = {
    "binary": ("AUROC", "AUPRC", "Brier", "calibration slope"),
    "categorical": ("macro AUROC", "log loss", "Brier"),
    "continuous": ("MAE", "RMSE", "R2"),
}

# A risk rounded to three digits may differ from the sum of its parts by this much.
SUM_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Contributions:
    """What each modality added to one patient's risk, starting from the risk with no modality at all.

    `baseline` and `risk` are probabilities; `values` maps each modality to its Shapley value, the share
    by which it raises or lowers the risk. `patient` is how the patient is called in the report: a
    position or a pseudonym, and an identifier only if the user asked for that patient by it.

    Raises:
        InputError: no values, or baseline and values do not add up to the risk.

    Source: Shapley (1953); Lundberg and Lee, NeurIPS 2017, for their use as explanations.
    """

    outcome: str
    baseline: float
    values: Mapping[str, float]
    risk: float
    patient: str = "one patient"

    def __post_init__(self) -> None:
        total = self.baseline + sum(self.values.values())
        if not self.values or not abs(total - self.risk) <= SUM_TOLERANCE:
            raise InputError(
                f"contributions must add up to the risk: baseline {self.baseline:.4f} and "
                f"{len(self.values)} values give {total:.4f}, the risk is {self.risk:.4f}"
            )


@dataclass(frozen=True, eq=False)
class Report:
    """What a report shows; sections without content are left out.

    `evaluations` maps the name of each model to its evaluation, the model that the report is about
    first. `curves` maps names of models to (risks in [0, 1], labels 0 or 1) of `curves_outcome`, from
    `labelled_risks`. `missingness` has the columns model, withheld, share, AUROC, low and high, as
    `missing_curve` gives them. `attrition` has the columns step, patients, samples. `history` holds a mapping an
    epoch with epoch, train_loss and valid_loss. `facts` are short pairs such as the recipe and the
    seed; `remarks` sentences about the data, such as what was excluded. `synthetic` data are said to be so.
    """

    title: str
    evaluations: Mapping[str, Evaluation]
    summary: str = ""
    synthetic: bool = False
    facts: Mapping[str, str] = field(default_factory=dict)
    differences: Mapping[str, Difference] = field(default_factory=dict)
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    curves_outcome: str = ""
    missingness: pd.DataFrame | None = None
    missingness_verdict: str = ""
    attrition: pd.DataFrame | None = None
    remarks: Sequence[str] = ()
    history: Sequence[Mapping[str, float]] = ()
    contributions: Contributions | None = None


def write_report(report: Report, path: str | os.PathLike[str]) -> None:
    """Write a report as one HTML file that needs no other: tables, plots as inline SVG, no scripts.

    The file is written whole or not at all. It says that it is for research and no medical device, and
    whether the data are synthetic. Whatever text it is given is shown as text, never read as HTML.

    Raises:
        InputError: no evaluation, columns missing in `attrition`, `missingness` or `history`, curves whose risks
            are not in [0, 1] or whose labels are all the same.

    Example:
        >>> write_report(Report("ICU mortality", {"fused": evaluate(risks, test)}), "report.html")
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    if not report.evaluations:
        raise InputError("a report needs at least one evaluation: {name of the model: evaluate(risks, cohort)}")
    if report.attrition is not None:
        _check_keys(report.attrition.columns, ("step", "patients", "samples"), "the attrition log")
    if report.missingness is not None:
        expected = ("model", "withheld", "share", "AUROC", "low", "high")
        _check_keys(report.missingness.columns, expected, "the table of missing modalities")
    for epoch in report.history:
        _check_keys(epoch, ("epoch", "train_loss"), "an epoch of the training history")

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined
    )
    html = environment.get_template("report.html.jinja").render(
        report=report,
        first=next(iter(report.evaluations.values())),
        outcomes=[_outcome_tables(report.evaluations, outcome) for outcome in _outcomes(report.evaluations)],
        attrition=[] if report.attrition is None else report.attrition.to_dict("records"),
        plots=_plots(report),
    )
    write_whole(path, html)


def _outcomes(evaluations: Mapping[str, Evaluation]) -> list[str]:
    every = (outcome for evaluation in evaluations.values() for outcome in evaluation.counts["outcome"])
    return list(dict.fromkeys(every))


def _outcome_tables(evaluations: Mapping[str, Evaluation], outcome: str) -> dict[str, object]:
    counts = {}
    for model, evaluation in evaluations.items():
        row = evaluation.counts[evaluation.counts["outcome"] == outcome]
        if len(row):
            counts[model] = row.iloc[0].to_dict()
    kind = next(iter(counts.values()))["kind"]
    cells = {
        metric: {model: evaluations[model].cell(outcome, metric).partition(" ") for model in counts}
        for metric in METRICS[kind]
    }
    return {
        "name": outcome,
        "kind": kind,
        "counts": counts,
        "headline": HEADLINE[kind],
        "cells": cells,
        "thresholds": {model: evaluations[model].thresholds.get(outcome) for model in counts},
    }


def _plots(report: Report) -> dict[str, object]:
    """Each plot's name and its SVG, ready to stand in HTML."""
    of = f" of {report.curves_outcome}" if report.curves_outcome else ""
    plots = {}
    if report.curves:
        for model, (_, label) in report.curves.items():
            if len(np.unique(label)) < 2:
                raise InputError(f"the curve of {model!r} needs labels of both classes, all are the same")
        models = ", ".join(report.curves)
        plots["discrimination"] = _svg(
            lambda figure: _draw_discrimination(figure, report.curves),
            size=(10, 5.2),
            description=f"ROC and precision-recall curves{of}: {models}",
        )
        plots["calibration"] = _svg(
            lambda figure: _draw_calibration(figure, report.curves),
            size=(6.4, 6.8),
            description=f"Observed rate against mean risk{of}: {models}",
        )
    if report.missingness is not None:
        withheld = list(dict.fromkeys(report.missingness["withheld"]))
        plots["missingness"] = _svg(
            lambda figure: _draw_missingness(figure, report.missingness),
            size=(max(5, 2.5 * len(withheld)), 3.6),
            description=f"AUROC{of} as a modality is withheld from more and more patients: {', '.join(withheld)}",
        )
    if report.history:
        plots["history"] = _svg(
            lambda figure: _draw_history(figure, report.history),
            size=(6.4, 3.6),
            description="Loss on training and validation patients after each epoch",
        )
    if report.contributions is not None:
        shown = report.contributions
        plots["contributions"] = _svg(
            lambda figure: _draw_contributions(figure, shown),
            size=(7.6, 1.5 + 0.45 * len(shown.values)),
            description=f"What each modality added to the risk of {shown.outcome}",
        )
    return plots


def _draw_discrimination(figure: Figure, curves: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> None:
    from sklearn.metrics import precision_recall_curve, roc_curve

    roc, precision_recall = figure.subplots(1, 2)
    roc.plot([0, 1], [0, 1], color=FAINT, linewidth=0.8)
    for k, (model, (probability, label)) in enumerate(curves.items()):
        false_positive, true_positive, _ = roc_curve(label, probability)
        roc.plot(false_positive, true_positive, label=_text(model), **_line(k))
        precision, recall, _ = precision_recall_curve(label, probability, drop_intermediate=True)
        precision_recall.plot(recall, precision, drawstyle="steps-post", **_line(k))
    rate = float(np.mean(next(iter(curves.values()))[1]))
    precision_recall.axhline(rate, color=FAINT, linewidth=0.8)
    _square(roc, "false positive rate (1 − specificity)", "true positive rate (recall)")
    _square(precision_recall, "recall", "precision")
    _legend(figure, len(curves))


def _draw_calibration(figure: Figure, curves: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> None:
    observed, histogram = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    observed.plot([0, 1], [0, 1], color=FAINT, linewidth=0.8)
    for k, (model, (probability, label)) in enumerate(curves.items()):
        bins = calibration_bins(probability, label)
        observed.plot(bins.predicted, bins.observed, marker="o", markersize=4, label=_text(model), **_line(k))
    probability = next(iter(curves.values()))[0]
    histogram.hist(probability, bins=np.linspace(0, 1, 41), color=COLOURS[0], alpha=0.6)
    _square(observed, "", "observed rate")
    _plain_axes(histogram, f"risk (histogram: {_text(next(iter(curves)))})", "samples")
    _legend(figure, len(curves))


def _draw_missingness(figure: Figure, table: pd.DataFrame) -> None:
    """A panel a modality: the curve of each model, and the interval of the first."""
    withheld = list(dict.fromkeys(table["withheld"]))
    models = list(dict.fromkeys(table["model"]))
    panels = figure.subplots(1, len(withheld), sharey=True, squeeze=False)[0]
    lines = {}
    for axes, modality in zip(panels, withheld, strict=True):
        for k, model in enumerate(models):
            own = table[(table["withheld"] == modality) & (table["model"] == model)]
            if own.empty:
                continue
            lines[model] = axes.plot(100 * own["share"], own["AUROC"], marker="o", markersize=3, **_line(k))[0]
            if k == 0:
                axes.fill_between(100 * own["share"], own["low"], own["high"], color=COLOURS[0], alpha=0.15)
        axes.set_title(f"without {_text(modality)}", fontsize=10)
        axes.set_xticks([0, 25, 50, 75, 100])
        _plain_axes(axes, "withheld from, %", "AUROC" if axes is panels[0] else "")
    names = [_text(model) for model in lines]
    figure.legend(lines.values(), names, loc="outside lower center", ncols=min(len(names), 3), frameon=False)


def _draw_history(figure: Figure, history: Sequence[Mapping[str, float]]) -> None:
    axes = figure.subplots()
    epochs = [epoch["epoch"] for epoch in history]
    for k, (key, name) in enumerate((("train_loss", "training"), ("valid_loss", "validation"))):
        losses = np.array([epoch.get(key, np.nan) for epoch in history], dtype=np.float64)
        if np.isfinite(losses).any():
            axes.plot(epochs, losses, marker="o", markersize=3, label=f"{name} patients", **_line(k))
    axes.xaxis.get_major_locator().set_params(integer=True)
    _plain_axes(axes, "epoch", "loss")
    axes.legend(frameon=False)


def _draw_contributions(figure: Figure, shown: Contributions) -> None:
    """Bars from the baseline to the risk, the largest contribution first."""
    axes = figure.subplots()
    parts = sorted(shown.values.items(), key=lambda part: -abs(part[1]))
    reached = shown.baseline
    for row, (_, value) in enumerate(parts):
        axes.barh(row, value, left=reached, height=0.6, color=COLOURS[1] if value > 0 else COLOURS[0])
        axes.annotate(
            f"{value:+.3f}".replace("-", "−"),
            (max(reached, reached + value), row),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            color=INK,
        )
        reached += value
    for position, name, align in (
        (shown.baseline, "baseline", "right" if shown.risk > shown.baseline else "left"),
        (shown.risk, "risk", "left" if shown.risk > shown.baseline else "right"),
    ):
        axes.axvline(position, color=FAINT, linewidth=0.8, linestyle="--")
        axes.annotate(
            f" {name} {position:.3f} ",
            (position, 1),
            xycoords=("data", "axes fraction"),
            xytext=(0, 3),
            textcoords="offset points",
            ha=align,
            color=INK,
        )
    axes.set_yticks(range(len(parts)), [_text(modality) for modality, _ in parts])
    axes.invert_yaxis()
    axes.use_sticky_edges = False
    axes.margins(x=0.18)
    _plain_axes(axes, f"risk of {_text(shown.outcome)}", "")


def _svg(draw: Callable[[Figure], None], *, size: tuple[float, float], description: str) -> object:
    """An SVG to stand inside HTML, of this size in inches, its text kept as text."""
    import matplotlib
    from markupsafe import Markup, escape
    from matplotlib.figure import Figure

    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    buffer = io.StringIO()
    style = {"svg.fonttype": "none", "svg.hashsalt": description, "font.size": 10, "text.color": INK}
    style["path.simplify_threshold"] = 0.5  # of a pixel: curves of many thousand patients stay small files
    with matplotlib.rc_context(style):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        figure.savefig(buffer, format="svg", metadata=nothing)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    # All plots share one document, in which an id may stand once; nothing refers to the ids of groups.
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    return Markup(f'<svg role="img" aria-label="{escape(description)}"') + Markup(svg.removeprefix("<svg"))


def _line(k: int) -> dict[str, object]:
    return {
        "color": COLOURS[k % len(COLOURS)],
        "linestyle": DASHES[k % len(DASHES)],
        "linewidth": 2.2 if k == 0 else 1.4,
        "zorder": 3 if k == 0 else 2,
    }


def _square(axes: Axes, horizontal: str, vertical: str) -> None:
    axes.set(xlim=(0, 1), ylim=(0, 1.005))
    _plain_axes(axes, horizontal, vertical)


def _plain_axes(axes: Axes, horizontal: str, vertical: str) -> None:
    axes.set(xlabel=horizontal, ylabel=vertical)
    axes.spines[["top", "right"]].set_visible(False)


def _legend(figure: Figure, models: int) -> None:
    if models > 1:
        figure.legend(loc="outside lower center", ncols=min(models, 3), frameon=False)


def _text(name: str) -> str:
    return str(name).replace("$", r"\$")  # between two of them matplotlib reads formulae


def _check_keys(came: object, expected: tuple[str, ...], what: str) -> None:
    lacking = [key for key in expected if key not in came]
    if lacking:
        raise InputError(f"{what} lacks {', '.join(lacking)}; expected {', '.join(expected)}")
