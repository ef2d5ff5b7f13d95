"""The command line: `chiasm`, or `python -m chiasm.recipes` under a launcher of several processes."""

from __future__ import annotations

import atexit
import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from typer.core import TyperGroup

from ..datasets.errors import InputError
from ..fusion.processes import TIMEOUT, alone_in, is_main_process

STOPPED = (
    "Stopped. The same command goes on: chiasm train has kept its best weights, and chiasm tune its finished trials."
)


class _Commands(TyperGroup):
    """All commands: --verbose may stand before or after each, and Ctrl-C ends in a line that says what now."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, sorted(args, key=lambda word: word != "--verbose"))

    def invoke(self, ctx: typer.Context) -> object:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            # As shells tell of a signal: 130 after Ctrl-C, 143 after SIGTERM.
            _fail(error, STOPPED, code=128 + getattr(error, "number", 2))


app = typer.Typer(
    cls=_Commands,
    help="Predict a patient's risk from images, lab series and notes together. Research use; not a medical device.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)

DataOption = Annotated[Path, typer.Option("--data", help="Folder with the data, in the recipe's layout.")]
SetOption = Annotated[list[str], typer.Option("--set", help="A setting of the recipe, as name=value; repeatable.")]
OwnRecipeOption = Annotated[str | None, typer.Option("--recipe", help="File of the run's recipe, if it is your own.")]
ResamplesOption = Annotated[int, typer.Option(help="Resamples of patients for the intervals.")]
StoreOption = Annotated[
    Path | None, typer.Option("--store", help="Folder that `chiasm prepare` filled, or a new one to fill.")
]
JobsOption = Annotated[
    int | None, typer.Option(min=1, help="Models that are trained at a time, each by a process of its own.")
]
HeadsOption = Annotated[
    list[str] | None,
    typer.Option("--heads", help="Fusion heads to train beside the recipe's own, with commas between; all by default."),
]
RunArgument = Annotated[Path, typer.Argument(help="Folder that `chiasm train --out` wrote.")]
RecipeArgument = Annotated[str, typer.Argument(help="Name of a recipe, or path of your own .py file.")]


def say(text: object = "") -> None:
    """Print, on the first of several processes only."""
    if is_main_process():
        typer.echo(str(text))


@contextmanager
def _loading() -> Iterator[None]:
    """Import and load without the garbage collector: all of that stays, and is not to be looked through meanwhile."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@app.callback()
def settings(
    verbose: Annotated[bool, typer.Option("--verbose", help="Show the traceback of an error.")] = False,
) -> None:
    """Options of all commands."""
    os.environ["CHIASM_VERBOSE"] = "1" if verbose else os.environ.get("CHIASM_VERBOSE", "")


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder for the hospital, the model and the report.")] = Path(
        "demo"
    ),
    patients: Annotated[int, typer.Option(help="How many patients to make up.")] = 2000,
    resamples: ResamplesOption = 500,
    set_: SetOption = [],  # noqa: B006 - typer copies it
    jobs: JobsOption = None,
) -> None:
    """Make a synthetic hospital, train a fused model on it, evaluate, explain, report.

    Example: chiasm demo --out demo
    """
    from .demonstration import demonstrate

    with alone_in(out):
        demonstrate(out, patients=patients, assignments=set_, resamples=resamples, jobs=jobs, say=say)


@app.command()
def recipes() -> None:
    """List the recipes: outcome, data needed, cost, expected score.

    Example: chiasm recipes
    """
    from rich.console import Console
    from rich.table import Table

    from .recipe import BUILT_IN, load_recipe, summary

    table = Table("recipe", "outcome", "data", "cost", "expected score", show_lines=True)
    for name in BUILT_IN:
        recipe = load_recipe(name)
        card = recipe.module.CARD
        table.add_row(f"{name}\n{summary(recipe.module)}", card.outcome, card.data, card.cost, card.score)
    Console().print(table)


@app.command()
def prepare(
    recipe: RecipeArgument,
    data: DataOption,
    out: Annotated[Path, typer.Option("--out", help="Folder for the arrays; give it to other commands as --store.")],
    set_: SetOption = [],  # noqa: B006 - typer copies it
    exclude: Annotated[
        bool, typer.Option("--exclude", help="Leave image files out that cannot be read, and list them.")
    ] = False,
) -> None:
    """Decode images, tokenize notes and scale series once, so that other commands only map them.

    Run it again to go on where it was stopped; what has not changed is not done again.

    Example: chiasm prepare demo --data demo/hospital --out prepared
    """
    from .preparing import prepare_recipe
    from .recipe import load_recipe

    if is_main_process():
        prepare_recipe(load_recipe(recipe, set_), data, out, unreadable="exclude" if exclude else "raise", say=say)
        say(f"Next: chiasm train {recipe} --data {data} --store {out} --out RUN")


