"""The harness of the experiments: rows from one YAML, resumed, and the table and the plot made of them."""

from __future__ import annotations

import csv
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from scipy.stats import ttest_1samp

from anomalib_msacl.data import Phantom

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "compare.py"
TINY = {"max_steps": 2, "batch_size": 4, "accumulate": 1}
TINY |= {"choice": {"evaluations": 1, "images": 4}, "loss": {"centre_images": 4}}
CONFIG: dict[str, Any] = {
    "backbone": "test_resnet",
    "image_size": 64,
    "mean": [0.5] * 3,
    "std": [0.5] * 3,
    "layers": ["layer2", "layer3"],
    "held_out": 0.25,
    "sets": [],
    "seeds": [3],
    "reference": "imagenet",
    "models": {
        "patchcore": {
            "class_path": "anomalib.models.Patchcore",
            "init_args": {"layers": ["layer2", "layer3"], "coreset_sampling_ratio": 0.05},
        },
        "knn": {"layers": ["layer3"], "neighbours": 1},
        "msacl": {},
    },
    "arms": {"imagenet": {}, "msacl": {"recipe": TINY}, "normals": {"baseline": "normals_only", "steps": 1}},
}


@pytest.fixture
def compare(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script, as a module."""
    monkeypatch.syspath_prepend(SCRIPT.parent)  # where Python looks when the script runs
    specification = importlib.util.spec_from_file_location("compare", SCRIPT)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture
def command(compare: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """The script's command line with this configuration."""
    path = tmp_path / "compare.yaml"

    def run(name: str, *arguments: Any, **changes: Any) -> None:
        path.write_text(yaml.safe_dump(CONFIG | changes, sort_keys=False))
        monkeypatch.setattr(sys, "argv", ["compare.py", name, *map(str, arguments), "--config", str(path)])
        compare.main()

    return run


def test_runs_are_resumed_and_end_in_a_table_and_a_plot(
    command: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Phantom("brain", tmp_path / "sets", image_size=64, train_images=12, test_images=8).prepare_data()
    out = tmp_path / "out"
    run = ("run", tmp_path / "sets", "random", "--out", out)
    command(*run, "--arms", "imagenet", "msacl")
    with (out / "runs.csv").open() as file:
        rows = list(csv.DictReader(file))
    made = [(row["arm"], row["model"]) for row in rows]
    assert made == [("imagenet", m) for m in ("patchcore", "knn")] + [
        ("msacl", m) for m in ("msacl", "patchcore", "knn")
    ]
    assert {row["seed"] for row in rows} == {"3"}
    assert all(0 <= float(row["image_AUROC"]) <= 1 for row in rows)
    assert all(bool(row["pixel_AUPRO"]) == (row["model"] != "knn") for row in rows)
    before = (out / "runs.csv").read_text()
    command(*run, "--arms", "imagenet", "msacl")
    assert (out / "runs.csv").read_text() == before
    # A row of its own for a model whose settings have changed, and for a new arm; the others stay.
    models = CONFIG["models"] | {"knn": {"layers": ["layer2"], "neighbours": 1}}
    command(*run, "--models", "knn", models=models)
    added = (out / "runs.csv").read_text().removeprefix(before).splitlines()
    assert [line.split(",")[1:3] for line in added] == [[arm, "knn"] for arm in CONFIG["arms"]]
    with pytest.raises(SystemExit, match="rows of knn were made with different settings"):
        command("table", out / "runs.csv")
    (out / "runs.csv").write_text(before)
    capsys.readouterr()
    command("table", out / "runs.csv", "--arms", "imagenet", "msacl")
    (name,) = (path.name for path in (tmp_path / "sets").iterdir())
    printed = capsys.readouterr().out
    assert f"| arm | seeds | {name} | difference to imagenet, mean of the sets |" in printed
    command("plot", out / "runs.csv", tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000


def test_the_table_pairs_by_set_and_seed(compare: Any) -> None:
    figures = {
        "imagenet": {("a", 0): 0.6, ("b", 0): 0.8, ("a", 1): 0.5, ("b", 1): 0.9, ("a", 2): 0.7, ("b", 2): 0.7},
        "msacl": {("a", 0): 0.7, ("b", 0): 0.9, ("a", 1): 0.6, ("b", 1): 0.8, ("a", 2): 0.8, ("b", 2): 0.8},
        "partial": {("a", 0): 0.65, ("b", 0): 0.75, ("a", 1): 0.9},  # seed 1 lacks a set, so it is left out
    }
    rows = [
        {"set": name, "seed": str(seed), "arm": arm, "model": "m", "image_AUROC": str(value)}
        | dict.fromkeys(("pixel_AUROC", "pixel_AUPRO"), "")
        for arm, values in figures.items()
        for (name, seed), value in values.items()
    ]
    found = compare.Comparison(rows, "m", "image_AUROC", "imagenet")
    assert found.differences("msacl", ["a", "b"]) == pytest.approx([0.1, 0.0, 0.1])
    assert found.differences("partial", ["a", "b"]) == pytest.approx([0.0])
    mean, half = compare.interval([0.1, 0.0, 0.1])
    expected = ttest_1samp([0.1, 0.0, 0.1], 0).confidence_interval(0.95)
    assert (mean - half, mean + half) == pytest.approx((expected.low, expected.high))
    lines = list(compare.table(rows, "imagenet", None))
    assert "| imagenet | 3 | .600 ± .100 | .800 ± .100 | - |" in lines
    assert "| msacl | 3 | .700 ± .100 | .833 ± .058 | +0.067 [-0.077, +0.210] |" in lines
    assert "| partial | 2 | .775 ± .177 | .750 | +0.000 |" in lines


def test_the_agreement_of_the_choice_with_real_lesions(compare: Any) -> None:
    held_out = {"a": {"x": 0.5, "y": 0.6, "z": 0.7}, "b": {"x": 0.7, "y": 0.6, "z": 0.5}}
    real = {"x": 0.6, "y": 0.8, "z": 0.9}
    rows = [
        {"set": name, "seed": "0", "arm": arm, "model": "m", "held_out": str(value), "image_AUROC": str(real[arm])}
        for name, values in held_out.items()
        for arm, value in values.items()
    ]
    line = list(compare.agreement(rows, ["x", "y", "z"]))[-1]
    # Right on set a, wrong on set b: it takes z and x, whose regrets are 0 and .3.
    assert line == "| m | 2 | 0.00 | 0.150 | 0.300 | 0.100 | 0.000 |"
    same = [row | {"held_out": "0.5"} for row in rows]  # no preference: no rank, and the regret of a draw
    assert list(compare.agreement(same, ["x", "y", "z"]))[-1] == "| m | 2 | nan | 0.133 | 0.300 | 0.100 | 0.000 |"
