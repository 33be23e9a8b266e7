"""Sets x arms x models x seeds from one YAML: a row per run in a CSV, and the table and the plot of README.

    python benchmarks/compare.py run DATA WEIGHTS [--out results/compare] [--sets ..] [--arms ..] [--models ..]
                                           [--seeds ..] [--config benchmarks/compare.yaml]
    python benchmarks/compare.py table results/compare/runs.csv [--arms ..]
    python benchmarks/compare.py agreement results/compare/runs.csv --arms ..
    python benchmarks/compare.py plot results/compare/runs.csv docs/compare.png

DATA holds one folder per set, laid out as configs/msacl_patchcore_folder.yaml says; WEIGHTS is a folder in timm's
format or another name that `weights` of the callback takes. Rows that are in the CSV with the same configuration are
not run again, so an interrupted run goes on; several processes may share one CSV, each with sets or seeds of its own.

A model of `models` may also say: `trainer`, arguments of the trainer; `batch_size`; `validation: from_train`, which
holds out images for models that choose by them; `seeded`, for models with a seed of their own.

An arm is a backbone. `recipe` is a pre-training by `anomalib_msacl.Msacl`, `baseline` one of baselines.py, neither
takes the initial weights as they are. One backbone serves all models: anomalib's get it from the callback
`MsaclPretraining` with `max_steps: 0`, as a user would who pre-trained once.
"""

from __future__ import annotations

import argparse
import csv
import fcntl
import hashlib
import importlib
import importlib.metadata
import json
import math
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning
import torch
import yaml
from anomalib.data import Folder
from anomalib.engine import Engine
from anomalib.metrics import AUPRO, Evaluator
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from scipy.stats import spearmanr
from torch import Tensor
from torchvision.transforms.v2 import Resize

from _common import AUROC, auroc, pre_processor, rows, set_of, sets_in
from anomalib_msacl import Msacl, MsaclPretraining, Recipe
from anomalib_msacl.backbone import Encoder, create_backbone, save_backbone
from anomalib_msacl.comparison.statistics import interval, spread
from anomalib_msacl.pretraining import Questions, pretrain
from anomalib_msacl.pretraining.preparation import encoder_for
from baselines import BASELINES

FIGURES = ("image_AUROC", "pixel_AUROC", "pixel_AUPRO")
PROVENANCE = ("device", "versions", "setting", "key")
FIELDS = ("set", "arm", "model", "seed", *FIGURES, "kept", "held_out", "pretrain_s", "seconds", *PROVENANCE)
PACKAGES = ("anomalib-msacl", "anomalib", "torch", "timm", "lightning")


