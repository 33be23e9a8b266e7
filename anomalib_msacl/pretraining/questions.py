"""Questions to a candidate: held-out normal images with and without lesions, answered by a small PatchCore."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from anomalib_msacl import distributed
from anomalib_msacl.backbone import Encoder
from anomalib_msacl.backbone.encoder import evaluating
from anomalib_msacl.backbone.frozen import FrozenStages
from anomalib_msacl.errors import InputError
from anomalib_msacl.pretraining.images import NormalImages
from anomalib_msacl.pretraining.losses import cells
from anomalib_msacl.pretraining.patches import patch_features
from anomalib_msacl.recipe import Recipe

logger = logging.getLogger(__name__)

FEWEST = 5  # held-out images that a standard error can be told from
LESIONS = 2  # copies of each held-out image with lesions
_CHUNK = 32
_BANK_IMAGES = 32
_BANK = 2048
_ROWS = 1024  # patches compared with the bank at once: few enough for the cache of a processor
_REMEMBERED = 256 << 20  # bytes of frozen features that are kept for the next candidate
_RESAMPLES = 200


class Score(NamedTuple):
    """How well normal patches tell lesions apart.

    Attributes:
        image_auroc: AUROC of images, in [0, 1]; what the choice goes by: the mean of that of their farthest patches,
            which sees focal lesions, and that of the mean distance of their patches, which sees diffuse ones.
        pixel_auroc: AUROC of patches, in [0, 1], for information: it prefers features that real lesions do not.
        distances: The two distances of each image, normal ones first, shape ``(2, M + L)``; None if not finite.
    """

    image_auroc: float
    pixel_auroc: float
    distances: Tensor | None = None

    @property
    def held_out(self) -> int | None:
        """Number of held-out normal images; None without distances."""
        return None if self.distances is None else self.distances.shape[1] // (1 + LESIONS)


def standard_error(first: Score, second: Score) -> float:
    """Return the standard error of the difference of two image AUROC, by a bootstrap over the normal images.

    Args:
        first: Score of one candidate.
        second: Score of another, on the same questions.

    Returns:
        At least 0; 0 where a score has no distances, infinite where there are too few images to tell.
    """
    if first.distances is None or second.distances is None:
        return 0.0
    images = cast("int", first.held_out)
    if images < FEWEST or first.distances.shape != second.distances.shape:
        return math.inf
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(images, (_RESAMPLES, images), generator=generator)
    times = torch.zeros(_RESAMPLES, images, dtype=torch.float64).scatter_add_(
        1, drawn, torch.ones_like(drawn, dtype=torch.float64)
    )
    # The AUROC is the part of pairs that are in order, so that a draw only weights the pairs.
    difference = _ordered(first.distances, images) - _ordered(second.distances, images)
    differences = ((times @ difference) * times).sum(dim=1) / images**2
    return float(differences.std())


def _ordered(distances: Tensor, images: int) -> Tensor:
    """Return the part of pairs in which an image with lesions lies farther than a normal one; ties count half.

    Args:
        distances: K distances of the normal images and then of their copies with lesions, in the same order, shape
            ``(K, (1 + copies) * images)``.
        images: Number of normal images.

    Returns:
        By the normal image under the lesions, and the normal image, shape ``(images, images)``.
    """
    normal, lesions = distances[:, None, None, :images], distances[:, images:].reshape(len(distances), -1, images, 1)
    return ((lesions > normal).double() + 0.5 * (lesions == normal)).mean(dim=(0, 1))


class Asks(Protocol):
    """Questions on held-out images, of which a candidate answers all."""

    def score(self, encoder: Any, device: torch.device, /) -> Score:
        """Return the score of an encoder, or of a whole detector, which is on the device."""


class Questions:
    """A small PatchCore on held-out images: distance of patches to the nearest of a random bank of normal patches.

    Lesions are of the families that are not trained with: what the training has seen would flatter it. Images, lesions
    and the places of the bank are drawn once, so that all candidates face the same questions.

    Args:
        bank: Normal training images in [0, 1], shape ``(N, 3, H, W)``.
        held_out: Other normal images, shape ``(M, 3, H, W)``.
        recipe: Its lesions and seed are used.
    """

    def __init__(self, bank: Tensor, held_out: Tensor, recipe: Recipe) -> None:
        generator = torch.Generator().manual_seed(recipe.seed)
        counts = torch.arange(LESIONS * len(held_out)) % (recipe.classes - 1) + 1
        copies = held_out.repeat(LESIONS, 1, 1, 1)
        lesions = recipe.lesions.mixture(recipe.lesions.others()).synthesize(copies, counts, generator)
        self.bank = bank[:_BANK_IMAGES]
        self.images = torch.cat([held_out, lesions.image])
        self.masks = torch.cat([torch.zeros_like(held_out[:, :1]), lesions.mask])
        self.labels = (torch.arange(len(self.images)) >= len(held_out)).long()
        self.order = torch.rand(1 << 20, generator=generator)
        self._remembered: list[Tensor] = []
        self._of: FrozenStages | None = None

    @torch.no_grad()
    def score(self, encoder: Encoder, device: torch.device) -> Score:
        """Return the score of an encoder; its training mode is left as it was."""
        with evaluating(encoder):
            distance, size = self._distances(encoder, device)
        if not distance.isfinite().all():
            logger.warning("MSACL: the features are not finite any more; try a smaller optimizer.learning_rate.")
            return Score(0.0, 0.0)  # never the best
        masks = cells(self.masks, self.masks.new_empty(0, 0, *size)).flatten(1) > 0.5
        images = torch.stack([distance.amax(dim=1), distance.mean(dim=1)])
        lesions = masks.flatten()
        pixel = roc_auc_score(lesions, distance.flatten()) if lesions.any() else 0.5
        return Score(_auroc(images, self.labels), float(pixel), images)

    def _distances(self, encoder: Encoder, device: torch.device) -> tuple[Tensor, torch.Size]:
        """Return the distance of each patch of the images to the bank, and the size of the maps.

        The features of one chunk of images are held at a time: those of all of them take gigabytes.

        Returns:
            Shape ``(M, h * w)``, on the CPU, and ``(h, w)``.
        """
        patches = self._patches(encoder, device)
        first = torch.cat([next(patches) for _ in torch.split(self.bank, _CHUNK)])
        size, bank = first.shape[-2:], _rows(first)
        bank = bank[self.order[: len(bank)].argsort()[:_BANK].to(device)]
        del first
        found = map(partial(nearest, bank=bank), _blocks(map(_rows, patches), _ROWS))  # which keeps no block
        return torch.cat(list(found)).reshape(len(self.images), -1).cpu(), size

    def _patches(self, encoder: Encoder, device: torch.device) -> Iterator[Tensor]:
        """Yield patch features of the bank's images and of all others by chunks, shape ``(B, C, h, w)``."""
        chunks = [*torch.split(self.bank, _CHUNK), *torch.split(self.images, _CHUNK)]
        frozen = encoder.frozen
        if frozen is None or frozen.index is None or min(encoder.index) < frozen.index:
            for chunk in chunks:
                yield patch_features(encoder(chunk.to(device), pooled=False)[0])
            return
        wanted = sorted(set(encoder.index))
        for features in self._features(frozen, chunks, device):
            found = frozen.maps(encoder, features, wanted)
            yield patch_features([found[index] for index in encoder.index])

    def _features(self, frozen: FrozenStages, chunks: list[Tensor], device: torch.device) -> Iterator[Tensor]:
        """Yield the output of the frozen stages, which is remembered for the next candidate if it is not too much."""
        if self._of is frozen and self._remembered:
            yield from (features.to(device) for features in self._remembered)
            return
        kept: list[Tensor] = []
        size = 0
        for chunk in chunks:
            features = frozen.features(chunk.to(device))
            size += features.nbytes
            kept = [*kept, features.cpu()] if size <= _REMEMBERED else []
            yield features
        self._of, self._remembered = frozen, kept


