"""Runs: what a folder of one promises, and that nobody is evaluated on who was trained on."""

import functools
import json
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from chiasm.datasets import Cohort, InputError
from chiasm.fusion import FusionModel
from chiasm.fusion.checkpoint import read_history
from chiasm.recipes.cross_validation import confounder_risks, cross_validate, cross_validated_risks
from chiasm.recipes.recipe import load_recipe, naming_recipe
from chiasm.recipes.runs import Run, check_risks_path, commit_of, open_run

from .command import chiasm

RECIPE = '''"""Who dies, from two facts: a recipe that trains in a second."""

from dataclasses import dataclass

from chiasm.datasets import Cohort
from chiasm.encoders import LabEncoder, StaticEncoder
from chiasm.fusion import ConcatenationFusion, FusionModel
from chiasm.recipes.recipe import Card

CARD = Card(outcome="died (binary)", data="five tables", cost="a second", score="none")


@dataclass(frozen=True)
class Settings:
    """Settings."""

    history: float | None = 24
    use_labs: bool = True
    epochs: int = 2
    folds: int = 2
    repeats: int = 2
    members: int = 1
    boosted: float = 0.0
    rotating: bool = False
    seed: int = 0


def read(data, settings):
    cohort = Cohort.read(data, history=settings.history, invalid="exclude")
    cohort = cohort.keep(cohort.outcomes["died"].notna().to_numpy(), why="outcome known")
    return cohort if settings.use_labs else cohort.with_tables("without labs", labs=None)


def divide(cohort, settings):
    return cohort.split((0.5, 0.25, 0.25), seed=settings.seed)


def model(cohort, settings):
    labs = LabEncoder(8, rare=1) if settings.use_labs else None
    return FusionModel(labs=labs, static=StaticEncoder(8), fusion=ConcatenationFusion(8), outcomes=cohort.outcome_kinds)


def training(settings):
    return {"epochs": settings.epochs, "seed": settings.seed, "progress": False}
'''
VARIANTS = """
VARIANTS = {"with labs": {"use_labs": True}, "without labs": {"use_labs": False}}


def sources(data, cohort):
    return {"ward": (cohort.outcomes["subject_id"] % 3).astype("str")}
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    path = tmp_path_factory.mktemp("recipes") / "own.py"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="module")
def validated(tmp_path_factory):
    """The same recipe, scored by cross-validation."""
    path = tmp_path_factory.mktemp("recipes") / "validated.py"
    path.write_text(RECIPE + VARIANTS)
    return path


def write_tables(folder, patients: int = 48, first: int = 1, seed: int = 0, **changes: object):
    """Five tables' worth of patients, one of whose labs came long before the others."""
    draw = np.random.default_rng(seed)
    ids = np.arange(first, first + patients)
    now = pd.Timestamp("2031-05-17 08:00")
    died = np.arange(patients) % 2
    labs = {"subject_id": ids, "time": now - pd.Timedelta(hours=2), "code": "lactate", "value": 2 + died}
    old = labs | {"time": now - pd.Timedelta(hours=500), "value": 40.0}
    folder.mkdir(parents=True, exist_ok=True)
    outcomes = pd.DataFrame({"subject_id": ids, "prediction_time": now, "died": died}).assign(**changes)
    outcomes.to_csv(folder / "outcomes.csv", index=False)
    pd.concat([pd.DataFrame(labs), pd.DataFrame(old)]).to_csv(folder / "labs.csv", index=False)
    facts = pd.DataFrame({"subject_id": ids, "age": 60 + 9 * died + draw.normal(0, 3, patients)})
    facts.to_csv(folder / "static.csv", index=False)
    return folder


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    return write_tables(tmp_path_factory.mktemp("data") / "tables")