class Bench:
    """One YAML, one folder of sets, one file of rows.

    Args:
        config: The YAML, read.
        data: Folder of sets.
        weights: Initial weights.
        out: Folder for rows and backbones.
    """

    def __init__(self, config: dict[str, Any], data: Path, weights: str, out: Path) -> None:
        self.config, self.data, self.out = config, data, out
        self.weights = str(Path(weights).resolve()) if Path(weights).exists() else weights
        file = Path(self.weights) / "model.safetensors"
        self.initial = hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else self.weights
        self.size = (config["image_size"],) * 2
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        out.mkdir(parents=True, exist_ok=True)
        self.file = out / "runs.csv"

    def run(self, name: str, arm: str, seed: int, models: list[str]) -> None:
        """Make the rows of one backbone that are missing."""
        recipe = self.config["arms"][arm].get("recipe")
        wanted = [model for model in models if model != "msacl" or recipe is not None]
        done = {(row["set"], row["arm"], row["model"], row["seed"], row["key"]) for row in rows(self.file)}
        missing = [m for m in wanted if (name, arm, m, str(seed), self.key(arm, m)) not in done]
        if not missing:
            return
        folder = self.backbone(name, arm, seed)
        if not (folder / "notes.json").exists() or "msacl" in missing:
            start = time.monotonic()
            figures = self.pretrain(name, arm, seed, folder, score="msacl" in wanted)
            notes = {"kept": figures.pop("kept", ""), "pretrain_s": f"{time.monotonic() - start:.0f}"}
            (folder / "notes.json").write_text(json.dumps(notes))
            if "msacl" in missing:
                self.add(name, arm, "msacl", seed, figures | notes)
        notes = json.loads((folder / "notes.json").read_text())
        for model in missing:
            if model != "msacl":
                start = time.monotonic()
                figures = self.test(name, model, seed, folder)
                self.add(name, arm, model, seed, {**notes, **figures, "seconds": f"{time.monotonic() - start:.0f}"})

    def pretrain(self, name: str, arm: str, seed: int, folder: Path, score: bool) -> dict[str, str]:
        """Make the backbone of an arm; with a recipe, also test the model that made it."""
        arm_config, config = self.config["arms"][arm], self.config
        weights = arm_config.get("weights", self.weights)
        lightning.seed_everything(seed, verbose=False)
        recipe = self.recipe(arm, seed)
        if recipe is not None and recipe.whitening.alone:
            images = torch.cat(list(self.images(self.folder(name, seed, 32, "from_train").train_data)))
            start = create_backbone(config["backbone"], weights)
            prepared = encoder_for(start, recipe, config["layers"], config["mean"], config["std"], self.size)
            pretrain(*prepared, images, None, recipe).save(folder, name, len(images))
            return {"kept": "whitened"}
        if recipe is not None:
            model = Msacl(
                config["backbone"],
                weights,
                config["layers"],
                config["image_size"],
                recipe,
                folder,
                config["mean"],
                config["std"],
                detector=score,
                post_processor=False,
                evaluator=self.evaluator(name),
                visualizer=False,
            )
            with self.engine() as engine:
                data = self.folder(name, seed, model.recipe.batch_size, "from_train")
                engine.fit(model, datamodule=data)
                figures = engine.test(model, datamodule=data)[0] if score else {}
            kept = {"kept": model.run.choice.kept or f"step {model.recipe.max_steps}"}
            return {key: f"{value:.4f}" for key, value in figures.items() if key in FIGURES} | kept
        backbone, provenance = create_backbone(config["backbone"], weights)
        if "baseline" in arm_config:
            encoder = Encoder(backbone, config["layers"], config["mean"], config["std"], frozen_stride=4)
            images = torch.cat(list(self.images(self.folder(name, seed, 32, "from_train").train_data)))
            BASELINES[arm_config["baseline"]](
                encoder.to(self.device), images.to(self.device), arm_config["steps"], seed
            )
        used = replace(provenance, mean=tuple(config["mean"]), std=tuple(config["std"]), layers=tuple(config["layers"]))
        save_backbone(backbone.cpu(), folder, used, f"Arm {arm} of compare.py.")
        return {}

    def recipe(self, arm: str, seed: int) -> Recipe | None:
        """Return the recipe of an arm; None for arms that are no MSACL."""
        settings = self.config["arms"][arm].get("recipe")
        if settings is None:
            return None
        choice = {"held_out": self.config["held_out"], **settings.get("choice", {})}
        return Recipe.of({**settings, "seed": seed, "choice": choice})

    def backbone(self, name: str, arm: str, seed: int) -> Path:
        """Return the folder of a backbone, which :meth:`run` fills."""
        return self.out / "weights" / f"{name}-{arm}-{seed}-{self.key(arm, '')}"

    def test(self, name: str, model: str, seed: int, folder: Path) -> dict[str, str]:
        """Fit a detector on a backbone and test it on the whole test set."""
        settings = self.config["models"][model]
        if "class_path" not in settings:
            return self.neighbours(self.folder(name, seed, 32), folder, settings)
        with self.fitted(name, model, seed, folder) as (engine, detector, data):
            figures = engine.test(detector, datamodule=data)[0]
        layers = settings["init_args"].get("layers") or [settings["init_args"]["layer"]]
        held_out = {"held_out": f"{self.probe(name, seed, folder, layers):.4f}"}
        return {key: f"{value:.4f}" for key, value in figures.items() if key in FIGURES} | held_out

    @contextmanager
    def fitted(self, name: str, model: str, seed: int, folder: Path) -> Iterator[tuple[Engine, Any, Folder]]:
        """Give a detector that was fitted on a backbone, with its engine and data."""
        settings = self.config["models"][model]
        validation = settings.get("validation", "same_as_test")  # nothing of it is ever used
        data = self.folder(name, seed, settings.get("batch_size", 32), validation)
        callback = MsaclPretraining(str(folder), Recipe(max_steps=0), self.out / "handed_over")
        with self.engine(callbacks=[callback], **settings.get("trainer", {})) as engine:
            detector = self.detector(name, model, seed)
            engine.fit(detector, datamodule=data)
            yield engine, detector, data

    def detector(self, name: str, model: str, seed: int) -> Any:
        """Return a detector of anomalib that waits for its backbone; the seed is that of its draws."""
        lightning.seed_everything(seed, verbose=False)
        settings = self.config["models"][model]
        module, _, kind = settings["class_path"].rpartition(".")
        return getattr(importlib.import_module(module), kind)(
            backbone=self.config["backbone"],
            pre_trained=False,
            pre_processor=pre_processor(self.size, self.config["mean"], self.config["std"]),
            post_processor=False,
            evaluator=self.evaluator(name, settings.get("maps", True)),
            visualizer=False,
            **settings["init_args"],
            **({"seed": seed} if settings.get("seeded") else {}),
        )

    def probe(self, name: str, seed: int, folder: Path, layers: list[str]) -> float:
        """Return what the choice of the weights thinks of a backbone; no test image takes part."""
        data = self.folder(name, seed, 32, "from_train")
        recipe = Recipe(seed=seed)
        bank, held_out = (
            torch.cat(list(self.images(part)))[: recipe.choice.images] for part in (data.train_data, data.val_data)
        )
        encoder = self.encoder(folder, layers)
        return Questions(bank, held_out, recipe).score(encoder, torch.device(self.device)).image_auroc

    @torch.no_grad()
    def neighbours(self, data: Folder, folder: Path, settings: dict[str, Any]) -> dict[str, str]:
        """Score test images by their nearest training images, by pooled features of unit length."""
        encoder = self.encoder(folder, settings["layers"])

        def pooled(dataset: Any) -> Tensor:
            parts = [encoder(images.to(self.device), pooled=False)[0] for images in self.images(dataset)]
            return torch.cat([torch.cat([maps.mean(dim=(-2, -1)) for maps in part], dim=1).cpu() for part in parts])

        distance = torch.cdist(pooled(data.test_data), pooled(data.train_data))
        scores = distance.topk(settings["neighbours"], largest=False).values.mean(dim=1)
        labels = torch.tensor(data.test_data.samples.label_index.to_numpy())
        return {"image_AUROC": f"{auroc(scores.cpu(), labels.cpu()):.4f}"}

    def encoder(self, folder: Path, layers: list[str]) -> Encoder:
        """Return a backbone in evaluation mode."""
        backbone = create_backbone(self.config["backbone"], str(folder))[0]
        return Encoder(backbone, layers, self.config["mean"], self.config["std"]).to(self.device).eval()

    def images(self, dataset: Any) -> Iterator[Tensor]:
        """Yield batches of images in [0, 1]."""
        resize = Resize(self.size, antialias=True)
        loader = torch.utils.data.DataLoader(dataset, batch_size=32, collate_fn=dataset.collate_fn)
        for batch in loader:
            yield resize(batch.image.as_subclass(Tensor))

    def folder(self, name: str, seed: int, batch_size: int, validation: str = "same_as_test") -> Folder:
        """Return a set; `from_train` holds images out. No validation runs, so `same_as_test` is never used."""
        data = set_of(
            self.data / name,
            self.masks(name),
            train_batch_size=batch_size,
            eval_batch_size=32,
            val_split_mode=validation,
            val_split_ratio=self.config["held_out"],
            seed=seed,
        )
        data.prepare_data()
        data.setup()
        return data

    def masks(self, name: str) -> bool:
        """Whether a set has masks."""
        return (self.data / name / "ground_truth").is_dir()

    def evaluator(self, name: str, maps: bool = True) -> Evaluator:
        """Return the metrics of a set, for models with or without maps."""
        metrics: list[Any] = [AUROC(fields=["pred_score", "gt_label"], prefix="image_")]
        if maps and self.masks(name):
            metrics += [kind(fields=["anomaly_map", "gt_mask"], prefix="pixel_") for kind in (AUROC, AUPRO)]
        return Evaluator(test_metrics=metrics)

    @contextmanager
    def engine(self, **options: Any) -> Iterator[Engine]:
        """Give an engine in a folder that is removed afterwards."""
        quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
        with tempfile.TemporaryDirectory() as work:
            yield Engine(
                accelerator=self.device, devices=1, limit_val_batches=0, default_root_dir=work, **quiet, **options
            )

    def setting(self, model: str) -> str:
        """Return a hash of what all arms of a model share; figures of different settings must not be compared."""
        shared = {k: v for k, v in self.config.items() if k not in {"models", "arms", "sets", "seeds", "reference"}}
        return _hash([shared, self.config["models"].get(model), self.initial])

    def key(self, arm: str, model: str) -> str:
        """Return a hash of what a row follows from."""
        return _hash([self.setting(model), self.config["arms"][arm]])

    def add(self, name: str, arm: str, model: str, seed: int, figures: dict[str, str]) -> None:
        """Append a row; other processes may do so too."""
        versions = " ".join(f"{package}={importlib.metadata.version(package)}" for package in PACKAGES)
        device = torch.cuda.get_device_name() if self.device == "cuda" else f"cpu {platform.machine()}"
        row = {"set": name, "arm": arm, "model": model, "seed": seed, "device": device, "versions": versions}
        row |= {"setting": self.setting(model), "key": self.key(arm, model), **figures}
        with self.file.open("a", newline="") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0, 2)
            writer = csv.DictWriter(file, FIELDS)
            if file.tell() == 0:
                writer.writeheader()
            writer.writerow(row)
        print(
            {key: value for key, value in row.items() if key not in {"versions", "device", "setting", "key"}},
            flush=True,
        )


