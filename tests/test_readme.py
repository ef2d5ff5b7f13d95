"""The code of the README does what it says."""

import os
import re
from pathlib import Path

import pytest
from chiasm.datasets.synthetic import write_hospital

README = (Path(__file__).parents[1] / "README.md").read_text()
PYTHON_BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.fixture
def hospital(tmp_path, monkeypatch):
    """A working directory with the folder that the example reads."""
    write_hospital(tmp_path / "hospital", patients=60, seed=1, image_size=64)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_api_example_runs_as_printed_but_for_weights_that_need_a_hub(hospital, capsys):
    example = PYTHON_BLOCKS[0]
    # No hub in tests: small networks at random take the place of published weights.
    offline = {
        'ImageEncoder("resnet50", pretrained=True)': 'ImageEncoder("test_resnet", size=64)',
        'NoteEncoder("emilyalsentzer/Bio_ClinicalBERT")': "NoteEncoder()",
        "epochs=20": "epochs=1",
    }
    for published, small in offline.items():
        assert example.count(published) == 1
        example = example.replace(published, small)
    names: dict[str, object] = {}

    exec(compile(example, "README.md", "exec"), names)
    exec(compile(PYTHON_BLOCKS[1], "README.md", "exec"), names)

    assert "AUROC" in capsys.readouterr().out
    assert list(names["risks"].columns) == ["subject_id", "prediction_time", "outcome", "risk", "status"]
    assert len(names["risks"]) == len(names["test"])
    assert os.listdir(hospital / "icu-model")
    assert set(names["table"]["modality"]) == {"image", "labs", "notes", "static"}


def test_the_readme_names_every_command_and_every_recipe():
    from chiasm.recipes.__main__ import app
    from chiasm.recipes.recipe import BUILT_IN

    for command in app.registered_commands:
        assert f"`chiasm {command.callback.__name__}" in README
    for recipe in BUILT_IN:
        assert f"`{recipe}`" in README


def test_every_further_example_of_the_readme_stands_in_a_test_that_runs_it():
    tests = [path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_*.py")]
    for example in PYTHON_BLOCKS[2:]:
        assert any(example in test for test in tests), example
