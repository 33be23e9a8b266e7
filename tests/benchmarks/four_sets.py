"""PatchCore and PaDiM on folders of images, with the untouched and with the pre-trained backbone.

    python tests/benchmarks/four_sets.py DATA WEIGHTS [--out results/four_sets.csv] [--sets NAME ...]

DATA holds one folder per set, laid out as configs/msacl_patchcore_folder.yaml says; WEIGHTS is a folder in timm's
format. Every row is one `anomalib train` with that configuration; rows that are in the file already are not run again.
Scores are those of the whole test set. `--table FILE` only prints the table of a file.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

CONFIG = Path(__file__).parents[2] / "configs" / "msacl_patchcore_folder.yaml"
ANOMALIB = str(Path(sys.executable).with_name("anomalib"))
MODELS: dict[str, dict[str, Any]] = {
    "Patchcore": {"layers": ["blocks.2", "blocks.4"], "coreset_sampling_ratio": 0.01},
    "Padim": {"layers": ["blocks.1", "blocks.2", "blocks.4"], "n_features": 100},
}
ARMS = {"untouched": 0, "pre-trained": 40}
FIGURES = ("image_AUROC", "pixel_AUROC", "pixel_AUPRO")


def metric(name: str, prefix: str, scores: str, truth: str) -> dict[str, Any]:
    """Return a metric for YAML."""
    return {"class_path": f"anomalib.metrics.{name}", "init_args": {"fields": [scores, truth], "prefix": prefix}}


def configuration(folder: Path, weights: Path, model: str, steps: int, out: Path) -> dict[str, Any]:
    """Return the folder configuration for one run."""
    config = yaml.safe_load(CONFIG.read_text())
    masks = (folder / "ground_truth").is_dir()
    metrics = [metric("AUROC", "image_", "pred_score", "gt_label")]
    if masks:
        metrics += [metric(name, "pixel_", "anomaly_map", "gt_mask") for name in ("AUROC", "AUPRO")]
    arguments = config["model"]["init_args"]
    kept = {key: arguments[key] for key in ("backbone", "pre_trained", "pre_processor")}
    evaluator = {"class_path": "anomalib.metrics.Evaluator", "init_args": {"test_metrics": metrics}}
    config["model"] = {
        "class_path": f"anomalib.models.{model}",
        "init_args": {**kept, **MODELS[model], "evaluator": evaluator, "visualizer": False},
    }
    mask_dir = "ground_truth/lesion" if masks else None
    config["data"]["init_args"] |= {
        "name": folder.name,
        "root": str(folder),
        "mask_dir": mask_dir,
        "val_split_mode": "same_as_test",
    }
    config["trainer"]["callbacks"][0]["init_args"] |= {"weights": str(weights), "root": str(out.parent / "msacl")}
    config["trainer"]["callbacks"][0]["init_args"]["recipe"] = {"max_steps": steps}
    return config


def run(config: dict[str, Any], work: Path) -> dict[str, str]:
    """Run `anomalib train` and return its test metrics and the verdict of the pre-training."""
    path = work / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    logger = ["--trainer.logger", "lightning.pytorch.loggers.CSVLogger", "--trainer.logger.save_dir", str(work)]
    command = [ANOMALIB, "train", "--config", str(path), "--default_root_dir", str(work), *logger]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    with next(work.rglob("metrics.csv")).open() as file:
        figures = {key: value for row in csv.DictReader(file) for key, value in row.items() if value}
    said = [line for line in done.stderr.splitlines() if " - MSACL: " in line]
    return {name: f"{float(figures[name]):.4f}" for name in FIGURES if name in figures} | {
        "verdict": next((line.split("MSACL: ")[1] for line in said if "held-out" in line), "")
    }


def table(path: Path) -> None:
    """Print the rows of a file as a Markdown table."""
    with path.open() as file:
        rows = list(csv.DictReader(file))
    found = {(row["set"], row["model"], row["arm"]): row for row in rows}
    print("| set | model | image AUROC | pixel AUROC | AUPRO | step kept |\n|---|---|---|---|---|---|")
    for name, model in dict.fromkeys((row["set"], row["model"]) for row in rows):
        before, after = (found.get((name, model, arm), {}) for arm in ARMS)
        cells = [
            f"{float(before[key]):.3f} -> {float(after[key]):.3f}" if before.get(key) and after.get(key) else "-"
            for key in FIGURES
        ]
        said = after.get("verdict", "")
        step = "0" if "untouched backbone is kept" in said else said.split(" won")[0].removeprefix("step ") or "-"
        print(f"| {name} | {model} | {' | '.join(cells)} | {step} |")


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("weights", type=Path, nargs="?")
    parser.add_argument("--out", type=Path, default=Path("results/four_sets.csv"))
    parser.add_argument("--sets", nargs="*")
    parser.add_argument("--table", type=Path)
    arguments = parser.parse_args()
    if arguments.table or not arguments.data:
        table(arguments.table or arguments.out)
        return
    out: Path = arguments.out.resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    fields = ["set", "model", "arm", *FIGURES, "seconds", "verdict"]
    rows: list[dict[str, str]] = []
    if out.exists():
        with out.open() as file:
            rows = list(csv.DictReader(file))
    names = arguments.sets or sorted(path.name for path in arguments.data.iterdir() if path.is_dir())
    for name, model, (arm, steps) in ((n, m, a) for n in names for m in MODELS for a in ARMS.items()):
        if any((row["set"], row["model"], row["arm"]) == (name, model, arm) for row in rows):
            continue
        config = configuration((arguments.data / name).resolve(), arguments.weights.resolve(), model, steps, out)
        with tempfile.TemporaryDirectory() as work:
            start = time.monotonic()
            figures = run(config, Path(work))
        row = {"set": name, "model": model, "arm": arm, "seconds": f"{time.monotonic() - start:.0f}", **figures}
        rows.append(row)
        print(row, flush=True)
        with out.open("w", newline="") as file:
            writer = csv.DictWriter(file, fields)
            writer.writeheader()
            writer.writerows(rows)
    table(out)


if __name__ == "__main__":
    main()