def _hash(content: Any) -> str:
    """Return a short hash of plain data."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:10]


def one_setting(runs: list[dict[str, str]]) -> list[dict[str, str]]:
    """Return the rows, or stop where those of one model were made with different settings or initial weights."""
    for model in {row["model"] for row in runs}:
        if len({row["setting"] for row in runs if row["model"] == model}) > 1:
            sys.exit(f"The rows of {model} were made with different settings; give each setting an --out of its own.")
    return runs


class Comparison:
    """Figures of the runs of one model: mean, spread, and difference to the reference arm, paired by set and seed.

    Args:
        runs: Rows of a CSV.
        model: Name of the model.
        figure: Which figure.
        reference: Name of the arm that the others are compared with.
    """

    def __init__(self, runs: list[dict[str, str]], model: str, figure: str, reference: str) -> None:
        self.reference = reference
        self.values: dict[str, dict[tuple[str, str], float]] = {}
        for row in runs:
            if row["model"] == model and row[figure]:
                self.values.setdefault(row["arm"], {})[row["set"], row["seed"]] = float(row[figure])
        self.sets = sorted({name for values in self.values.values() for name, _ in values})

    def of(self, arm: str, name: str) -> list[float]:
        """Return the figures of an arm on a set, one a seed."""
        return [value for (found, _), value in sorted(self.values[arm].items()) if found == name]

    def differences(self, arm: str, sets: Sequence[str]) -> list[float]:
        """Return the difference to the reference for every seed that has all sets in both arms, mean over the sets."""
        ours, theirs = self.values[arm], self.values.get(self.reference, {})
        seeds = sorted({seed for _, seed in ours})
        pairs = [[(name, seed) for name in sets] for seed in seeds]
        return [
            statistics.fmean(ours[pair] - theirs[pair] for pair in group)
            for group in pairs
            if all(pair in ours and pair in theirs for pair in group)
        ]


def table(runs: list[dict[str, str]], reference: str, arms: Sequence[str] | None) -> Iterator[str]:
    """Yield the lines of one Markdown table for each model and figure."""
    for model, figure in ((m, f) for m in dict.fromkeys(row["model"] for row in runs) for f in FIGURES):
        found = Comparison(runs, model, figure, reference)
        if not found.values:
            continue
        yield from ("", f"{model}, {figure}", "")
        yield f"| arm | seeds | {' | '.join(found.sets)} | difference to {reference}, mean of the sets |"
        yield "|---" * (len(found.sets) + 3) + "|"
        for arm in arms or found.values:
            if arm not in found.values:
                continue
            seeds = len({seed for _, seed in found.values[arm]})
            cells = [spread(found.of(arm, name)) for name in found.sets]
            differences = found.differences(arm, found.sets)
            gain = "-"
            if differences and arm != reference:
                mean, half = interval(differences)
                gain = f"{mean:+.3f}" + ("" if math.isnan(half) else f" [{mean - half:+.3f}, {mean + half:+.3f}]")
            yield f"| {arm} | {seeds} | {' | '.join(cells)} | {gain} |"


def agreement(runs: list[dict[str, str]], arms: Sequence[str]) -> Iterator[str]:
    """Yield a Markdown table: does the choice on held-out normal images know which of the arms is best on real ones?

    Rank correlation of the held-out image AUROC with the real one, mean over sets and seeds; how much the arm that the
    held-out images prefer lies below the best one (its regret); and the same for each arm if it were always taken.
    """
    yield "| model | sets x seeds | rank correlation | regret of the choice | " + " | ".join(arms) + " |"
    yield "|---" * (len(arms) + 4) + "|"
    for model in dict.fromkeys(row["model"] for row in runs if row["held_out"]):
        cases: dict[tuple[str, str], dict[str, tuple[float, float]]] = {}
        for row in runs:
            if row["model"] == model and row["held_out"] and row["arm"] in arms:
                figures = (float(row["held_out"]), float(row["image_AUROC"]))
                cases.setdefault((row["set"], row["seed"]), {})[row["arm"]] = figures
        full = [case for case in cases.values() if len(case) == len(arms)]
        if not full:
            continue
        best = [max(real for _, real in case.values()) for case in full]
        taken = [statistics.fmean(r for h, r in c.values() if h == max(c.values())[0]) for c in full]
        ranks = [float(spearmanr(*zip(*case.values(), strict=True)).statistic) for case in full]
        known = [rank for rank in ranks if not math.isnan(rank)]  # none where all arms have the same held-out figure
        rank = statistics.fmean(known) if known else math.nan
        regrets = [statistics.fmean(top - case[arm][1] for top, case in zip(best, full, strict=True)) for arm in arms]
        chosen = statistics.fmean(top - real for top, real in zip(best, taken, strict=True))
        cells = " | ".join(f"{regret:.3f}" for regret in regrets)
        yield f"| {model} | {len(full)} | {rank:.2f} | {chosen:.3f} | {cells} |"


TITLES = {
    "patchcore": "PatchCore",
    "padim": "PaDiM",
    "dfm": "Dfm",
    "dfkde": "Dfkde",
    "knn": "Neighbours, pooled features",
}
MEASURES = {"image_AUROC": "images (AUROC)", "pixel_AUPRO": "maps (AUPRO)"}
NAMES = {"msacl": "MSACL", "dense_only": "MSACL without the image-level terms", "whitened": "whitening alone"}
COLOURS = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#D55E00",
)  # Okabe and Ito's, for colour-blind readers


def plot(runs: list[dict[str, str]], reference: str, arms: Sequence[str], path: Path) -> None:
    """Draw the differences to the reference in points on one scale, a dot for each seed and a bar for their mean."""
    models = [model for model in dict.fromkeys(row["model"] for row in runs) if model != "msacl"]
    panels = [(m, f) for m in models for f in MEASURES if Comparison(runs, m, f, reference).values]
    columns = min(2, len(panels))
    lines = math.ceil(len(panels) / columns)
    shape = {"figsize": (5.2 * columns, 3.8 * lines + 0.8), "sharex": True, "squeeze": False}
    figure, axes = plt.subplots(lines, columns, **shape)
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    for axis, (model, name) in zip(axes.flat, panels, strict=False):
        found = Comparison(runs, model, name, reference)
        draw_panel(axis, found, [arm for arm in arms if arm in found.values], arms)
        axis.set_title(f"{TITLES.get(model, model)}: {MEASURES[name]}", fontsize=15)
    for axis in axes[-1]:
        axis.set_xlabel("points gained", fontsize=14)
    # Not every model was run with all arms.
    handles, labels = max((axis.get_legend_handles_labels() for axis in axes.flat), key=lambda found: len(found[1]))
    figure.legend(handles, labels, fontsize=13, loc="lower center", ncols=len(labels), frameon=False)
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw_panel(axis: Axes, found: Comparison, shown: Sequence[str], arms: Sequence[str]) -> None:
    """Draw one model and figure: a group of bars for each set, from above."""
    height = 0.8 / max(len(shown), 1)
    for number, arm in enumerate(shown):
        label: str | None = NAMES.get(arm, arm.replace("_", " "))
        for place, data in enumerate(found.sets):
            values = [100 * value for value in found.differences(arm, [data])]
            if not values:
                continue
            y = place - 0.4 + height * (number + 0.5)
            axis.barh(y, statistics.fmean(values), height, color=COLOURS[arms.index(arm) % len(COLOURS)], label=label)
            axis.plot(values, [y] * len(values), "o", color="black", markersize=4)
            label = None
    axis.axvline(0, color="black", linewidth=1)
    axis.set_yticks(range(len(found.sets)), [data.replace("_", " ") for data in found.sets], fontsize=13)
    axis.tick_params(axis="x", labelsize=13)
    axis.invert_yaxis()


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("run", help="make the rows that are missing")
    command.add_argument("data", type=Path)
    command.add_argument("weights")
    command.add_argument("--out", type=Path, default=Path("results/compare"))
    command.add_argument("--sets", nargs="*")
    command.add_argument("--models", nargs="*")
    command.add_argument("--seeds", nargs="*", type=int)
    for name in ("table", "agreement", "plot"):
        shown = commands.add_parser(name)
        shown.add_argument("runs", type=Path)
        if name == "plot":
            shown.add_argument("picture", type=Path)
    for subparser in commands.choices.values():
        subparser.add_argument("--config", type=Path, default=Path(__file__).with_suffix(".yaml"))
        subparser.add_argument("--arms", nargs="*")
    arguments = parser.parse_args()
    config = yaml.safe_load(arguments.config.read_text())
    if arguments.command == "table":
        print("\n".join(table(one_setting(rows(arguments.runs)), config["reference"], arguments.arms)))
    elif arguments.command == "agreement":
        print("\n".join(agreement(one_setting(rows(arguments.runs)), arguments.arms or list(config["arms"]))))
    elif arguments.command == "plot":
        arms = arguments.arms or [arm for arm in config["arms"] if arm != config["reference"]]
        plot(one_setting(rows(arguments.runs)), config["reference"], arms, arguments.picture)
    else:
        bench = Bench(config, arguments.data, arguments.weights, arguments.out.resolve())
        folders = sets_in(arguments.data)
        for seed in arguments.seeds or config["seeds"]:
            for name in arguments.sets or config["sets"] or folders:
                for arm in arguments.arms or config["arms"]:
                    bench.run(name, arm, seed, arguments.models or list(config["models"]))


if __name__ == "__main__":
    main()
