"""The shape of the package: imports point one way, and the wheel carries what users need."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "anomalib_msacl"
# From the ground up; a module imports only from those before it.
ORDER = ["lazy", "errors", "paths", "compat", "distributed", "lesions", "recipe", "backbone", "transfer", "data"]
ORDER += [
    "medical",
    "phantom",
    "metrics",
    "thresholds",
    "pretraining",
    "detectors",
    "checkpoints",
    "screening",
    "export",
]
ORDER += ["callback", "demo", "comparison", "report", "scores", "anomalib_cli", "cli"]


def imported(path: Path) -> set[str]:
    """Return the modules of the package that a file imports; what only type checkers see does not count."""
    tree = ast.parse(path.read_text())
    tree.body = [
        node for node in tree.body if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test))
    ]
    nodes = ast.walk(tree)
    names = {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
    return {name.split(".")[1] for name in names if name.startswith("anomalib_msacl.")}


def test_imports_point_one_way() -> None:
    for rank, name in enumerate(ORDER):
        files = (
            [PACKAGE / f"{name}.py"] if (PACKAGE / f"{name}.py").exists() else sorted((PACKAGE / name).rglob("*.py"))
        )
        for path in files:
            assert imported(path) <= {*ORDER[:rank], name}, path


def test_every_module_has_its_place() -> None:
    modules = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert modules - {"__init__", "__main__"} == set(ORDER)


def distributions(requirements: list[str]) -> set[str]:
    """Return the names of what requirements ask for, spelt in one way."""
    names = (re.split(r"[\[<>=!~; ]", requirement, maxsplit=1)[0] for requirement in requirements)
    return {re.sub("[-_.]+", "-", name).lower() for name in names}


def imports_from_outside(path: Path) -> set[str]:
    """Return the top-level modules that a file imports, anywhere in it, but for the package's own and Python's."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "medical_library":
            names.add(ast.literal_eval(node.args[0]))  # imports the library by its name
    return {name.split(".")[0] for name in names} - {PACKAGE.name, *sys.stdlib_module_names}


def test_what_the_package_imports_is_declared() -> None:
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [name for extra in ("offline", "medical") for name in project["optional-dependencies"][extra]]
    declared = distributions(project["dependencies"] + extras)
    providers = importlib.metadata.packages_distributions()
    imported = {name: path for path in PACKAGE.rglob("*.py") for name in imports_from_outside(path)}
    assert {"torch", "numpy", "pydicom", "PIL"} <= imported.keys()
    for name, path in imported.items():
        found = distributions(providers.get(name, [name]))  # an extra need not be installed
        assert found & declared, f"{path.name} imports {name}; add one of {sorted(found)} to pyproject.toml"


def test_files_and_classes_stay_small_enough_to_read() -> None:
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                methods = [part for part in node.body if isinstance(part, ast.FunctionDef)]
                assert len(methods) <= 20, (path, node.name)
    assert len((PACKAGE / "detectors/msacl/lightning_model.py").read_text().splitlines()) < 250


@pytest.mark.skipif(importlib.util.find_spec("hatchling") is None, reason="needs hatchling to build a wheel")
def test_the_wheel_carries_configurations_and_types(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=PACKAGE.parent, check=True, capture_output=True)
    names = zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist()
    configs = {path.name for path in (PACKAGE.parent / "configs").glob("*.yaml")}
    assert {f"anomalib_msacl/configs/{name}" for name in configs} <= set(names)
    assert "anomalib_msacl/py.typed" in names
    assert not [name for name in names if name.startswith("tests")]
