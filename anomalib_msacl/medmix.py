"""MedMix: synthetic lesions out of normal images (MSACL, arXiv 2109.01303).

Small patches are cut out of normal images, deformed in look and pasted at random places of a normal image. The paper
names colour jitter, Gaussian noise, fisheye and horizontal wave; sizes, shapes and blending are not published, so
every one of them is an argument here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from torchvision import tv_tensors
from torchvision.transforms.v2 import Transform

from anomalib_msacl.errors import InputError
from anomalib_msacl.functional import Lesions, foreground_fraction, outline_extent, paste_lesions

MINIMUM_SIDE = 32
_GRID = 32  # cells along a side for places on the foreground
_CANDIDATES = 12  # places tried for a lesion that keeps clear of the earlier ones

Range = tuple[float, float]


class MedMixOutput(NamedTuple):
    """Images with synthetic lesions.

    Attributes:
        image: Values in [0, 1], shape ``(B, C, H, W)``.
        mask: 1 inside a lesion, else 0, shape ``(B, 1, H, W)``, type of the images.
        count: Number of lesions, shape ``(B,)``, int64.
    """

    image: Tensor
    mask: Tensor
    count: Tensor  # type: ignore[assignment]  # hides tuple.count, which nobody needs here


class MedMix(Transform):  # type: ignore[misc]  # torchvision ships no types
    """Paste synthetic lesions into normal images, batched, on the device of the images.

    Lengths are relative to the shorter side of the image. A pair ``(low, high)`` is drawn uniformly, ``radius``
    log-uniformly; brightness and fisheye get a random sign.

    As a torchvision transform it takes what anomalib passes to ``train_augmentations``: an image, or an image and a
    mask, which the lesions are added to. With ``return_mask=True`` it answers as anomalib's
    ``PerlinAnomalyGenerator`` does, ``images -> (images, masks)``, and can take its place in DRAEM, GLASS and DSR.

    Args:
        counts: Numbers of lesions, one of which is drawn for each image whose number is not given.
        radius: Mean radius of a lesion, relative to the shorter side.
        aspect: Long axis over short axis of the ellipse.
        irregularity: Largest deviation of the outline from the ellipse, relative to the radius, in [0, .5].
        edge: Width of the soft edge inside the outline, relative to the radius, in (0, 1].
        opacity: Weight of the pasted patch, in (0, 1].
        brightness: Magnitude of the change of intensity, images being in [0, 1].
        contrast: Factor of the contrast.
        saturation: Factor of the saturation. Grey images stay grey.
        hue: Turn of the hue in degrees, RGB images only.
        gamma: Exponent of the non-linear change of intensity, drawn log-uniformly.
        noise: Standard deviation of Gaussian noise.
        fisheye: Magnitude of the radial distortion, 0 is none, in [0, .9].
        wave: Amplitude of the horizontal wave, relative to the radius.
        other_image: Probability that a patch comes from another image of the batch rather than from the same.
        keep_on_foreground: Place lesions on tissue and cut their patches there; see
            :func:`anomalib_msacl.functional.foreground`.
        foreground_threshold: Intensity above which a pixel is tissue, in [0, 1]; a plain background of another colour
            is left out too.
        return_mask: Return ``(images, masks)`` when called.

    Raises:
        InputError: If a range is out of bounds.

    Example:
        >>> import torch
        >>> images = torch.rand(4, 3, 64, 64)
        >>> output = MedMix().synthesize(images, counts=torch.tensor([0, 1, 2, 3]))
        >>> output.image.shape, output.mask.shape, output.count.tolist()
        (torch.Size([4, 3, 64, 64]), torch.Size([4, 1, 64, 64]), [0, 1, 2, 3])
    """

    _transformed_types = (torch.Tensor,)

    def __init__(
        self,
        counts: Sequence[int] = (0, 1, 2, 3),
        radius: Range = (0.05, 0.16),
        aspect: Range = (1.0, 1.8),
        irregularity: float = 0.25,
        edge: Range = (0.2, 0.6),
        opacity: Range = (0.6, 1.0),
        brightness: Range = (0.05, 0.3),
        contrast: Range = (0.5, 1.5),
        saturation: Range = (0.5, 1.5),
        hue: Range = (-20.0, 20.0),
        gamma: Range = (0.7, 1.4),
        noise: Range = (0.0, 0.06),
        fisheye: Range = (0.0, 0.6),
        wave: Range = (0.0, 0.2),
        other_image: float = 0.5,
        keep_on_foreground: bool = True,
        foreground_threshold: float = 0.08,
        return_mask: bool = False,
    ) -> None:
        super().__init__()
        self.counts = [int(count) for count in counts] if isinstance(counts, Sequence) else [int(counts)]
        self.radius = _checked("radius", radius, 1e-3, 0.5)
        self.aspect = _checked("aspect", aspect, 1, 8)
        self.irregularity = _checked("irregularity", (0, irregularity), 0, 0.5)[1]
        self.edge = _checked("edge", edge, 1e-3, 1)
        self.opacity = _checked("opacity", opacity, 1e-3, 1)
        self.brightness = _checked("brightness", brightness, 0, 1)
        self.contrast = _checked("contrast", contrast, 0, 10)
        self.saturation = _checked("saturation", saturation, 0, 10)
        self.hue = _checked("hue", hue, -180, 180)
        self.gamma = _checked("gamma", gamma, 0.05, 20)
        self.noise = _checked("noise", noise, 0, 1)
        self.fisheye = _checked("fisheye", fisheye, 0, 0.9)
        self.wave = _checked("wave", wave, 0, 1)
        self.other_image = _checked("other_image", (0, other_image), 0, 1)[1]
        self.keep_on_foreground = keep_on_foreground
        self.foreground_threshold = _checked("foreground_threshold", (0, foreground_threshold), 0, 1)[1]
        self.return_mask = return_mask
        if not self.counts or min(self.counts) < 0:
            raise InputError(f"MedMix: counts is {self.counts}, but it must name at least one number, none below 0.")

    def synthesize(
        self, images: Tensor, counts: Tensor | int | None = None, generator: torch.Generator | None = None
    ) -> MedMixOutput:
        """Draw lesions and paste them.

        Args:
            images: Values in [0, 1], shape ``(B, C, H, W)``, float32 or half.
            counts: Lesions for each image, shape ``(B,)``, or one number for all; drawn from ``self.counts`` if None.
            generator: Source of the random numbers, on its own device; torch's global one if None.

        Returns:
            Images, masks and counts; an image with no lesion is the input bit for bit.

        Raises:
            InputError: If the images are not a floating batch of at least 32 x 32 pixels.
        """
        lesions = self.draw(images, counts, generator)
        image, mask = self.apply(images, lesions)
        return MedMixOutput(image, mask, torch.bincount(lesions.image, minlength=len(images)))

    @staticmethod
    def apply(images: Tensor, lesions: Lesions, donors: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Paste lesions that were drawn before; see :func:`anomalib_msacl.functional.paste_lesions`."""
        return paste_lesions(images, lesions, donors)

    @torch.no_grad()
    def draw(
        self, images: Tensor, counts: Tensor | int | None = None, generator: torch.Generator | None = None
    ) -> Lesions:
        """Draw the parameters of lesions for a batch of images; nothing is changed.

        Args and errors are those of :meth:`synthesize`.

        Returns:
            The parameters, on the device of the images.
        """
        check_images(images)
        draw = Draw(generator, images.device)
        image, order = self._assign(len(images), counts, draw)
        total, side = len(image), min(images.shape[-2:])
        radius = (draw.log_uniform(self.radius, total) * side).clamp_min(1.5)  # else it may cover no pixel
        aspect = draw.uniform(self.aspect, total)
        outline = self._outline(total, draw)
        extent = outline_extent(radius, aspect, outline)
        donor = self._donor(image, len(images), draw)
        weights, size = self._weights(images), images.shape[-2:]
        centre = self._places(weights[image], size, order, extent, draw)
        source = self._sample_cells(weights[donor], 1, size, draw)[:, 0] if total else centre
        window = [min(2 * math.ceil(float(extent.max())) + 3 if total else 1, limit) for limit in images.shape[-2:]]
        noise = draw.normal((total, 1, *window)) * draw.uniform(self.noise, total)[:, None, None, None]
        wave = [
            draw.uniform(self.wave, total) * radius,
            draw.uniform((0.5, 2.0), total) * radius,
            draw.angle(total),
        ]
        return Lesions(
            image=image,
            order=order,
            donor=donor,
            centre=centre,
            source=source,
            radius=radius,
            aspect=aspect,
            angle=draw.angle(total),
            outline=outline,
            edge=draw.uniform(self.edge, total),
            opacity=draw.uniform(self.opacity, total),
            turn=draw.angle(total),
            fisheye=draw.uniform(self.fisheye, total) * draw.sign(total),
            wave=torch.stack(wave, dim=1),
            brightness=draw.uniform(self.brightness, total) * draw.sign(total),
            contrast=draw.uniform(self.contrast, total),
            saturation=draw.uniform(self.saturation, total),
            hue=draw.uniform(self.hue, total) * (math.pi / 180),
            gamma=draw.log_uniform(self.gamma, total),
            noise=noise,
        )

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Paste lesions into the image among the inputs (torchvision's extension point)."""
        images = [tensor for tensor in flat_inputs if not isinstance(tensor, tv_tensors.Mask)]
        if not images:
            raise InputError("MedMix: there is no image among the inputs; pass an image tensor, alone or with a mask.")
        batch = _batched(images[0])
        image, mask = self.apply(batch, self.draw(batch))
        return {"image": image, "mask": mask}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Return the image with its lesions, or add them to a mask (torchvision's extension point)."""
        images, masks = params["image"], params["mask"]
        if isinstance(inpt, tv_tensors.Mask):
            lesions = (masks if inpt.ndim == 4 else masks[:, 0] if inpt.ndim == 3 else masks[0, 0]).to(inpt.dtype)
            return tv_tensors.wrap(torch.maximum(inpt.as_subclass(Tensor), lesions), like=inpt)
        images = images.reshape(inpt.shape)
        return tv_tensors.wrap(images, like=inpt) if isinstance(inpt, tv_tensors.TVTensor) else images

    def forward(self, *inputs: Any) -> Any:
        """Transform images, and masks with them.

        Args:
            *inputs: As for any torchvision transform. With ``return_mask`` a single image tensor of shape
                ``(C, H, W)`` or ``(B, C, H, W)``.

        Returns:
            The inputs with lesions; with ``return_mask`` images and masks of shape ``(1, H, W)`` or
            ``(B, 1, H, W)``.
        """
        if not self.return_mask:
            return super().forward(*inputs)
        image, mask, _ = self.synthesize(_batched(inputs[0]))
        return image.reshape(inputs[0].shape), mask.reshape((*inputs[0].shape[:-3], 1, *mask.shape[-2:]))

    def _assign(self, batch: int, counts: Tensor | int | None, draw: Draw) -> tuple[Tensor, Tensor]:
        """Return image and order of each lesion, each of shape ``(N,)``."""
        if counts is None:
            chosen = draw.integers(len(self.counts), batch)
            counts = torch.tensor(self.counts, device=draw.target)[chosen]
        counts = torch.as_tensor(counts, device=draw.target).long()
        if counts.shape not in {(), (batch,)} or bool((counts < 0).any()):
            raise InputError(f"MedMix: counts is {counts.tolist()}, but must be one number per image, none below 0.")
        counts = counts.expand(batch)
        image = torch.repeat_interleave(torch.arange(batch, device=draw.target), counts)
        first = counts.cumsum(0) - counts
        return image, torch.arange(len(image), device=draw.target) - first[image]

    def _outline(self, total: int, draw: Draw) -> Tensor:
        """Return harmonics 2 to 5 whose amplitudes fall off and sum to ``irregularity`` at most."""
        share = torch.tensor([0.4, 0.3, 0.2, 0.1], device=draw.target) * self.irregularity
        amplitude = draw.uniform((0.0, 1.0), total * len(share)).reshape(total, len(share)) * share
        phase = draw.angle(total * len(share)).reshape(total, len(share))
        return torch.stack([amplitude * phase.cos(), amplitude * phase.sin()], dim=-1)

    def _donor(self, image: Tensor, batch: int, draw: Draw) -> Tensor:
        """Return the own image, or with probability ``other_image`` another one."""
        if batch == 1:
            return image
        other = (image + 1 + draw.integers(batch - 1, len(image))) % batch
        return torch.where(draw.uniform((0.0, 1.0), len(image)) < self.other_image, other, image)

    def _places(self, weights: Tensor, size: torch.Size, order: Tensor, extent: Tensor, draw: Draw) -> Tensor:
        """Return centres on the foreground that keep clear of the lesions before them, shape ``(N, 2)``."""
        if len(order) == 0:
            return torch.zeros(0, 2, device=draw.target)
        candidates = self._sample_cells(weights, _CANDIDATES, size, draw)
        centre = candidates[:, 0].clone()
        for rank in range(1, int(order.max()) + 1):
            rows = (order == rank).nonzero().squeeze(1)
            clearance = torch.full((len(rows), _CANDIDATES), math.inf, device=draw.target)
            for earlier in range(1, rank + 1):
                others = rows - earlier  # lesions of one image stand in consecutive rows
                distance = (candidates[rows] - centre[others, None]).norm(dim=-1)
                clearance = torch.minimum(clearance, distance - (extent[rows] + extent[others])[:, None])
            # The first candidate that is clear of all, or else the one that is least in the way.
            best = clearance.clamp(max=0).argmax(dim=1)
            centre[rows] = candidates[rows, best]
        return centre

    @property
    def tissue_above(self) -> float:
        """Threshold of the tissue; below 0, where all is tissue, unless lesions are to keep to it."""
        return self.foreground_threshold if self.keep_on_foreground else -1.0

    def _weights(self, images: Tensor) -> Tensor:
        """Return for each image how likely a lesion lies in each cell, shape ``(B, cells, cells)``."""
        fraction = foreground_fraction(images, self.tissue_above, _GRID)
        # Cells whose neighbourhood is tissue too; thin structures fall back to whatever tissue there is.
        around = F.avg_pool2d(fraction[:, None], 7, 1, 3, count_include_pad=False)[:, 0]
        inner = torch.where((around > 0.9) & (fraction > 0.9), 1.0, 0.0)
        none = inner.flatten(1).amax(dim=1) == 0
        return torch.where(none[:, None, None], fraction, inner)

    @staticmethod
    def _sample_cells(weights: Tensor, samples: int, size: torch.Size, draw: Draw) -> Tensor:
        """Return ``(y, x)`` in pixels, drawn by the weights of the cells, shape ``(N, samples, 2)``."""
        cell = draw.multinomial(weights.flatten(1), samples)
        y, x = cell // _GRID, cell % _GRID
        offset = draw.uniform((0.0, 1.0), 2 * cell.numel()).reshape(*cell.shape, 2)
        sides = torch.tensor(size, device=draw.target)
        return (torch.stack([y, x], dim=-1) + offset) / _GRID * sides - 0.5


class Draw:
    """Random numbers from one generator, moved to one device."""

    def __init__(self, generator: torch.Generator | None, target: torch.device) -> None:
        self.generator = generator
        self.source = target if generator is None else generator.device
        self.target = target

    def uniform(self, limits: Range, size: int) -> Tensor:
        """Return values drawn uniformly, shape ``(size,)``."""
        low, high = limits
        values = torch.rand(size, generator=self.generator, device=self.source)
        return (low + (high - low) * values).to(self.target)

    def log_uniform(self, limits: Range, size: int) -> Tensor:
        """Return values whose logarithm is uniform, shape ``(size,)``."""
        return self.uniform((math.log(limits[0]), math.log(limits[1])), size).exp()

    def angle(self, size: int) -> Tensor:
        """Return angles in radians, shape ``(size,)``."""
        return self.uniform((-math.pi, math.pi), size)

    def sign(self, size: int) -> Tensor:
        """Return -1 or 1, shape ``(size,)``."""
        return self.integers(2, size) * 2.0 - 1

    def integers(self, high: int, size: int) -> Tensor:
        """Return whole numbers from 0 to ``high - 1``, shape ``(size,)``, int64."""
        return torch.randint(high, (size,), generator=self.generator, device=self.source).to(self.target)

    def normal(self, shape: tuple[int, ...]) -> Tensor:
        """Return standard normal values."""
        return torch.randn(shape, generator=self.generator, device=self.source).to(self.target)

    def multinomial(self, weights: Tensor, samples: int) -> Tensor:
        """Return columns drawn by the weights of each row, with replacement, shape ``(rows, samples)``."""
        weights = weights.to(self.source)
        return torch.multinomial(weights, samples, replacement=True, generator=self.generator).to(self.target)


def _checked(name: str, limits: Sequence[float], lowest: float, highest: float) -> Range:
    """Return a range as a pair of floats, or say what is wrong with it."""
    if not isinstance(limits, Sequence) or len(limits) != 2 or not lowest <= limits[0] <= limits[1] <= highest:
        raise InputError(
            f"MedMix: {name} is {limits}, but it must be (low, high) with {lowest} <= low <= high <= {highest}."
        )
    return float(limits[0]), float(limits[1])


def check_images(images: Tensor) -> None:
    """Refuse what is not a floating batch of images that a lesion fits into."""
    if images.ndim != 4 or not images.is_floating_point():
        raise InputError(
            f"MedMix: images have shape {tuple(images.shape)} and type {images.dtype}, but must be (B, C, H, W) and "
            "floating with values in [0, 1]; convert them before, for example by torchvision's to_dtype(scale=True)."
        )
    if min(images.shape[-2:]) < MINIMUM_SIDE:
        raise InputError(
            f"MedMix: images are {images.shape[-2]} x {images.shape[-1]} pixels, smaller than a lesion needs; "
            f"enlarge them to at least {MINIMUM_SIDE} x {MINIMUM_SIDE}."
        )


def _batched(image: Tensor) -> Tensor:
    """Return ``(C, H, W)`` or ``(B, C, H, W)`` as a plain batch."""
    image = image.as_subclass(Tensor)
    return image[None] if image.ndim == 3 else image
