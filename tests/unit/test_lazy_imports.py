"""Libraries for medical files and drawing are imported when they are used, and public names stay where they were."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import anomalib_msacl.data
import anomalib_msacl.medical
import anomalib_msacl.phantom

PACKAGE = Path(anomalib_msacl.data.__file__).parents[1]
SLOW = {"cv2", "highdicom", "imagecodecs", "nibabel", "pydicom", "tifffile"}

# anomalib itself imports some of these libraries, so that it matters who does it.
WATCH = f"""
import builtins, sys
SLOW, seen, original = {SLOW!r}, set(), builtins.__import__
def watch(name, globals=None, locals=None, fromlist=(), level=0):
    if name.split(".")[0] in SLOW and str((globals or {{}}).get("__name__")).startswith("anomalib_msacl"):
        seen.add((globals["__name__"], name))
    return original(name, globals, locals, fromlist, level)
builtins.__import__ = watch
import anomalib_msacl
import anomalib_msacl.data
loaded = sorted(name for name in sys.modules if name.startswith(("anomalib_msacl.medical", "anomalib_msacl.phantom")))
print(seen, loaded, sorted(name for name in ("nibabel", "pydicom") if name in sys.modules))
"""


def test_importing_the_package_imports_no_library_for_medical_files() -> None:
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", WATCH], capture_output=True, text=True, check=True)
    assert run.stdout.strip().splitlines()[-1] == "set() [] []"


def test_no_module_imports_them_when_it_is_loaded() -> None:
    for path in PACKAGE.rglob("*.py"):
        names = {
            alias.name.split(".")[0]
            for node in ast.parse(path.read_text()).body
            if isinstance(node, ast.Import | ast.ImportFrom)
            for alias in (node.names if isinstance(node, ast.Import) else [ast.alias(node.module or "")])
        }
        assert not names & SLOW, path


@pytest.mark.parametrize("name", anomalib_msacl.data.__all__)
def test_public_names_can_be_imported_from_data(name: str) -> None:
    found = getattr(anomalib_msacl.data, name)
    assert found.__name__ == name
    assert name in dir(anomalib_msacl.data)
    for home in (anomalib_msacl.medical, anomalib_msacl.phantom):
        assert getattr(home, name, found) is found


def test_names_that_do_not_exist_are_told() -> None:
    with pytest.raises(AttributeError, match=r"module 'anomalib_msacl\.data' has no attribute 'nothing'"):
        anomalib_msacl.data.nothing  # noqa: B018
