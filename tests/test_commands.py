"""The command line: what it prints, what it writes, and how it ends when the input is bad."""

import fcntl
import gc
import json
import os
import subprocess
import sys

import pandas as pd
import pytest
from chiasm.datasets.synthetic import write_hospital
from chiasm.recipes.__main__ import main

from .command import chiasm

TINY = ["--set", "epochs=1", "--set", "width=16", "--set", "size=64"]


@pytest.fixture(scope="module")
def hospital(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "hospital"
    write_hospital(folder, patients=80, seed=3, image_size=64)
    return folder


@pytest.fixture(scope="module")
def run(hospital, tmp_path_factory):
    """A trained run of the demo recipe."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert chiasm("train", "demo", "--data", hospital, "--out", folder, *TINY) == 0
    return folder


def test_help_names_every_command_and_imports_nothing_heavy():
    program = (
        "import sys; sys.argv = ['chiasm', '--help']\n"
        "from chiasm.recipes.__main__ import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print('HEAVY', sorted({'torch', 'pandas', 'numpy', 'transformers', 'timm', 'sklearn'} & set(sys.modules)))"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert "HEAVY []" in told
    for command in ("demo", "recipes", "train", "evaluate", "predict", "compare"):
        assert command in told


def test_recipes_are_listed_with_outcome_data_cost_and_score(capsys):
    assert chiasm("recipes") == 0
    told = capsys.readouterr().out
    for name in ("demo", "icu-mortality", "covid-icu", "outcome", "cost", "score"):
        assert name in told


def test_train_writes_a_run_that_tells_everything(run):
    told = json.loads((run / "run.json").read_text())
    assert told["recipe"] == "demo"
    assert told["settings"]["epochs"] == 1
    assert told["attrition"][0]["step"] == "read"
    assert {"train", "valid", "held out"} == set(told["parts"])
    assert (run / "history.jsonl").is_file()
    assert (run / "model" / "weights.safetensors").is_file()


def test_evaluate_prints_metrics_with_intervals_and_writes_a_report(run, hospital, capsys):
    assert chiasm("evaluate", run, "--data", hospital, "--resamples", 20) == 0
    told = capsys.readouterr().out
    assert "AUROC" in told
    assert "gradient boosting" in told
    assert "<html" in (run / "report.html").read_text()
    assert json.loads((run / "evaluation.json").read_text())["table"]


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_predict_writes_one_row_a_sample_also_for_patients_without_outcomes(run, hospital, tmp_path, ending):
    today = tmp_path / "today"
    today.mkdir()
    outcomes = pd.read_csv(hospital / "outcomes.csv").head(10)
    outcomes[["subject_id", "prediction_time"]].to_csv(today / "outcomes.csv", index=False)
    labs = pd.read_csv(hospital / "labs.csv")
    labs[labs["subject_id"].isin(outcomes["subject_id"])].to_csv(today / "labs.csv", index=False)
    out = tmp_path / f"risks.{ending}"
    assert chiasm("predict", run, "--data", today, "--out", out) == 0
    risks = pd.read_csv(out) if ending == "csv" else pd.read_parquet(out)
    assert len(risks) == 10
    has_labs = risks["subject_id"].isin(labs["subject_id"])
    assert (risks.loc[has_labs, "status"] == "ok").all()
    assert risks.loc[has_labs, "risk"].between(0, 1).all()
    # A patient of whom nothing is known gets no number.
    assert risks.loc[~has_labs, "risk"].isna().all()
    assert risks.loc[~has_labs, "status"].str.startswith("refused").all()


def test_garbage_is_collected_after_loading_whether_it_succeeded_or_not(tmp_path):
    assert chiasm("predict", tmp_path, "--data", tmp_path, "--out", tmp_path / "risks.csv") == 2
    assert gc.isenabled()


def test_train_again_with_the_same_out_goes_on_and_other_settings_are_refused(run, hospital, capsys):
    before = (run / "model" / "weights.safetensors").read_bytes()
    assert chiasm("train", "demo", "--data", hospital, "--out", run, *TINY) == 0
    assert (run / "model" / "weights.safetensors").read_bytes() == before
    assert chiasm("train", "demo", "--data", hospital, "--out", run, *TINY, "--set", "seed=5") == 2
    assert "a run of demo with other settings: seed was 0. Give another --out" in one_line(capsys)


def test_a_recipe_of_ones_own_is_trained_by_path_and_named_again_to_evaluate(hospital, tmp_path, capsys):
    from chiasm.recipes import demo

    own = tmp_path / "own.py"
    with open(demo.__file__) as source:
        own.write_text(source.read())
    out = tmp_path / "run"
    assert chiasm("train", own, "--data", hospital, "--out", out, *TINY) == 0
    assert chiasm("evaluate", out, "--data", hospital) == 2
    assert "--recipe" in one_line(capsys)
    again = ("evaluate", out, "--data", hospital, "--recipe", own, "--no-baselines", "--resamples", 0)
    assert chiasm(*again) == 0


def test_compare_says_whether_fusion_helped(hospital, tmp_path, capsys):
    where = ("--data", hospital, "--out", tmp_path / "comparison")
    few = ("--no-pairs", "--heads", "concatenation")
    assert chiasm("compare", "demo", *where, *few, "--resamples", 20, *TINY) == 0
    told = capsys.readouterr().out
    for model in ("fused", "image alone", "labs alone", "notes alone", "static alone", "concatenation", "boosting"):
        assert model in told
    assert "fusion" in told.lower().splitlines()[-3]
    table = pd.read_csv(tmp_path / "comparison" / "comparison.csv")
    assert len(table) == 8
    missing = pd.read_csv(tmp_path / "comparison" / "missingness.csv")
    fused = missing[missing["model"] == "fused"]
    assert list(fused["withheld"].unique()) == ["image", "labs", "notes", "static"]
    assert list(fused["share"]) == [0, 0.25, 0.5, 0.75, 1] * 4
    assert "below the best of the rest alone" in told
    assert "When a modality goes missing" in (tmp_path / "comparison" / "report.html").read_text()


def test_a_fusion_head_that_there_is_not_is_told_before_anything_is_read(tmp_path, capsys):
    where = ("--data", tmp_path / "nowhere", "--out", tmp_path / "comparison")
    assert chiasm("compare", "demo", *where, "--heads", "late,early", "--heads", "gated") == 2
    assert "There is no fusion head 'early'; there are cross-attention, concatenation, gated" in one_line(capsys)


def test_demo_ends_with_a_table_a_report_and_one_patient_explained(tmp_path, capsys):
    out = tmp_path / "demo"
    (out / ".hospital-0123abcd").mkdir(parents=True)
    assert chiasm("demo", "--out", out, "--patients", 80, "--resamples", 20, "--jobs", 1, *TINY) == 0
    told = capsys.readouterr().out
    for word in ("fused", "concatenation", "best reachable", "baseline", "report.html"):
        assert word in told
    table = pd.read_csv(out / "comparison.csv").set_index("model")
    assert len(table) == 9
    outcomes = pd.read_csv(out / "hospital" / "truth.csv")
    assert set(pd.read_csv(out / "hospital" / "outcomes.csv")["subject_id"]) == set(outcomes["subject_id"])
    reachable = float(table.loc["best reachable", "AUROC"].split()[0])
    assert f"would reach AUROC {reachable:.3f}" in (out / "report.html").read_text()
    assert 0.5 < reachable <= 1
    report = (out / "report.html").read_text()
    assert "best reachable" in report
    assert (out / "model" / "manifest.json").is_file()
    # What a kill left is cleared.
    assert not list(out.glob(".*"))


def one_line(capsys) -> str:
    """What was written to standard error: one line, without a traceback."""
    told = capsys.readouterr().err.strip()
    assert told.startswith("chiasm: ")
    assert "\n" not in told
    return told


BAD = {
    "no such recipe": (["train", "nothing", "--data", "{data}", "--out", "{out}"], "There is no recipe 'nothing'"),
    "no such recipe file": (["train", "no.py", "--data", "{data}", "--out", "{out}"], "no recipe file"),
    "no such setting": (
        ["train", "demo", "--data", "{data}", "--out", "{out}", "--set", "depth=3"],
        "no setting depth",
    ),
    "a setting without a value": (["train", "demo", "--data", "{data}", "--out", "{out}", "--set", "x"], "name=value"),
    "a setting of another type": (
        ["train", "demo", "--data", "{data}", "--out", "{out}", "--set", "epochs=many"],
        "epochs is 'many'",
    ),
    "no such folder": (["train", "demo", "--data", "{out}/none", "--out", "{out}/run"], "There is no folder"),
    "a folder without tables": (["train", "demo", "--data", "{empty}", "--out", "{out}/run"], "neither outcomes.csv"),
    "out holds something else": (["train", "demo", "--data", "{data}", "--out", "{data}"], "no run of chiasm"),
    "no run there": (["evaluate", "{empty}", "--data", "{data}"], "is no run"),
    "risks with another ending": (["predict", "{out}", "--data", "{data}", "--out", "risks.txt"], "expected .csv"),
    "zero epochs": (["train", "demo", "--data", "{data}", "--out", "{out}", "--set", "epochs=0"], "epochs is 0"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_ends_in_one_line_and_exit_code_2(case, hospital, tmp_path, capsys):
    words, message = BAD[case]
    empty = tmp_path / "empty"
    empty.mkdir()
    places = {"data": hospital, "out": tmp_path / "out", "empty": empty}
    assert chiasm(*(word.format(**places) for word in words)) == 2
    assert message in one_line(capsys)


@pytest.mark.parametrize("command", ["demo", "compare"])
def test_two_commands_cannot_write_into_one_folder(hospital, tmp_path, command, capsys):
    other = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    words = ["demo", "--data", hospital] if command == "compare" else []
    assert chiasm(command, *words, "--out", tmp_path) == 2
    assert f"Another run writes into {tmp_path}." in one_line(capsys)
    os.close(other)


@pytest.mark.parametrize("place", [0, 1, 4])
def test_verbose_shows_the_traceback_wherever_it_stands(tmp_path, place):
    words = ["evaluate", str(tmp_path), "--data", str(tmp_path)]
    words.insert(place, "--verbose")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["chiasm", *words])
        patch.setenv("CHIASM_VERBOSE", "")
        with pytest.raises(ValueError, match="is no run"):
            main()


def test_a_setting_may_be_a_tuple_a_truth_value_or_none():
    from chiasm.recipes.recipe import load_recipe

    recipe = load_recipe("icu-mortality", ["train_sets=a,c", "split_file=none", "dropout=0.5"])
    assert recipe.settings.train_sets == ("a", "c")
    assert recipe.settings.split_file is None
    assert load_recipe("covid-icu", ["pretrained=yes"]).settings.pretrained is True