@pytest.fixture(scope="module")
def trained(recipe, tables, tmp_path_factory):
    """The folder of a run of the recipe on the tables."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert chiasm("train", recipe, "--data", tables, "--out", folder) == 0
    return folder


@pytest.fixture
def run(trained, tmp_path):
    """A copy of that run."""
    import shutil

    return shutil.copytree(trained, tmp_path / "run")


def told(capsys) -> str:
    """The one line of an error."""
    line = capsys.readouterr().err.strip()
    assert line.startswith("chiasm: ")
    assert "\n" not in line
    return line


def test_a_run_of_several_members_is_trained_gone_on_with_evaluated_and_used_as_one(recipe, tables, tmp_path, capsys):
    words = ("train", recipe, "--data", tables, "--out", tmp_path / "run", "--set", "members=2", "--set", "epochs=1")
    assert chiasm(*words) == 0
    assert capsys.readouterr().out.count("best epoch") == 2
    assert sorted(path.name for path in (tmp_path / "run" / "members").iterdir()) == ["0", "1"]
    assert chiasm(*words) == 0
    assert chiasm("evaluate", tmp_path / "run", "--data", tables, "--recipe", recipe, "--resamples", 0) == 0
    assert "AUROC" in capsys.readouterr().out
    out = tmp_path / "risks.csv"
    assert chiasm("predict", tmp_path / "run", "--data", tables, "--recipe", recipe, "--out", out) == 0
    assert len(pd.read_csv(out)) == 48


def test_of_a_runs_members_a_share_are_boosted_trees(recipe, tables, tmp_path, capsys):
    settings = [f"--set={own}" for own in ("members=3", "boosted=0.4", "epochs=1", "use_labs=false", "rotating=true")]
    words = ("train", recipe, "--data", tables, "--out", tmp_path / "run", *settings)
    assert chiasm(*words) == 0
    out = capsys.readouterr().out
    assert out.count("best epoch") == 2
    assert "each member holds out others for its validation" in out
    assert chiasm(*words) == 0
    assert "it goes on where it was stopped" in capsys.readouterr().out
    described = json.loads((tmp_path / "run" / "model" / "ensemble.json").read_text())["members"]
    assert [own.get("kind") for own in described] == [None, None, "boosted trees"]
    assert chiasm("evaluate", tmp_path / "run", "--data", tables, "--recipe", recipe, "--resamples", 0) == 0
    capsys.readouterr()
    assert chiasm("train", recipe, "--data", tables, "--out", tmp_path / "other", "--set", "boosted=1") == 2
    assert "boosted is 1.0; expected a share of the members" in told(capsys)


# Nobody is evaluated on who was trained on


def test_a_run_that_refuses_other_patients_still_knows_whom_it_was_trained_on(run, recipe, tmp_path, capsys):
    before = (run / "run.json").read_bytes()
    others = write_tables(tmp_path / "others", first=1001)
    assert chiasm("train", recipe, "--data", others, "--out", run) == 2
    assert "holds a run that was trained on other patients" in told(capsys)
    assert (run / "run.json").read_bytes() == before


def test_a_run_that_refuses_other_data_of_its_patients_still_knows_them_too(run, recipe, tmp_path, capsys):
    before = (run / "run.json").read_bytes()
    changed = write_tables(tmp_path / "changed", seed=1)
    assert chiasm("train", recipe, "--data", changed, "--out", run) == 2
    assert "holds a run with other data or other settings" in told(capsys)
    assert (run / "run.json").read_bytes() == before


def test_patients_who_were_trained_on_are_not_evaluated_on(run, recipe, tables, tmp_path, capsys):
    evaluate = ("evaluate", run, "--recipe", recipe, "--no-baselines", "--resamples", 0, "--data")
    assert chiasm(*evaluate, tables) == 0
    # Half of the patients divide otherwise, so that some of the training patients are held out.
    fewer = write_tables(tmp_path / "fewer", patients=24)
    assert chiasm(*evaluate, fewer) == 2
    assert "held-out patients were trained on, so the data are not those of the run" in told(capsys)
    # A hospital that the run never saw is another matter.
    assert chiasm(*evaluate, write_tables(tmp_path / "others", first=1001)) == 0


def test_a_run_that_goes_on_keeps_what_it_told_of_itself(run, recipe, tables):
    before = (run / "run.json").read_bytes()
    assert chiasm("train", recipe, "--data", tables, "--out", run) == 0
    assert (run / "run.json").read_bytes() == before


def test_a_run_folder_tells_all_that_is_needed_to_go_on(run, recipe, tables, tmp_path, capsys):
    before = (run / "run.json").read_bytes()
    assert chiasm("train", recipe, "--resume", run) == 0
    assert "it goes on where it was stopped" in capsys.readouterr().out
    assert (run / "run.json").read_bytes() == before
    told = json.loads(before)
    assert told["data"] == str(tables.resolve())
    assert len(told["data_sha256"]) == 64
    # Other data in their place are noticed.
    others = write_tables(tmp_path / "others", first=1001)
    assert chiasm("train", recipe, "--resume", run, "--data", others) == 2
    assert "was trained on other patients" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["--data", "x"], "RECIPE is missing. Give RECIPE, --data and --out; or --resume"),
        (["demo", "--data", "x"], "--out is missing"),
        (["--resume", "x", "--out", "y"], "--resume names a run that has its settings. Leave out --out and --set."),
        (["--resume", "x"], "x is no run: it has no run.json"),
    ],
)
def test_a_training_that_is_told_too_little_or_too_much_is_refused(tmp_path, monkeypatch, words, match, capsys):
    monkeypatch.chdir(tmp_path)
    assert chiasm("train", *words) == 2
    assert match in capsys.readouterr().err


def test_a_run_that_does_not_tell_its_data_asks_for_them(run, recipe, tmp_path, capsys):
    told = json.loads((run / "run.json").read_text())
    (tmp_path / "older").mkdir()
    older = {name: value for name, value in told.items() if name not in ("data", "sha256")}
    (tmp_path / "older" / "run.json").write_text(json.dumps(older))
    assert chiasm("train", recipe, "--resume", tmp_path / "older") == 2
    assert "does not tell where the data are. Give --data." in capsys.readouterr().err


def test_a_run_that_ended_before_its_first_epoch_is_begun_anew(run, recipe, tmp_path):
    import shutil

    for name in ("model", "checkpoints"):
        shutil.rmtree(run / name)
    before = (run / "run.json").read_bytes()
    others = write_tables(tmp_path / "others", first=1001)
    assert chiasm("train", recipe, "--data", others, "--out", run) == 0
    assert (run / "run.json").read_bytes() != before


def test_a_run_that_was_killed_while_it_first_told_of_itself_is_begun_anew(recipe, tables, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".0123abcd-run.json").write_text("{")
    assert chiasm("train", recipe, "--data", tables, "--out", tmp_path / "run") == 0
    assert not list((tmp_path / "run").glob(".*"))


def test_a_run_that_lost_its_description_is_gone_on_with_and_described_again(run, recipe, tables, tmp_path, capsys):
    before = json.loads((run / "run.json").read_text())
    weights = (run / "model" / "weights.safetensors").read_bytes()
    (run / "run.json").unlink()
    # Only the same patients and settings can go on.
    others = write_tables(tmp_path / "others", first=1001)
    for words in ((others,), (tables, "--set", "seed=1")):
        assert chiasm("train", recipe, "--out", run, "--data", *words) == 2
        assert "holds a run with other data or other settings" in told(capsys)
        assert not (run / "run.json").exists()
    assert chiasm("evaluate", run, "--data", tables, "--recipe", recipe) == 2
    assert "has lost its run.json. The command that began it, with the same --out, writes it again" in told(capsys)
    assert chiasm("train", recipe, "--data", tables, "--out", run) == 0
    assert "holds checkpoints, but no run.json, which is written again" in capsys.readouterr().out
    assert (run / "model" / "weights.safetensors").read_bytes() == weights
    after = json.loads((run / "run.json").read_text())
    drawn = ("salt", "trained_on", "sha256")
    assert {name: after[name] for name in after if name not in drawn} == {
        name: before[name] for name in before if name not in drawn
    }
    assert len(after["trained_on"]) == len(before["trained_on"])


def test_a_folder_of_runs_or_with_something_else_in_it_is_no_run_that_lost_its_description(run, recipe, tables, capsys):
    assert chiasm("train", recipe, "--data", tables, "--out", run.parent) == 2
    assert "exists and is no run of chiasm" in told(capsys)
    (run / "run.json").unlink()
    (run / "thesis.docx").write_text("")
    assert chiasm("train", recipe, "--data", tables, "--out", run) == 2
    assert "exists and is no run of chiasm" in told(capsys)


def test_a_description_that_is_a_loop_of_links_is_written_again(run, recipe, tables):
    (run / "run.json").unlink()
    (run / "run.json").symlink_to("run.json")
    assert chiasm("train", recipe, "--data", tables, "--out", run) == 0
    assert json.loads((run / "run.json").read_text())["schema"] == 1


def test_a_folder_that_a_kill_left_in_the_first_moments_of_an_ensemble_is_begun(recipe, tables, tmp_path):
    (tmp_path / "new" / "members" / "0").mkdir(parents=True)
    assert chiasm("train", recipe, "--data", tables, "--out", tmp_path / "new") == 0


# One's own recipe is known by its place or its content


def test_ones_own_recipe_is_the_same_by_whatever_path(run, recipe, tables, tmp_path, monkeypatch, capsys):
    before = (run / "run.json").read_bytes()
    assert json.loads(before)["recipe"] == str(recipe.resolve())
    monkeypatch.chdir(recipe.parent)
    (tmp_path / "link.py").symlink_to(recipe)
    copied = tmp_path / "copied.py"
    copied.write_bytes(recipe.read_bytes())
    for spelled in ("own.py", f"../{recipe.parent.name}/own.py", tmp_path / "link.py", copied):
        assert chiasm("train", spelled, "--resume", run) == 0, spelled
        assert chiasm("train", spelled, "--data", tables, "--out", run) == 0, spelled
    assert (run / "run.json").read_bytes() == before
    copied.write_text(RECIPE + "\n# Another one.\n")
    capsys.readouterr()
    assert chiasm("train", copied, "--resume", run) == 2
    assert f"holds a run of another recipe, {recipe.resolve()}. Give another --out, or that recipe" in told(capsys)


def test_a_run_that_noted_no_content_of_its_recipe_is_known_by_the_place_of_that(run, recipe, monkeypatch):
    noted = json.loads((run / "run.json").read_text())
    older = {name: value for name, value in noted.items() if name not in ("recipe_sha256", "sha256")}
    (run / "run.json").write_text(json.dumps(older | {"recipe": "own.py"}))
    monkeypatch.chdir(recipe.parent)
    assert chiasm("train", recipe, "--resume", run) == 0


# The commit


def repository(folder, *, track: bool = True) -> str:
    """A git repository of one file, `recipes/own.py`; returns its commit."""
    git = ("git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b")
    (folder / "recipes").mkdir(parents=True)
    (folder / "recipes" / "own.py").write_text(RECIPE)
    (folder / "other.txt").write_text("")
    for words in (["init", "-q"], ["add", "." if track else "other.txt"], ["commit", "-qm", "one"]):
        subprocess.run([*git, *words], check=True, capture_output=True)
    return subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()


def test_a_commit_is_told_only_of_the_repository_that_keeps_the_file(tmp_path, monkeypatch):
    kept = repository(tmp_path / "kept")
    repository(tmp_path / "around", track=False)
    own = tmp_path / "kept" / "recipes" / "own.py"
    # As in a hook of another repository.
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "nowhere"))
    assert commit_of(own) == commit_of(own, folder="recipes/") == kept
    assert commit_of(own, folder="chiasm/recipes/") is None
    own.write_text(RECIPE + "\n")
    assert commit_of(own) == f"{kept}-dirty"
    assert commit_of(tmp_path / "around" / "recipes" / "own.py") is None
    (tmp_path / "bare").mkdir()
    assert commit_of(tmp_path / "bare" / "own.py") is None
    monkeypatch.setenv("PATH", "")
    assert commit_of(own) is None


def test_a_run_tells_the_commit_of_ones_own_recipe_beside_that_of_chiasm(tables, tmp_path):
    kept = repository(tmp_path / "kept")
    assert chiasm("train", tmp_path / "kept/recipes/own.py", "--data", tables, "--out", tmp_path / "run") == 0
    noted = json.loads((tmp_path / "run" / "run.json").read_text())
    assert noted["recipe_commit"] == kept
    assert noted["commit"] != kept


# Recipes that cannot be run

POST_INIT = """
    def __post_init__(self):
        raise ValueError
