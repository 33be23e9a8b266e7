"""IGD as tensors: one encoder, a part for whole images and a part for patches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from anomalib.data import InferenceBatch
from anomalib.models.components import TimmFeatureExtractor
from torch import Tensor, nn

from anomalib_msacl.detectors.igd.anomaly_map import PatchGrid, joint_map, joint_score
from anomalib_msacl.detectors.igd.autoencoder import Autoencoder, Normalisation
from anomalib_msacl.errors import InputError
from anomalib_msacl.transfer import channels_first

_WINDOW, _PATCH_WINDOW = 11, 3  # pixels
_OF_WHOLE = (0.1, 0.9)  # weights of L_rec and L_gac in the score of an image
_OF_PATCH = (0.9, 0.1)
_CHUNK = 256  # patches at a time


class IgdModel(nn.Module):
    """Scores images by how badly they are reconstructed and how far their descriptor lies from normality.

    Args:
        backbone: A timm name, ``local-dir:DIR`` or ``hf-hub:OWNER/NAME``.
        layers: Layers whose maps are pooled and joined: the features that descriptors are made of. They are there.
        size: Height and width of the images in pixels.
        pre_trained: Build the backbone with timm's weights.
        frozen: Leave the backbone as it is.
        dim: Dimension of the descriptors.
        width: Base width of decoders and critics.
        patch_size: Side of the patches in pixels; 0 leaves the local part out.
        patch_stride: Distance of neighbouring patches in pixels.
        mean: Normalisation of the images that come in, one value a channel.
        std: Normalisation of the images that come in, one value a channel.

    Raises:
        InputError: If the backbone takes no images or patches of these sizes.
    """

    def __init__(
        self,
        backbone: str,
        layers: Sequence[str | int],
        size: tuple[int, int],
        pre_trained: bool = True,
        frozen: bool = True,
        dim: int = 128,
        width: int = 32,
        patch_size: int = 32,
        patch_stride: int = 16,
        mean: Sequence[float] = (0.0, 0.0, 0.0),
        std: Sequence[float] = (1.0, 1.0, 1.0),
    ) -> None:
        super().__init__()
        self.size, self.frozen = size, frozen
        self.normalisation = Normalisation(torch.tensor(mean), torch.tensor(std))
        self.feature_extractor = TimmFeatureExtractor(backbone, layers, pre_trained, requires_grad=not frozen)
        features = self._check_encoder([size, (patch_size, patch_size)] if patch_size else [size])
        self.whole = Autoencoder(features, dim, size, width, _WINDOW, self.normalisation)
        self.grid = PatchGrid(patch_size, patch_stride)
        self.patch: Autoencoder | None = None
        if patch_size:
            self.patch = Autoencoder(features, dim, (patch_size, patch_size), width, _PATCH_WINDOW, self.normalisation)

    @property
    def parts(self) -> dict[str, Autoencoder]:
        """The part for whole images, and the one for patches if there is one."""
        return {"whole": self.whole} | ({"patch": self.patch} if self.patch is not None else {})

    def train(self, mode: bool = True) -> IgdModel:
        """Set the training mode; a frozen encoder stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.feature_extractor.eval()
        return self

    def features(self, images: Tensor) -> Tensor:
        """Return the pooled features of normalised images ``(B, 3, h, w)``, shape ``(B, features)``."""
        maps = self.feature_extractor(images).values()
        return torch.cat([layer.mean(dim=(-2, -1)) for layer in maps], dim=1)

    def forward(self, images: Tensor) -> InferenceBatch:
        """Score images.

        Args:
            images: Normalised, shape ``(B, 3, H, W)``.

        Returns:
            Scores of shape ``(B,)`` and maps of shape ``(B, 1, H, W)``, in [0, 1] but for very bad reconstructions.
        """
        reconstruction, gaussian, residual = self.whole.examine(images, self.features(images))
        score = _weighted(_OF_WHOLE, reconstruction, gaussian)
        patch_scores, patch_map = self._local(images) if self.patch is not None else (None, None)
        return InferenceBatch(pred_score=joint_score(score, patch_scores), anomaly_map=joint_map(residual, patch_map))

    def _local(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the scores of all patches ``(B, P)`` and their joint map ``(B, 1, H, W)``."""
        patches = self.grid.cut(images)
        number = patches.shape[1]
        found = _in_chunks(self._examine_patches, patches.flatten(0, 1))
        reconstruction, gaussian, residual = (part.reshape(-1, number, *part.shape[1:]) for part in found)
        return _weighted(_OF_PATCH, reconstruction, gaussian), self.grid.join(residual, self.size)

    def _examine_patches(self, patches: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.parts["patch"].examine(patches, self.features(patches))

    def _check_encoder(self, sizes: Sequence[Sequence[int]]) -> int:
        """Return the channels of all layers, or say what the backbone cannot take."""
        extractor: Any = self.feature_extractor
        for size in sizes:
            maps = self._try(size)
        if not channels_first(maps, extractor):
            raise InputError(
                f"Igd: the backbone {extractor.backbone!r} gives its maps with the channels last; name another one."
            )
        return int(sum(extractor.out_dims))

    def _try(self, size: Sequence[int]) -> list[Tensor]:
        """Return the maps of an empty image, or say why there are none."""
        extractor: Any = self.feature_extractor
        try:
            with torch.no_grad():
                return list(extractor.eval()(torch.zeros(1, 3, *size)).values())
        except (AssertionError, RuntimeError, ValueError) as error:
            raise InputError(
                f"Igd: the backbone {extractor.backbone!r} cannot take images of {size[0]} x {size[1]} pixels "
                f"({(str(error).splitlines() or ['-'])[0]}); name another size or backbone, or leave the patches out "
                "by patch_size 0."
            ) from error


def _weighted(weights: tuple[float, float], reconstruction: Tensor, gaussian: Tensor) -> Tensor:
    return weights[0] * reconstruction + weights[1] * gaussian


def _in_chunks(
    examine: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]], patches: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Examine patches a few at a time, which needs less memory; all at once where the model is exported."""
    if torch.compiler.is_compiling() or len(patches) <= _CHUNK:
        return examine(patches)
    first, second, third = zip(*(examine(chunk) for chunk in torch.split(patches, _CHUNK)), strict=True)
    return torch.cat(first), torch.cat(second), torch.cat(third)
