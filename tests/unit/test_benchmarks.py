"""The scripts of benchmarks/ keep up with the package: none is run by the other tests."""

from __future__ import annotations

import ast
import importlib
import importlib.util
from pathlib import Path

import pytest
import torch
from anomalib.data import ImageBatch

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_what_a_script_imports_exists(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)  # where Python looks when a script runs
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


def test_areas_are_those_of_scores_of_any_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    common = importlib.import_module("_common")
    scores, truth = torch.tensor([27.0, 31.0, 28.0, 40.0]), torch.tensor([0, 0, 1, 1])  # sigmoids of them are all 1
    metric = common.AUROC(fields=["pred_score", "gt_label"], prefix="image_")
    for part in (slice(0, 3), slice(3, 4)):
        shown = ImageBatch(image=torch.zeros(len(scores[part]), 3, 8, 8), pred_score=scores[part], gt_label=truth[part])
        metric.update(shown)
    assert metric.name == "image_AUROC"
    assert float(metric.compute()) == 0.75
    assert common.auroc(list(scores.numpy()), list(truth.numpy())) == 0.75
