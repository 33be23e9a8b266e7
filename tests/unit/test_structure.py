"""The shape of the package: imports point one way, and the wheel carries what users need."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "anomalib_msacl"
# From the ground up; a module imports only from those before it.
ORDER = ["errors", "lesions", "recipe", "losses", "views", "encoder", "normality"]
ORDER += ["whitening", "weights", "hand_over", "data", "metrics", "model", "selection", "pretraining", "callback"]


def imported(path: Path) -> set[str]:
    """Return the modules of the package that a file imports."""
    nodes = ast.walk(ast.parse(path.read_text()))
    names = {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
    return {name.split(".")[1] for name in names if name.startswith("anomalib_msacl.")}


def test_imports_point_one_way() -> None:
    for rank, name in enumerate(ORDER):
        files = [PACKAGE / f"{name}.py"] if (PACKAGE / f"{name}.py").exists() else sorted((PACKAGE / name).glob("*.py"))
        for path in files:
            assert imported(path) <= {*ORDER[:rank], name}, path


def test_every_module_has_its_place() -> None:
    modules = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert modules - {"__init__", "__main__"} == set(ORDER)


@pytest.mark.skipif(importlib.util.find_spec("hatchling") is None, reason="needs hatchling to build a wheel")
def test_the_wheel_carries_configurations_and_types(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=PACKAGE.parent, check=True, capture_output=True)
    names = zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist()
    configs = {path.name for path in (PACKAGE.parent / "configs").glob("*.yaml")}
    assert {f"anomalib_msacl/configs/{name}" for name in configs} <= set(names)
    assert "anomalib_msacl/py.typed" in names
    assert not [name for name in names if name.startswith("tests")]
