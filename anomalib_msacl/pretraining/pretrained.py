"""What comes of a pre-training, and how it is saved."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from anomalib_msacl.backbone import Encoder, Provenance, rescale, save_backbone
from anomalib_msacl.backbone.card import CardFacts, model_card
from anomalib_msacl.backbone.folder import CANDIDATES
from anomalib_msacl.backbone.tensors import StateDict, copy_of
from anomalib_msacl.pretraining.questions import Score
from anomalib_msacl.recipe import Recipe


@dataclass(frozen=True)
class Pretrained:
    """What comes of a pre-training.

    Attributes:
        encoder: The backbone with the weights that are kept.
        provenance: Where they come from, and what they were made for.
        recipe: How they were made.
        steps: Optimiser steps that were made.
        candidates: Score of every candidate by name, in the order in which they were compared.
        kept: Name of the candidate that is kept; None where nothing was compared.
        verdict: One sentence: which one is kept, and why.
    """

    encoder: Encoder
    provenance: Provenance
    recipe: Recipe
    steps: int
    candidates: Mapping[str, Score]
    kept: str | None
    verdict: str

    @property
    def weights(self) -> StateDict:
        """The weights that are kept, on the CPU."""
        return copy_of(self.encoder.backbone)

    def save(self, directory: str | Path, data: str = "unknown", images: int | None = None) -> Path:
        """Save the backbone in timm's folder format with a model card, and ``candidates.csv`` where there was a choice.

        Args:
            directory: Folder to write; an earlier one of weights is replaced if nothing else is in it.
            data: Name of the data set, for the model card.
            images: Number of training images, for the model card.

        Returns:
            The folder.
        """
        whitened = self.recipe.whitening
        encoder, provenance = at_std(self.encoder, self.provenance, whitened.saved_std or whitened.std)
        compared = [(name, score.image_auroc, score.pixel_auroc) for name, score in self.candidates.items()]
        facts = CardFacts(self.recipe.plain(), data, "unknown" if images is None else images, self.steps)
        if self.steps or compared:
            facts = replace(facts, verdict=self.verdict, candidates=compared, kept=self.kept)
        more = {CANDIDATES: _table(compared, self.kept)} if compared else {}
        return save_backbone(encoder.backbone, directory, provenance, model_card(provenance, facts), more)


def _table(compared: Sequence[tuple[str, float, float]], kept: str | None) -> str:
    """Return the candidates and their scores as CSV."""
    lines = [f"{name},{image:.6f},{pixel:.6f},{name == kept}" for name, image, pixel in compared]
    return "\n".join(["candidate,image_auroc,pixel_auroc,kept", *lines, ""])


def at_std(encoder: Encoder, provenance: Provenance, wanted: float | None) -> tuple[Encoder, Provenance]:
    """Return an encoder whose whitened feature maps have another standard deviation.

    Args:
        encoder: Left alone.
        provenance: What its weights were made for.
        wanted: Standard deviation of a channel; 0 or None leaves it.

    Returns:
        A copy, or the encoder itself where nothing changes; maps that were never whitened keep theirs.
    """
    present = provenance.feature_std
    if present is None or not wanted or wanted == present:
        return encoder, provenance
    scaled = copy.deepcopy(encoder)
    rescale(scaled, wanted / present, provenance.layers)
    return scaled, replace(provenance, feature_std=wanted)
