"""The plan of the house: imports go one way, importing does nothing, and some things are never written."""

import ast
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

HOUSE = Path(__file__).parent.parent
FLOORS = ("datasets", "encoders", "fusion", "recipes")
SOURCES = sorted(path for floor in FLOORS for path in (HOUSE / floor).glob("*.py"))


@cache
def trees() -> list[tuple[Path, ast.Module]]:
    return [(path, ast.parse(path.read_text(encoding="utf-8"))) for path in SOURCES]


def imported(path: Path, tree: ast.Module) -> set[str]:
    """Every chiasm module that a file imports, as `chiasm.folder...`."""
    package = ["chiasm", path.parent.name]
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*start, *filter(None, [node.module])])
            found |= {f"{module}.{alias.name}" for alias in node.names}
    return {name for name in found if name == "chiasm" or name.startswith("chiasm.")}


@cache
def calls(tree: ast.Module) -> set[str]:
    """Every dotted name that is called, such as `torch.load`, and every name of an `except`."""
    return {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}


def run(code: str, **settings: str) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=HOUSE,
        env=environment | settings,
        capture_output=True,
        text=True,
    )


def test_the_house_has_these_floors_and_they_are_flat():
    folders = {path.parent.name for path in HOUSE.glob("*/*.py")} - {"tests"}
    assert folders == set(FLOORS)
    assert len(SOURCES) > 40
    assert not [path for floor in FLOORS for path in (HOUSE / floor).glob("*/*.py")]


@pytest.mark.parametrize("floor", FLOORS)
def test_a_floor_imports_only_from_those_to_its_left(floor):
    allowed = {f"chiasm.{name}" for name in FLOORS[: FLOORS.index(floor) + 1]}
    for path, tree in trees():
        if path.parent.name == floor:
            wrong = {name for name in imported(path, tree) if ".".join(name.split(".")[:2]) not in allowed}
            assert not wrong, f"{path.name} imports {wrong}"


def test_the_walk_over_syntax_trees_sees_every_way_to_import():
    source = "from ..fusion import model\nfrom . import x\nimport chiasm.recipes as r\nfrom chiasm import encoders\n"
    assert imported(HOUSE / "datasets" / "x.py", ast.parse(source)) == {
        "chiasm.fusion.model",
        "chiasm.datasets.x",
        "chiasm.recipes",
        "chiasm.encoders",
    }


def test_the_folder_explains_itself_under_its_bare_name():
    result = run("import datasets")
    assert result.returncode == 1
    assert "ImportError: This is the folder of chiasm.datasets, not Hugging Face datasets" in result.stderr
    assert "PYTHONSAFEPATH=1" in result.stderr


def test_importing_the_datasets_imports_nothing_heavy():
    code = "import sys, chiasm.datasets; print(*sys.modules)"
    loaded = {name.split(".")[0] for name in run(code, PYTHONSAFEPATH="1").stdout.split()}
    assert "chiasm" in loaded
    assert not loaded & {
        "torch",
        "pandas",
        "numpy",
        "pyarrow",
        "transformers",
        "tokenizers",
        "sklearn",
        "PIL",
        "pydicom",
    }


def test_every_public_name_of_the_datasets_is_there_and_no_other():
    import chiasm.datasets

    for name in chiasm.datasets.__all__:
        assert getattr(chiasm.datasets, name).__name__ == name
    with pytest.raises(AttributeError, match=r"module 'chiasm.datasets' has no attribute 'Kohort'"):
        _ = chiasm.datasets.Kohort


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_file_is_short_enough_to_be_read(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


def test_nothing_that_is_loaded_can_run_code():
    for path, tree in trees():
        # Catching pickle.UnpicklingError of a library that might use it is no use of pickle.
        called = calls(tree)
        unsafe = {"torch.load", "torch.save", "eval", "exec", "yaml.load", "joblib.load", "pd.read_pickle"} & called
        unsafe |= {
            name for name in called if name.split(".")[0] in ("pickle", "dill", "cloudpickle", "marshal", "shelve")
        }
        assert not unsafe, f"{path.name} calls {unsafe}"
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            assert "allow_pickle" not in {keyword.arg for keyword in call.keywords}, path.name


def test_errors_are_caught_by_name_and_missing_numbers_never_become_zeros():
    for path, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.ExceptHandler):
                assert node.type is not None, f"{path.name}:{node.lineno} catches everything"
                names = {name.id for name in ast.walk(node.type) if isinstance(name, ast.Name)}
                assert not names & {"Exception", "BaseException"}, f"{path.name}:{node.lineno}"
        assert not [name for name in calls(tree) if name.endswith("nan_to_num")], path.name
