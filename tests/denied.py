"""Folders that may not be listed, also where the tests run as root."""

import os
from pathlib import Path

import pytest


def deny(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Let every listing of a folder fail."""
    real = os.scandir

    def scandir(path: object = ".") -> object:
        if str(path) == str(folder):
            raise PermissionError(13, "Permission denied", str(folder))
        return real(path)

    patch.setattr(os, "scandir", scandir)
