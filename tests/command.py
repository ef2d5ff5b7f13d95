"""The command line, run in the process of the tests."""

import sys

import pytest
from chiasm.recipes.__main__ import main


def chiasm(*words: object) -> int:
    """Run a command in this process; returns its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["chiasm", *map(str, words)])
        patch.delenv("CHIASM_VERBOSE", raising=False)
        with pytest.raises(SystemExit) as ended:
            main()
    return int(ended.value.code or 0)