@app.command()
def train(
    recipe: Annotated[str | None, typer.Argument(help="Name of a recipe, or path of your own .py file.")] = None,
    data: Annotated[Path | None, typer.Option("--data", help="Folder with the data, in the recipe's layout.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder of the run; give it again to go on.")] = None,
    resume: Annotated[
        Path | None, typer.Option("--resume", help="Folder of a run to go on with; it tells all.")
    ] = None,
    set_: SetOption = [],  # noqa: B006 - typer copies it
    store: StoreOption = None,
    save_every: Annotated[
        float | None, typer.Option(help="Minutes after which a checkpoint is due within an epoch. [default: 10]")
    ] = None,
    timeout: Annotated[
        float | None, typer.Option(help=f"Seconds that a process waits for the others. [default: {TIMEOUT:g}]")
    ] = None,
    sharded: Annotated[
        bool | None, typer.Option("--sharded", help="Divide weights among the processes (FSDP2).")
    ] = None,
    recompute: Annotated[
        bool | None, typer.Option("--recompute", help="Compute activations again instead of keeping them.")
    ] = None,
    compile_: Annotated[
        bool | None, typer.Option("--compile", help="Compile image and note networks (torch.compile).")
    ] = None,
    tracker: Annotated[
        list[str] | None, typer.Option(help="Experiment tracker, such as tensorboard; repeatable.")
    ] = None,
) -> None:
    """Train a recipe; run it again with the same --out, or with --resume, to go on where it was stopped.

    Example: chiasm train icu-mortality --data physionet2012 --out runs/icu --set epochs=20
    """
    from .cross_validation import cross_validate
    from .runs import begun_run, new_run

    if resume:
        if out or set_:
            raise InputError("--resume names a run that has its settings. Leave out --out and --set.")
        run, data = begun_run(resume, recipe, data, store=store)
    else:
        run, data = new_run(recipe, data, out, set_, store=store)
    # What is typed goes before what the recipe says.
    typed = {"save_every": save_every, "timeout": timeout, "trackers": tuple(tracker) if tracker else None}
    typed |= {"sharded": sharded, "recompute": recompute, "compile": compile_}
    run = run.keeping_by(**{name: value for name, value in typed.items() if value is not None})
    with alone_in(run.folder):
        run.train(data, say=say)
        if run.recipe.is_cross_validated:
            cross_validate(run, data, say=say)
    say(f"The model is in {run.model_folder}. Next: chiasm evaluate {run.folder} --data {data}")


@app.command()
def evaluate(
    run: RunArgument,
    data: DataOption,
    recipe: OwnRecipeOption = None,
    baselines: Annotated[bool, typer.Option(help="Also fit logistic regression and boosting.")] = True,
    resamples: ResamplesOption = 1000,
    store: StoreOption = None,
) -> None:
    """Evaluate a run on its held-out patients: metrics with intervals, and a report.

    Example: chiasm evaluate runs/icu --data physionet2012
    """
    from .runs import open_run
    from .scoring import score_run

    if not is_main_process():
        return
    score_run(open_run(run, recipe, store=store), data, baselines=baselines, resamples=resamples, say=say)


@app.command()
def predict(
    run: RunArgument,
    data: DataOption,
    out: Annotated[Path, typer.Option("--out", help="File for the risks, .csv or .parquet.")],
    recipe: OwnRecipeOption = None,
    store: StoreOption = None,
) -> None:
    """Write the risk of every sample, or the reason why there is none.

    The data may be in the recipe's layout or five tables; outcome columns are not looked at. Tables are read as they
    are, unless your own recipe has patients(data, settings), which says whom to predict for.

    Example: chiasm predict runs/icu --data today --out risks.csv
    """
    with _loading():
        from ..fusion import predict as predict_risks
        from .runs import check_risks_path, open_run, read_patients, write_risks
        from .scoring import all_remarks

        if not is_main_process():
            return
        check_risks_path(out)
        opened = open_run(run, recipe, store=store)
        model = opened.model()
    patients = read_patients(opened.recipe, data, model.history_, say=say)
    say(patients.attrition.to_string(index=False))
    risks = predict_risks(model, patients)
    write_risks(risks, out)
    for remark in all_remarks(patients, risks.attrs["remarks"]):
        say(f"left out: {remark}")
    refused = int((risks["status"] != "ok").sum())
    say(f"{len(risks)} risks in {out}, of which {refused} refused (see the column status).")


