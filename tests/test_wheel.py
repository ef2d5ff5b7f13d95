"""The package as users install it: a wheel, in an environment of its own."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
MODULES = sorted(
    f"chiasm.{path.parent.name}.{path.stem}"
    for floor in ("datasets", "encoders", "fusion", "recipes")
    for path in (ROOT / floor).glob("*.py")
    if path.stem not in ("__init__", "__main__")
)
# The checkout's own editable install is hidden, so that only the wheel can be imported.
IMPORT_ALL = """
import importlib, sys
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder).lower()]
sys.path.insert(0, sys.argv[1])
for name in sys.argv[2:]:
    module = importlib.import_module(name)
    assert module.__file__.startswith(sys.argv[1]), module.__file__
print(len(sys.argv[2:]))
"""


def test_a_wheel_built_and_installed_elsewhere_imports_every_module(tmp_path):
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", tmp_path / "wheel", ROOT]
    subprocess.run([*pip, *build], check=True, cwd=tmp_path, capture_output=True)
    (wheel,) = (tmp_path / "wheel").glob("chiasm-*.whl")
    target = ["install", "--no-deps", "--no-index", "--target", tmp_path / "site", wheel]
    subprocess.run([*pip, *target], check=True, cwd=tmp_path, capture_output=True)
    assert (tmp_path / "site" / "chiasm" / "fusion" / "report.html.jinja").is_file()

    imported = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL, str(tmp_path / "site"), *MODULES],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )

    assert imported.returncode == 0, imported.stderr
    assert int(imported.stdout) == len(MODULES)
