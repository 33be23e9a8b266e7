"""The scripts of tests/benchmarks keep up with the package: none is run by the other tests."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from anomalib.data.utils import read_image
from torchvision.utils import save_image

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_what_a_script_imports_exists(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))  # some put their own folder there
    specification = importlib.util.spec_from_file_location(f"benchmark_{path.stem}", path)
    assert specification is not None
    assert specification.loader is not None
    specification.loader.exec_module(importlib.util.module_from_spec(specification))


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_what_a_function_of_a_script_imports_exists_too(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in {"anomalib", "anomalib_msacl"}:
            module = importlib.import_module(str(node.module))
            missing = [name.name for name in node.names if not hasattr(module, name.name)]
            assert not missing, f"{node.module} has no {missing}"


def test_the_contact_sheet_shows_changed_images_and_passes_over_other_files(tmp_path: Path) -> None:
    save_image(torch.full((3, 64, 64), 0.5), tmp_path / "a.png")
    (tmp_path / "notes.txt").write_text("no picture")
    command = [
        sys.executable,
        str(FOLDER / "contact_sheet.py"),
        str(tmp_path / "sheet.png"),
        str(tmp_path),
        "--size",
        "64",
    ]
    subprocess.run(command, check=True)
    sheet = read_image(tmp_path / "sheet.png", as_tensor=True)
    first, second = sheet.tensor_split(2, dim=1)
    assert (first - 0.5).abs().amax() > 0.05
    green = (second == torch.tensor([0.0, 1.0, 0.0])[:, None, None]).all(dim=0)
    assert green.any()