@app.command()
def compare(
    recipe: RecipeArgument,
    data: DataOption,
    out: Annotated[Path, typer.Option("--out", help="Folder for the table and the report.")],
    set_: SetOption = [],  # noqa: B006 - typer copies it
    pairs: Annotated[bool, typer.Option(help="Also train pairs of modalities.")] = True,
    heads: HeadsOption = None,
    resamples: ResamplesOption = 1000,
    store: StoreOption = None,
    jobs: JobsOption = 1,
) -> None:
    """Does fusion help here? Each modality alone, pairs, all, other fusion heads, and plain baselines.

    Also how much each modality is missed, when it is withheld from more and more of the held-out patients.

    Example: chiasm compare icu-mortality --data physionet2012 --out comparison
    """
    from .recipe import load_recipe
    from .scoring import compare_recipe

    own = load_recipe(recipe, set_, store=store)
    # As names one by one or several with commas between; an empty text is no head at all.
    chosen = None if heads is None else [name for word in heads for name in word.replace(",", " ").split()]
    with alone_in(out):
        compare_recipe(own, data, out, pairs=pairs, heads=chosen, resamples=resamples, jobs=jobs, say=say)


@app.command()
def tune(
    recipe: RecipeArgument,
    data: DataOption,
    out: Annotated[Path, typer.Option("--out", help="Folder for the trials and best.py; give it again to go on.")],
    trials: Annotated[int, typer.Option(help="How many settings to try, those tried before included.")] = 20,
    folds: Annotated[int, typer.Option(help="Parts of the training patients, by each of which a trial is scored.")] = 3,
    range_: Annotated[
        list[str], typer.Option("--range", help="What to search, as name=low:high[:log or :STEP] or name=this,that.")
    ] = [],  # noqa: B006 - typer copies it
    set_: SetOption = [],  # noqa: B006 - typer copies it
    storage: Annotated[
        str | None, typer.Option(help="URL of a database that several commands share; a file in --out by default.")
    ] = None,
    study: Annotated[str, typer.Option(help="Name of the search in that database.")] = "search",
    store: StoreOption = None,
    jobs: JobsOption = 1,
) -> None:
    """Search the settings of a recipe on its training patients, and write the best as a recipe file.

    The recipe says what may be searched, or --range does; what --set gives is not searched. The score is the
    mean AUROC of folds by patient (the loss, where no outcome is binary). Held-out patients are not touched.
    Trials that are worse than half of the others are given up after a fold. Stopped, it goes on with the same
    command; given on several machines with one --storage, such as
    postgresql+psycopg://user@host/database, the commands share the trials.

    Example: chiasm tune icu-mortality --data physionet2012 --out tuned --range learning_rate=1e-4:1e-2:log

    Then: chiasm train tuned/best.py --data physionet2012 --out runs/tuned
    """
    from .tune import tune_recipe

    tune_recipe(
        recipe,
        data,
        out,
        assignments=set_,
        ranges=range_,
        store=store,
        trials=trials,
        folds=folds,
        storage=storage,
        study=study,
        jobs=jobs or 1,
        say=say,
    )


@app.command()
def audit(
    data: Annotated[Path, typer.Argument(help="Folder of five tables, MEDS dataset, or the recipe's data.")],
    recipe: Annotated[str | None, typer.Option("--recipe", help="Audit as this recipe reads and divides it.")] = None,
    set_: SetOption = [],  # noqa: B006 - typer copies it
    json: Annotated[Path | None, typer.Option("--json", help="File for the findings as JSON.")] = None,
    same_identifiers: Annotated[
        bool, typer.Option("--same-identifiers", help="subject_id is the Patient ID of DICOM headers itself.")
    ] = False,
) -> None:
    """What would leak or mislead: patients in two splits, copied images and notes, units, clocks, and more.

    Ends with exit code 1 where something would invalidate a result.

    Example: chiasm audit physionet2012 --recipe icu-mortality --json audit.json
    """
    from .auditing import audit_data

    if not is_main_process():
        return
    if audit_data(data, recipe, set_, json, same_identifiers=same_identifiers, say=say).invalidates:
        raise typer.Exit(1)


def main() -> None:
    """Run a command; bad input ends in one line and exit code 2."""
    # The system takes back the memory of all that was imported at once; to take it apart would take a second or two.
    atexit.register(gc.freeze)
    try:
        app()
    except InputError as error:
        _fail(error, str(error))
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        _fail(
            error,
            f"{error.strerror or type(error).__name__}{where}. Check the path, its permissions and the space left.",
        )


def _fail(error: BaseException, message: str, code: int = 2) -> NoReturn:
    if os.environ.get("CHIASM_VERBOSE"):
        raise error
    typer.echo(f"chiasm: {' '.join(message.split())}", err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
