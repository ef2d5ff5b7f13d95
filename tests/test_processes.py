"""Several processes of one run, as torchrun starts them: they train one model, and one of them writes."""

import hashlib
import json
import os
import subprocess
import sys
from datetime import timedelta

import pandas as pd
import pytest
import torch
from chiasm.datasets import InputError
from chiasm.datasets.synthetic import write_hospital
from chiasm.fusion import FusionModel
from chiasm.fusion.processes import (
    EndingTogether,
    from_main_process,
    is_main_process,
    launched_processes,
    make_accelerator,
    share_weights,
)
from chiasm.recipes.variants import usual_jobs

from .crashes import end
from .process_counts import differences
from .workers import start

# A recipe like the demonstration's, whose processes leave a note of what they ended with.
RECIPE = '''"""A synthetic hospital."""

import atexit
import hashlib
import json
import os
from pathlib import Path

from accelerate.state import PartialState
from chiasm.fusion import FusionModel
from chiasm.recipes import demo
from chiasm.recipes.demo import CARD, Settings, divide, read


def model(cohort, settings):
    made = demo.model(cohort, settings)
    parts = {name: made.encoders[name] for name in os.environ["PARTS"].split()}
    made = FusionModel(**parts, fusion=made.fusion, outcomes=made.outcomes)
    atexit.register(tell, made)
    return made


def tell(made):
    weights = b"".join(value.numpy().tobytes() for value in made.state_dict().values())
    told = {"processes": PartialState().num_processes, "weights": hashlib.sha256(weights).hexdigest()}
    (Path(os.environ["TOLD"]) / f"{os.environ['RANK']}.json").write_text(json.dumps(told | made.thresholds_))


def training(settings):
    return demo.training(settings) | {"patience": 1, "learning_rate": 2e-2}
'''


@pytest.fixture(scope="module")
def hospital(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "hospital"
    write_hospital(folder, patients=60, seed=3, image_size=64)
    return folder


def two_processes(folder, *words: object, parts: str) -> str:
    """Run a command of chiasm in two processes, for a model of some modalities; returns what was printed."""
    (folder / "own.py").write_text(RECIPE)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    ended = subprocess.run(
        [*command, "-m", "chiasm.recipes", *map(str, words)],
        env=os.environ | {"TOLD": str(folder), "PARTS": parts, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_two_processes_train_one_model_and_one_of_them_writes_it(hospital, tmp_path, monkeypatch):
    from chiasm.recipes.__main__ import main

    run, own = tmp_path / "run", tmp_path / "own.py"
    small = ("--set", "epochs=3", "--set", "width=16", "--set", "size=64")
    printed = two_processes(tmp_path, "train", own, "--data", hospital, "--out", run, *small, parts="image static")

    # Both ended, after as many epochs, with the weights that stand in the folder.
    told = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert told[0] == told[1]
    assert told[0]["processes"] == 2
    kept = FusionModel.load(run / "model").state_dict().values()
    assert told[0]["weights"] == hashlib.sha256(b"".join(value.numpy().tobytes() for value in kept)).hexdigest()
    history = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    assert [record["epoch"] for record in history] == list(range(1, len(history) + 1))
    assert printed.count("best epoch") == 1
    assert {path.name for path in run.iterdir()} == {"run.json", "history.jsonl", "model", "checkpoints"}

    # What they trained predicts each sample once.
    words = ["chiasm", "predict", run, "--data", hospital, "--out", tmp_path / "risks.csv", "--recipe", own]
    monkeypatch.setattr(sys, "argv", [str(word) for word in words])
    with pytest.raises(SystemExit, match="0"):
        main()
    risks = pd.read_csv(tmp_path / "risks.csv")
    samples = pd.read_csv(hospital / "outcomes.csv")
    assert not risks.duplicated(["subject_id", "prediction_time"]).any()
    assert set(risks["subject_id"]) == set(samples["subject_id"])


def command(environment: dict[str, str], *words: str) -> None:
    """Run a command of chiasm in this process."""
    from chiasm.recipes.__main__ import main

    os.environ.update(environment)
    sys.argv = ["chiasm", *words]
    main()


def test_two_processes_train_one_model_after_the_other(hospital, tmp_path):
    (tmp_path / "own.py").write_text(RECIPE)
    small = ("--set", "epochs=1", "--set", "width=16", "--resamples", "0", "--heads", "concatenation")
    where = (str(tmp_path / "own.py"), "--data", str(hospital), "--out", str(tmp_path / "out"))
    environment = {"TOLD": str(tmp_path), "PARTS": "labs static"}
    started = start(command, environment, "compare", *where, *small, processes=2, said=tmp_path / "said")
    assert end(started) == [0, 0], (tmp_path / "said" / "0.txt").read_text()
    table = pd.read_csv(tmp_path / "out" / "comparison.csv")
    assert list(table["model"])[:4] == ["fused", "labs alone", "static alone", "concatenation"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "comparison.csv",
        "comparison.json",
        "missingness.csv",
        "report.html",
    }


def test_two_processes_train_what_one_trains_also_where_one_has_no_labs_or_no_patients(tmp_path):
    assert differences(tmp_path, [2], sizes=[1, 2, 7], batches=[1, 3]) == []


def test_two_processes_that_divide_their_shares_train_what_one_trains_at_once(tmp_path):
    # Of 7 patients in batches of 3 a process has 2, 1 or no patient in an update, so 2, 1 or 1 parts.
    assert differences(tmp_path, [2], sizes=[7], batches=[3, 7], accumulate=2) == []


def test_processes_that_do_not_find_each_other_are_refused(monkeypatch):
    assert make_accelerator().num_processes == 1
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="A launcher started 2 processes, and 1 train together"):
        make_accelerator()


def test_a_precision_that_the_launcher_asks_for_is_refused(tmp_path):
    assert end(start(launched_in_bf16, said=tmp_path)) == [2]
    assert "The launcher asks for bf16, which would go before what fit is told." in (tmp_path / "0.txt").read_text()


def launched_in_bf16() -> None:
    os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16"
    make_accelerator()


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("ACCELERATE_TORCH_DEVICE", "cuda", "Unset what is not meant of ACCELERATE_TORCH_DEVICE"),
        ("ACCELERATE_TORCH_DEVICE", "gpu", "Accelerate cannot start as the environment asks (RuntimeError: "),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "x", "(ValueError: invalid literal for int() with base 10: 'x')"),
        ("WORLD_SIZE", "two", "WORLD_SIZE is 'two' in the environment; expected a whole number"),
    ],
)
def test_an_environment_that_asks_for_what_is_not_there_is_refused_in_a_line(tmp_path, name, value, told):
    if value == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert end(start(launched_with, {name: value}, said=tmp_path)) == [2]
    assert told in (tmp_path / "0.txt").read_text()


