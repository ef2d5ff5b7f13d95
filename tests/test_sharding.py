"""Weights divided among processes: the same training, checkpoints in parts, and no process that waits in vain."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from chiasm.datasets import InputError
from chiasm.fusion.stored_state import StoredTensors, gather_parts
from safetensors import safe_open

from .crashes import end
from .sharded import clinic, plan, train_all
from .workers import digest, start

SGD = {"optimizer": "sgd", "learning_rate": 0.02}
CASES = {
    "adamw, in parts": {"accumulate": 2, "recompute": True},
    "adapters": SGD | {"plan": {"tuning": "lora:4"}, "recompute": True},
    "unfreezing": SGD | {"plan": {"tuning": "gradual"}, "epochs": 2},
    "frozen": SGD | {"plan": {"tuning": "frozen"}},
    "budget": SGD | {"plan": {"budget": 20}},
}
SAME = "the same training, but not to the last bit"
BROKEN = {"infinity": {"breaks": True}, "infinity in fp16": {"breaks": True, "precision": "fp16"}}
KEPT = {"plan": {"dropout": 0.3}, "save_every": 0}
"""Of runs that are gone on with: something is drawn at random, and every update is kept."""


def in_two(folder: Path, jobs: dict[str, dict], *, codes: tuple[int, int] = (0, 0), **given: object) -> list[dict]:
    """What two processes tell of trainings with divided weights."""
    jobs = {name: {"sharded": True} | job for name, job in jobs.items()}
    started = start(train_all, folder, jobs, *given.values(), processes=2, said=folder / "said")
    ended = end(started)
    assert tuple(ended) == codes, [(folder / "said" / f"{rank}.txt").read_text() for rank in (0, 1)]
    return [] if any(codes) else [json.loads((folder / f"told-{rank}.json").read_text()) for rank in (0, 1)]


def alone(folder: Path, jobs: dict[str, dict]) -> dict:
    """What one process tells."""
    train_all(folder, jobs)
    return json.loads((folder / "told-0.json").read_text())


def close(ours: dict, theirs: dict) -> bool:
    """Whether losses and risks are those of the same training, up to rounding."""
    return all(np.allclose(ours[name], theirs[name], rtol=1e-5, atol=0) for name in ("losses", "risks"))


def test_divided_weights_train_what_whole_ones_train_also_where_a_process_lacks_notes_or_images(tmp_path):
    once = {name: {"epochs": 1} | job for name, job in (CASES | BROKEN).items()}
    expected, told = alone(tmp_path, {name: once[name] for name in CASES}), in_two(tmp_path, once)
    assert told[0] == told[1]
    # An infinity in a part that one process has is one to all: a batch is left out, or, in fp16, an update.
    assert [told[0][name]["skipped"] for name in BROKEN] == [1, 0]
    assert all(np.isfinite(told[0][name]["losses"]).all() for name in BROKEN)
    for name in CASES:
        assert close(told[0][name], expected[name]), name
        assert told[0][name]["warnings"] == []


@pytest.fixture(scope="module")
def killed(tmp_path_factory) -> Path:
    """A run of two processes that were killed after four of six updates, beside one that was not."""
    folder = tmp_path_factory.mktemp("sharded")
    in_two(folder, {"run": KEPT | {"out": folder / "killed"}}, codes=(9, 9), killed_after=4)
    in_two(folder, {"run": KEPT | {"out": folder / "whole"}})
    shutil.copy(folder / "told-0.json", folder / "whole.json")
    return folder


def checkpoints(run: Path) -> list[Path]:
    return sorted((run / "checkpoints").iterdir())


def test_each_process_keeps_its_part_of_what_is_divided(killed):
    newest = checkpoints(killed / "killed")[-1]
    assert newest.name == "00001-0000001"
    parts = ["state-00001-of-00002.safetensors", "state-00002-of-00002.safetensors"]
    assert sorted(path.name for path in newest.iterdir()) == ["manifest.json", "run.json", *parts]
    sizes = [(newest / name).stat().st_size for name in parts]
    # Names and whole tensors, such as statistics, are few.
    assert 0.7 < sizes[1] / sizes[0] < 1
    with safe_open(newest / parts[1], "pt") as second:
        assert "averaged/n_averaged" not in second.keys()  # noqa: SIM118
    whole = plan(clinic(killed / "images"))
    whole.build(clinic(killed / "images"))
    stored = StoredTensors(newest, 2)
    assert {name.partition("/")[2] for name in stored if name.startswith("weights/")} == set(whole.state_dict())
    assert all(stored[f"weights/{name}"].shape == own.shape for name, own in whole.state_dict().items())
    assert len(stored) == len(list(stored))
    with pytest.raises(KeyError, match="moments"):
        _ = stored["moments"]


def test_runs_with_divided_weights_go_on_to_the_last_bit_and_past_a_damaged_part(killed, tmp_path):
    damaged = shutil.copytree(killed / "killed", tmp_path / "damaged")
    part = checkpoints(damaged)[-1] / "state-00002-of-00002.safetensors"
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    shutil.copytree(killed / "killed", tmp_path / "killed")
    # One that a process with whole weights began.
    alone(tmp_path, {"run": KEPT | {"out": tmp_path / "changed"}})
    for checkpoint in checkpoints(tmp_path / "changed")[1:]:
        shutil.rmtree(checkpoint)

    told, _ = in_two(tmp_path, {name: KEPT | {"out": tmp_path / name} for name in ("killed", "damaged", "changed")})
    expected = json.loads((killed / "whole.json").read_text())["run"]
    for name in ("killed", "damaged"):
        assert digest(tmp_path / name / "model") == digest(killed / "whole" / "model")
        assert told[name]["losses"] == expected["losses"]
        assert told[name]["risks"] == expected["risks"]
    assert told["killed"]["warnings"] == []
    said = "the checkpoint 00001-0000001 is damaged, and the run goes on from 00001-0000000 before it"
    assert told["damaged"]["warnings"] == [said]
    said = f"going on with 2 processes with divided weights where 1 process stopped: {SAME}"
    assert told["changed"]["warnings"] == [said]
    assert not list(tmp_path.rglob(".*-parts"))


def test_one_process_goes_on_with_divided_weights_and_says_what_that_means(killed, tmp_path):
    shutil.copytree(killed / "killed", tmp_path / "killed")
    again = alone(tmp_path, {"run": KEPT | {"out": tmp_path / "killed"}})["run"]
    said = f"going on with 1 process where 2 processes with divided weights stopped: {SAME}"
    assert again["warnings"] == [said]


def test_one_process_has_nothing_to_divide_and_says_so(tmp_path):
    told = alone(tmp_path, {"whole": {}, "sharded": {"sharded": True}})
    assert told["sharded"]["warnings"] == ["there is one process, so that no weights are divided"]
    assert told["sharded"]["losses"] == told["whole"]["losses"]


def test_parts_on_a_disk_that_is_not_shared_are_refused(tmp_path):
    with pytest.raises(InputError, match="has written state-1 where the first one does not see it"):
        gather_parts([tmp_path / "parts" / "state-1"], tmp_path)
