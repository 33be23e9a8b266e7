"""What a run of ``anomalib train`` has left in its folder, and the weights that it was given."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from anomalib.models.components import AnomalibModule

from anomalib_msacl.backbone import create_backbone
from anomalib_msacl.backbone.card import CardFacts, read_card
from anomalib_msacl.comparison.configured import Configured
from anomalib_msacl.errors import InputError
from anomalib_msacl.report.config import config_of
from anomalib_msacl.transfer import find_backbone

Curve = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Run:
    """A folder such as ``results/Patchcore/my_images/v0``.

    Attributes:
        folder: The folder, without links.
        config: Its ``config.yaml``.
        checkpoint: The checkpoint; None where there is none.
    """

    folder: Path
    config: Configured
    checkpoint: Path | None

    @classmethod
    def open(cls, folder: str | Path) -> Run:
        """Look into a folder.

        Args:
            folder: Where a run's ``config.yaml`` is.

        Raises:
            InputError: If it is not the folder of a run.
        """
        config_file = config_of(folder)
        path, config = config_file.parent, Configured.read(config_file)
        found = sorted((path / "weights" / "lightning").glob("*.ckpt"), key=lambda file: file.stat().st_mtime)
        return cls(path, config, found[-1] if found else None)

    @property
    def model_name(self) -> str:
        """Name of the model's class."""
        return str(self.config.section("model").get("class_path", "")).rpartition(".")[2]

    def weights(self, model: AnomalibModule) -> Path | None:
        """Return the folder of the pre-trained weights that a fitted model holds; None where it is not there.

        Args:
            model: The model of this run, with its checkpoint loaded.
        """
        own = self.folder / "weights" / "timm"  # of Msacl, which pre-trains itself
        if (own / "config.json").is_file():
            return own
        callback = self.config.pretraining()
        if callback is None:
            return None
        target = find_backbone(model)
        before = {name: dict(network.state_dict()) for name, network in target.networks.items()}
        found = None
        for config in sorted(callback.root.glob("*/config.json")):
            try:
                target.fill(create_backbone(target.architecture, str(config.parent), target.model_args).model)
            except InputError:
                continue  # weights of another architecture
            if all(_equal(before[name], network.state_dict()) for name, network in target.networks.items()):
                found = config.parent
                break
        for name, network in target.networks.items():
            network.load_state_dict(before[name])
        return found


def _equal(first: Mapping[str, object], second: Mapping[str, object]) -> bool:
    """Whether two state dicts hold the same numbers."""
    return all(bool((first[name] == value).all()) for name, value in second.items())  # type: ignore[attr-defined]


def facts_of(weights: Path) -> CardFacts | None:
    """Return what the model card of the weights tells."""
    return read_card(weights)


def curves_of(weights: Path) -> dict[str, Curve]:
    """Return the curves of a pre-training, by name, as pairs of step and value; empty where there are none.

    Args:
        weights: Folder of the weights; the curves lie in ``logs`` beside it.
    """
    file = weights.parent / "logs" / weights.name / "metrics.csv"
    if not file.is_file():
        return {}
    found: dict[str, list[tuple[float, float]]] = {}
    with file.open(newline="", encoding="utf-8") as opened:
        for row in csv.DictReader(opened):
            step = float(row.get("step") or "nan")
            for name, text in row.items():
                if name in {"step", "epoch"} or not text or math.isnan(step):
                    continue
                found.setdefault(name, []).append((step + 1, float(text)))
    return dict(found)