"""
BROKEN = {
    "read raises": (
        "    cohort = Cohort.read(",
        "    {}['x']\n    cohort = Cohort.read(",
        "line 29: KeyError: 'x'. Mend",
    ),
    "read gives nothing": ("def read(data, settings):", "def read(data, settings):\n    return", "came as a NoneType"),
    "two parts": ("(0.5, 0.25, 0.25)", "(0.5, 0.5)", "gives 2 parts; expected training, validation and held-out"),
    "no parts": ("    return cohort.split(", "    cohort.split(", "divide of the recipe .* gives a NoneType"),
    "model raises": ("    labs = LabEncoder(8", "    1 / 0\n    labs = LabEncoder(8", "line 39: ZeroDivisionError"),
    "read ends the program": (
        "    cohort = Cohort.read(",
        "    raise SystemExit(3)\n    cohort = Cohort.read(",
        "line 29: SystemExit: 3. Mend",
    ),
    "model gives nothing": ("    return FusionModel(", "    FusionModel(", "model is a NoneType; expected a Fusion"),
    "training gives nothing": ("    return {", "    {", "training of the recipe .* gives a NoneType; expected a dict"),
    "training is strange": ('"progress"', '"speed"', "gives 'speed', which is no argument of fit that a recipe gives"),
    "training has a folder": ('"progress": False', '"out": "x"', "gives 'out', which is no argument of fit that a"),
    "no dataclass": ("@dataclass(frozen=True)\n", "", r"is no dataclass\. Write @dataclass"),
    "no default": ("history: float | None = 24", "history: float | None", "The setting history .* --set history="),
    "settings raise": ("    seed: int = 0\n", f"    seed: int = 0\n{POST_INIT}", "line 28: ValueError"),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_recipe_that_cannot_be_run_is_told_in_a_line(tables, tmp_path, monkeypatch, broken, capsys):
    old, new, match = BROKEN[broken]
    assert old in RECIPE
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(RECIPE.replace(old, new))
    assert chiasm("train", "own.py", "--data", tables, "--out", "run") == 2
    line = told(capsys)
    assert re.search(match, line), line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "variants", ["[1]", "{}", '{"../with": {}}', '{"deep": {"depth": 1}}', '{"deep": None}', "{3: {}, '': {}}"]
)
def test_variants_that_are_none_are_refused(tmp_path, variants):
    own = tmp_path / "own.py"
    own.write_text(RECIPE + VARIANTS.replace(VARIANTS.splitlines()[1], f"VARIANTS = {variants}"))
    with pytest.raises(InputError, match=r"VARIANTS of the recipe .* is not as it should be"):
        load_recipe(str(own))


def test_what_a_recipe_of_chiasm_raises_is_a_defect_and_what_the_disk_says_is_told_as_it_is():
    with pytest.raises(KeyError), naming_recipe("demo"):
        {}["x"]
    with pytest.raises(PermissionError), naming_recipe("own.py", but=OSError):
        raise PermissionError(13, "Permission denied")


# How a run is kept


@pytest.mark.parametrize("typed", [True, False], ids=["typed", "not typed"])
def test_what_is_typed_goes_before_what_the_recipe_says_and_that_before_the_default(
    tables, tmp_path, monkeypatch, typed
):
    from chiasm import fusion

    own = tmp_path / "own.py"
    own.write_text(RECIPE.replace('"progress": False', '"save_every": 3, "timeout": 77, "trackers": ["tensorboard"]'))
    given: dict[str, object] = {}
    monkeypatch.setattr(fusion, "fit", lambda *_, **settings: given.update(settings) or sys.exit(9))
    words = (
        ("--save-every", 1, "--timeout", 99, "--tracker", "wandb", "--sharded", "--recompute", "--compile")
        if typed
        else ()
    )
    assert chiasm("train", own, "--data", tables, "--out", tmp_path / "run", *words) == 9
    kept = {name: given.get(name) for name in ("save_every", "timeout", "trackers", "sharded", "recompute", "compile")}
    own_way = {"save_every": 3, "timeout": 77, "trackers": ["tensorboard"], "sharded": None}
    own_way |= {"recompute": None, "compile": None}
    typed_way = {"save_every": 1, "timeout": 99, "trackers": ("wandb",), "sharded": True}
    typed_way |= {"recompute": True, "compile": True}
    assert kept == (typed_way if typed else own_way)


# Alone in a folder


@pytest.mark.parametrize("setting", ["members=2", "members=1"])
def test_a_second_command_into_a_run_is_refused_at_any_moment_of_the_first(
    recipe, validated, tables, tmp_path, monkeypatch, setting
):
    from chiasm.fusion import ensemble_training
    from chiasm.recipes import cross_validation

    run = tmp_path / "run"
    own = validated if setting == "members=1" else recipe
    words = ("train", own, "--data", tables, "--out", run, "--set", setting, "--set", "epochs=1", "--set", "repeats=1")
    second: list[subprocess.CompletedProcess] = []

    def refuse(real):
        def between(*given, **named):
            # After a model of the first one is done, and before the next one is begun.
            if not second:
                command = [sys.executable, "-m", "chiasm.recipes", *map(str, words)]
                second.append(subprocess.run(command, capture_output=True, text=True, check=False))
            return real(*given, **named)

        return between

    module, name = (cross_validation, "write_risks") if own is validated else (ensemble_training, "_thresholds")
    monkeypatch.setattr(module, name, refuse(getattr(module, name)))
    assert chiasm(*words) == 0
    assert second[0].returncode == 2
    assert second[0].stderr.count("\n") == 1
    assert f"Another run writes into {run}. Give another folder, or wait" in second[0].stderr
    assert not (run / "evaluation.json").exists()


@pytest.mark.parametrize("setting", ["epochs=0", "seed=-1"])
def test_a_refused_setting_leaves_nothing_behind(recipe, tables, tmp_path, setting, capsys):
    assert chiasm("train", recipe, "--data", tables, "--out", tmp_path / "run", "--set", setting) == 2
    assert "expected a whole number" in told(capsys)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("edit", "match"),
    [
        (lambda _: "{", "run.json is damaged"),
        (lambda own: json.dumps({k: v for k, v in own.items() if k != "salt"}), "run.json is damaged"),
        (lambda own: json.dumps(own | {"trained_on": 3}), "run.json is damaged"),
        (lambda own: json.dumps(own | {"schema": 2}), "has the schema 2, and this version of chiasm reads 1"),
        (lambda _: "[" * 100_000, "run.json is damaged"),
        (
            lambda own: json.dumps(own | {"settings": own["settings"] | {"seed": 7}}),
            "run.json is not as it was written",
        ),
    ],
    ids=["no JSON", "no salt", "no list", "another schema", "nested too deep", "another setting"],
)
def test_a_run_of_another_schema_or_a_damaged_one_is_refused(run, recipe, edit, match):
    (run / "run.json").write_text(edit(json.loads((run / "run.json").read_text())))
    with pytest.raises(InputError, match=match):
        open_run(run, str(recipe))


@pytest.mark.parametrize("content", [b'{"epoch": 1', b"\xff", b"[" * 100_000], ids=["cut short", "not UTF-8", "deep"])
def test_a_damaged_history_is_named_with_the_remedy(tmp_path, content):
    assert read_history(tmp_path) == []
    (tmp_path / "history.jsonl").write_bytes(content)
    with pytest.raises(InputError, match=r"history.jsonl is damaged\. Remove it"):
        read_history(tmp_path)


def test_risks_are_not_computed_for_a_place_that_is_a_folder(tmp_path):
    (tmp_path / "risks.csv").mkdir()
    with pytest.raises(
        InputError, match=r"risks.csv is a folder. Give the path of a file, such as .*risks.csv.risks.csv"
    ):
        check_risks_path(tmp_path / "risks.csv")


def test_a_run_of_ones_own_recipe_asks_for_its_file(run):
    with pytest.raises(InputError, match=r"is a run of a recipe of your own\. Name its file again: --recipe "):
        open_run(run)


# Prediction


def test_predict_looks_as_far_back_as_the_run_was_trained_to(run, recipe, tables, tmp_path):
    shorter = tmp_path / "shorter"
    write_tables(shorter)
    labs = pd.read_csv(shorter / "labs.csv")
    labs[labs["value"] < 40].to_csv(shorter / "labs.csv", index=False)
    risks = []
    for data in (tables, shorter):
        assert chiasm("predict", run, "--data", data, "--out", tmp_path / "risks.csv", "--recipe", recipe) == 0
        risks.append(pd.read_csv(tmp_path / "risks.csv"))
    # What is 500 hours old was never seen by the model, whether or not it is there.
    assert risks[0].equals(risks[1])
    assert FusionModel.load(run / "model").history_ == 24


def test_predict_counts_whom_it_predicts_for_and_what_was_left_out(run, recipe, tmp_path, capsys):
    whole = write_tables(tmp_path / "whole", died=[""] * 5 + [0, 1] * 21 + [0])
    labs = pd.read_csv(whole / "labs.csv")
    strange = labs.tail(3).assign(code="unheard of", time="2031-05-17 07:00")
    labs.loc[0, "value"] = 1e6
    pd.concat([labs, strange]).to_csv(whole / "labs.csv", index=False)
    assert chiasm("predict", run, "--data", whole, "--out", tmp_path / "risks.csv", "--recipe", recipe) == 0
    printed = capsys.readouterr().out
    # The patients of whom nothing is known yet are those whom it is for.
    assert "48 risks in" in printed
    assert ["read", "48", "48"] in [line.split() for line in printed.splitlines()]
    assert "left out: labs: 3" in printed
    assert "left out: labs: 1 values of lactate lie far outside" in printed
    assert len(pd.read_csv(tmp_path / "risks.csv")) == 48


@pytest.mark.parametrize("died", ["", "to come"])
def test_predict_does_not_look_at_outcomes_which_may_be_blank_throughout(run, recipe, tmp_path, died):
    own = write_tables(tmp_path / "own", died=died)
    Cohort.read(write_tables(tmp_path / "bare").parent / "bare").write(tmp_path / "meds")
    labels = pd.read_parquet(tmp_path / "meds" / "labels" / "died.parquet")
    labels.assign(boolean_value=None).to_parquet(tmp_path / "meds" / "labels" / "died.parquet", index=False)
    for data in (own, tmp_path / "meds"):
        assert chiasm("predict", run, "--data", data, "--out", tmp_path / "risks.csv", "--recipe", recipe) == 0
        assert pd.read_csv(tmp_path / "risks.csv")["status"].eq("ok").sum() == 48


def test_predict_reads_tables_by_patients_of_ones_own_recipe_and_else_says_that_they_are_read_as_they_are(
    run, recipe, tables, tmp_path, capsys
):
    words = ("predict", run, "--data", tables, "--out", tmp_path / "risks.csv", "--recipe")
    assert chiasm(*words, recipe) == 0
    assert "is read as it is, not by read of the recipe. Where that converts units" in capsys.readouterr().out
    own = tmp_path / "own.py"
    patients = 'def patients(data, settings):\n    return Cohort.read(data).keep(np.arange(48) < 7, why="the first")\n'
    own.write_text(f"import numpy as np\n{RECIPE}\n\n{patients}")
    assert chiasm(*words, own) == 0
    assert "read as it is" not in capsys.readouterr().out
    assert len(pd.read_csv(tmp_path / "risks.csv")) == 7


# Reports


def test_what_was_left_out_is_told_and_stands_in_the_reports(recipe, tmp_path, capsys):
    data = write_tables(tmp_path / "data")
    labs = pd.read_csv(data / "labs.csv").astype({"value": object})
    labs.iloc[-1, labs.columns.get_loc("value")] = "haemolysed"
    # Codes that no training patient has: one of a validation patient, two of a held-out one.
    own = load_recipe(str(recipe))
    _, valid, test = (part.outcomes["subject_id"].iloc[0] for part in own.divide(own.read(data)))
    rows = labs["subject_id"].isin([valid, test]) & (labs["time"] > "2031-05-17")
    strange = labs[rows].assign(code=lambda table: "strange " + table["subject_id"].astype("str"))
    other = strange[strange["subject_id"] == test].assign(code="stranger")
    pd.concat([labs, strange, other]).to_csv(data / "labs.csv", index=False)
    small = ("--data", data, "--resamples", 5)
    assert chiasm("train", recipe, "--data", data, "--out", tmp_path / "run") == 0
    assert chiasm("evaluate", tmp_path / "run", *small, "--recipe", recipe) == 0
    assert chiasm("compare", recipe, *small, "--heads", "", "--out", tmp_path / "comparison") == 0
    printed = capsys.readouterr().out
    assert printed.count("left out: labs: 1 rows, because value") == 2
    assert printed.count("left out: labs: 2 measurements of 2 codes outside the vocabulary") == 2
    assert printed.count("left out: in training, labs: 1 measurements of 1 codes outside the vocabulary") == 1
    for folder in ("run", "comparison"):
        report = (tmp_path / folder / "report.html").read_text()
        assert "Remarks about the data" in report
        assert "labs: 1 rows, because value" in report
        assert "labs: 2 measurements of 2 codes" in report
    evaluation = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert evaluation["thresholds"]["died"]["chosen"] == "maximises F1 on the validation patients"
    comparison = json.loads((tmp_path / "comparison" / "comparison.json").read_text())
    for name in ("fused", "logistic regression", "gradient boosting"):
        chosen = comparison["evaluations"][name]["thresholds"]["died"]["chosen"]
        assert chosen == "maximises F1 on the validation patients", name


# Cross-validation


def test_folds_that_are_there_are_kept_and_those_of_other_data_are_not_used(validated, tables, tmp_path):
    run = Run(load_recipe(str(validated)), tmp_path / "run")
    said: list[str] = []
    cross_validate(run, tables, say=said.append)
    files = sorted((run.folder / "folds").glob("*/*.csv"))
    assert len(files) == 2 * 2 * 2
    written = [path.stat().st_mtime_ns for path in files]
    cross_validate(run, tables, say=said.append)
    assert [path.stat().st_mtime_ns for path in files] == written

    risks, cohort = cross_validated_risks(run, tables)
    assert set(risks) == {"with labs", "without labs", "ward alone"}
    by_hand = pd.concat([pd.read_csv(path) for path in files if path.parent.name.startswith("with-labs")])
    means = by_hand.groupby("subject_id")["risk"].mean()
    ours = risks["with labs"].astype({"subject_id": int}).set_index("subject_id")["risk"]
    pd.testing.assert_series_equal(ours.loc[means.index], means)
    assert len(cohort) == 48
    for own in risks.values():
        assert own.attrs["thresholds"]["died"]["value"] == 0.5
        assert "a fold leaves no validation patients" in own.attrs["thresholds"]["died"]["chosen"]

    # The same patients with other facts, or one label less, are other data.
    with pytest.raises(InputError, match=r"The run is not finished: of the 4 folds with labs, 4 are not there"):
        cross_validated_risks(run, write_tables(tmp_path / "changed", seed=1))


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ("[1, 2]", "sources of the recipe .* gives a list; expected a dictionary"),
        ('{"ward": [1, 2]}', "gives 2 values of ward; expected one value for each of the 48 samples"),
        ('{"ward": 3}', "gives a int of ward; expected one value for each of the 48 samples"),
        ('{"ward": cohort.outcomes["site"]}', r"cannot be run, line \d+: KeyError: 'site'\. Mend it"),
    ],
)
def test_sources_that_do_not_fit_are_told_to_whoever_wrote_the_recipe(tables, tmp_path, told, message):
    own = tmp_path / "own.py"
    own.write_text(RECIPE + VARIANTS.replace('{"ward": (cohort.outcomes["subject_id"] % 3).astype("str")}', told))
    recipe = load_recipe(str(own))
    with pytest.raises(InputError, match=message):
        recipe.sources(tables, recipe.read(tables))


def test_a_fold_that_is_missing_or_damaged_is_named_with_the_remedy(validated, tables, tmp_path):
    run = Run(load_recipe(str(validated), ["repeats=1"]), tmp_path / "run")
    cross_validate(run, tables, say=lambda _: None)
    path = min((run.folder / "folds").glob("with-labs-*/*.csv"))
    whole = path.read_text()
    for content in ("", "a,b\n1,2\n", whole.replace("ok", ""), whole.replace(",0.", ",x0.")):
        path.write_text(content)
        with pytest.raises(InputError, match=r"is empty|is damaged\. Remove it"):
            cross_validated_risks(run, tables)
    path.write_text("\n".join(whole.splitlines()[:-1]) + "\n")
    with pytest.raises(InputError, match="do not predict each sample once a repeat"):
        cross_validated_risks(run, tables)
    path.unlink()
    with pytest.raises(InputError, match=r"of the 2 folds with labs, 1 are not there .* Run chiasm train again"):
        cross_validated_risks(run, tables)


def test_a_sample_that_one_repeat_refused_is_refused(validated, tables, tmp_path):
    run = Run(load_recipe(str(validated)), tmp_path / "run")
    cross_validate(run, tables, say=lambda _: None)
    path = min((run.folder / "folds").glob("with-labs-*/1-0.csv"))
    table = pd.read_csv(path)
    table.loc[0, ["risk", "status"]] = [np.nan, "refused: a reason"]
    table.to_csv(path, index=False)
    own = cross_validated_risks(run, tables)[0]["with labs"]
    refused = own[own["status"] != "ok"]
    assert refused["subject_id"].tolist() == [str(table.loc[0, "subject_id"])]
    assert refused["status"].tolist() == ["refused: a reason"]
    assert refused["risk"].isna().all()


def test_what_is_typed_of_how_to_compute_holds_for_folds_too(validated, tables, tmp_path, monkeypatch):
    from chiasm import fusion

    computed, real = [], fusion.fit

    def watched(*given, **named):
        computed.append((named.get("out") is None, named["recompute"], named["timeout"], named.get("trackers", ())))
        return real(*given, **named)

    monkeypatch.setattr(fusion, "fit", watched)
    words = ("--recompute", "--timeout", 60, "--tracker", "tensorboard", "--set", "repeats=1", "--set", "epochs=1")
    assert chiasm("train", validated, "--data", tables, "--out", tmp_path / "run", *words) == 0
    assert computed == [(False, True, 60.0, ("tensorboard",))] + 4 * [(True, True, 60.0, ())]


def test_what_should_not_predict_an_outcome_is_held_against_the_patients_whose_outcome_is_known():
    died = np.where(np.arange(40) % 4 == 3, np.nan, np.arange(40) % 2)
    keys = {"subject_id": range(40), "prediction_time": pd.Timestamp("2031-05-17")}
    # Wards by number, some of them not known, are as good as wards by name.
    for told in (pd.Series(["this ward", "that ward"] * 20), [1, 2] * 16 + [1, None] * 4):
        risks = confounder_risks(told, Cohort(pd.DataFrame(keys | {"died": died})), "died", 4, 0)
        assert len(risks) == 40
        # The labels of those who have one follow the ward, and what is said of the others does, too.
        is_odd = risks["subject_id"] % 2 == 1
        assert risks.loc[is_odd, "risk"].min() > risks.loc[~is_odd, "risk"].max()


def test_a_cross_validated_run_is_scored_once(validated, tables, tmp_path, capsys, monkeypatch):
    from chiasm import fusion

    assert chiasm("train", validated, "--data", tables, "--out", tmp_path / "run") == 0
    capsys.readouterr()
    calls, real = [], fusion.evaluate
    monkeypatch.setattr(fusion, "evaluate", lambda *given, **settings: calls.append(1) or real(*given, **settings))
    assert chiasm("evaluate", tmp_path / "run", "--data", tables, "--recipe", validated, "--resamples", 5) == 0
    printed = capsys.readouterr().out
    assert len(calls) == 3
    assert "48 patients, each predicted by models that never saw the patient" in printed
    assert "should not predict the outcome" in printed
    assert "should not predict the outcome" in (tmp_path / "run" / "report.html").read_text()


def test_models_are_compared_by_folds_where_the_recipe_is_scored_by_them(validated, tables, tmp_path, capsys):
    out = tmp_path / "comparison"
    few = ("--heads", "cross-attention", "--resamples", 20)
    assert chiasm("compare", validated, "--data", tables, "--out", out, *few) == 0
    printed = capsys.readouterr().out
    assert "fold 2 of 2" in printed
    table = pd.read_csv(out / "comparison.csv")
    names = ["fused", "labs alone", "static alone", "cross-attention", "gradient boosting", "logistic regression"]
    assert list(table["model"]) == names
    comparison = json.loads((out / "comparison.json").read_text())
    # In whichever fold patients are, a modality is withheld from them.
    missing = pd.read_csv(out / "missingness.csv")
    assert missing.loc[missing["share"] == 1, "patients"].max() == 48
    # All patients are held out once.
    assert all(own["counts"][0]["samples"] == 48 for own in comparison["evaluations"].values())


# Ctrl-C


def test_ctrl_c_ends_in_a_line_and_the_best_weights_stay(recipe, tables, tmp_path):
    run = tmp_path / "run"
    command = [sys.executable, "-m", "chiasm.recipes", "train", recipe, "--data", tables, "--out", run]
    # A shell that started the tests in the background has made them, and their children, deaf to Ctrl-C.
    hearing = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    command += ["--set", "epochs=100000"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    child = subprocess.Popen([*map(str, command)], **pipes, preexec_fn=hearing)
    waited = time.monotonic() + 240
    while not (run / "model").is_dir() and time.monotonic() < waited:
        assert child.poll() is None, child.communicate()[1]
        time.sleep(0.1)
    child.send_signal(signal.SIGINT)
    _, error = child.communicate(timeout=240)
    assert error.strip() == (
        "chiasm: Stopped. The same command goes on: chiasm train has kept its best weights, and chiasm tune its "
        "finished trials."
    )
    assert child.returncode == 130
    assert FusionModel.load(run / "model").is_built
    # A hidden folder may be left of the replacement that was interrupted; the next one clears it.
    left = {path.name for path in run.iterdir() if not path.name.startswith(".")}
    assert left == {"run.json", "history.jsonl", "model", "checkpoints"}