def launched_with(environment: dict[str, str]) -> None:
    os.environ.update(environment)
    make_accelerator()


@pytest.mark.parametrize(
    ("environment", "is_main"),
    [({}, True), ({"RANK": "1"}, True), ({"WORLD_SIZE": "2", "RANK": "1"}, False), ({"WORLD_SIZE": "2"}, True)],
)
def test_a_process_that_is_alone_is_the_main_one_whatever_its_number(monkeypatch, environment, is_main):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert is_main_process() == is_main


def test_how_many_processes_there_are_is_told_by_the_launcher(monkeypatch):
    for name in ("LOCAL_WORLD_SIZE", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert (launched_processes(), launched_processes(here=True)) == (1, 1)
    # Set, and blank: nobody launched it.
    monkeypatch.setenv("WORLD_SIZE", "")
    assert (launched_processes(), usual_jobs() >= 1) == (1, True)
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert (launched_processes(), launched_processes(here=True), usual_jobs()) == (8, 8, 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert (launched_processes(), launched_processes(here=True)) == (8, 4)


def test_alone_a_process_decides_by_itself_and_keeps_its_weights():
    accelerator = make_accelerator()
    assert from_main_process(accelerator, lambda: 0.1) == 0.1
    share_weights(accelerator, None)


def lonely() -> None:
    """Look for a second process that was never started."""
    import accelerate
    from torch.distributed import TCPStore

    def wait(**_: object) -> None:
        # What Accelerate does at last, and would do for whole seconds.
        TCPStore("127.0.0.1", 0, world_size=2, is_master=True, timeout=timedelta(milliseconds=100))

    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}
    accelerate.Accelerator = wait
    make_accelerator(timeout=1)


def test_a_process_that_waits_in_vain_for_the_others_says_so(tmp_path):
    assert end(start(lonely, said=tmp_path)) == [2]
    assert "The 2 processes did not find each other within 1 s." in (tmp_path / "0.txt").read_text()


def test_a_process_that_is_lost_at_the_end_is_told_in_whatever_words(monkeypatch):
    import torch.distributed
    from torch.distributed import distributed_c10d

    class Two:
        num_processes, process_index = 2, 0

        def wait_for_everyone(self):
            raise RuntimeError("the wire is cut")

    store = torch.distributed.HashStore()
    monkeypatch.setattr(distributed_c10d, "_get_default_store", lambda: store)
    with pytest.raises(InputError, match=r"Process 0 lost another one, .*the wire is cut"), EndingTogether(Two()):
        pass