class AskedOnce:
    """Questions that the first of several processes asks; all of them hear the score.

    Args:
        questions: The questions; None on the other processes.
    """

    def __init__(self, questions: Questions | None) -> None:
        self.questions = questions

    def score(self, encoder: Encoder, device: torch.device) -> Score:
        """Return the score of an encoder that is the same on all processes."""
        return distributed.on_main(lambda: cast("Questions", self.questions).score(encoder, device))


def draw_questions(images: NormalImages, held_out: NormalImages | None, recipe: Recipe) -> Asks | None:
    """Return what the candidates are asked; None without images for it.

    Args:
        images: Normal training images.
        held_out: Other normal images.
        recipe: Says how many.
    """
    drawn: list[Questions] = []

    def draw() -> bool:
        bank = images.collect(recipe.choice.images)
        others = None if held_out is None else held_out.collect(recipe.choice.images)
        if bank is not None and others is not None and bank.shape[-2:] != others.shape[-2:]:
            sizes = [" x ".join(map(str, images.shape[-2:])) for images in (bank, others)]
            raise InputError(
                f"training images have {sizes[0]} pixels and held-out ones {sizes[1]}; resize one of them."
            )
        if bank is not None and others is not None:
            drawn.append(Questions(bank, others, recipe))
        return bool(drawn)

    if not distributed.on_main(draw):
        return None
    return drawn[0] if distributed.world_size() == 1 else AskedOnce(drawn[0] if drawn else None)


def _rows(maps: Tensor) -> Tensor:
    """Return the patches of maps of shape ``(B, C, h, w)``, image by image, shape ``(B * h * w, C)``."""
    return maps.movedim(1, -1).flatten(0, 2).contiguous()


def _blocks(parts: Iterable[Tensor], number: int) -> Iterator[Tensor]:
    """Yield the rows of parts in blocks of a number, and the rest in a last one.

    Blocks of other numbers could have other last digits: a product of matrices depends on how it is cut.

    Args:
        parts: Of shape ``(N, D)`` each; one is held at a time.
        number: Rows of a block.
    """
    left: Tensor | None = None  # the last rows of earlier parts, fewer than a block
    for part in parts:
        rest = part
        if left is not None:
            missing = number - len(left)
            left, rest = torch.cat([left, part[:missing]]), part[missing:]
            if len(left) < number:
                continue
            yield left
        whole = len(rest) // number * number
        if whole:
            yield from torch.split(rest[:whole], number)
        left = rest[whole:].clone()
        del part, rest  # before the next one is made
    if left is not None and len(left):
        yield left


def _auroc(distances: Tensor, labels: Tensor) -> float:
    """Return the mean AUROC of several distances of the same images, shape ``(K, N)``."""
    return float(np.mean([roc_auc_score(labels, distance) for distance in distances]))


def nearest(rows: Tensor, bank: Tensor) -> Tensor:
    """Return the Euclidean distance of each row to the nearest of a bank.

    Args:
        rows: Shape ``(N, D)``.
        bank: Shape ``(M, D)``.

    Returns:
        Shape ``(N,)``.
    """
    middle = bank.mean(dim=0)  # distances are differences of products: near the origin they keep more digits
    rows, bank = rows - middle, bank - middle
    squared = torch.addmm(bank.square().sum(dim=1), rows, bank.T, alpha=-2).amin(dim=1) + rows.square().sum(dim=1)
    return squared.clamp_min(0).sqrt()
