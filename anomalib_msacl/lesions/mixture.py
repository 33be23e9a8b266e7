"""Lesions of several families on a batch of images, as a transform."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import Transform

from anomalib_msacl.errors import InputError
from anomalib_msacl.lesions.base import FAMILIES, Lesion, Parameters
from anomalib_msacl.lesions.canvas import Canvas, check_images
from anomalib_msacl.lesions.painting import Pixels, compose, paint
from anomalib_msacl.lesions.placing import CANDIDATES, Occupied
from anomalib_msacl.lesions.randomness import Draw
from anomalib_msacl.lesions.shades import Spot

# A lesion that cannot be seen is drawn again: so often of its own family, then of any of the mixture, then as a spot.
_OWN_TRIES = 3
_ANY_TRIES = 2
_TRIES = _OWN_TRIES + _ANY_TRIES + 5
_LAST_RESORT = Spot()


class LesionOutput(NamedTuple):
    """Images with synthetic lesions.

    Attributes:
        image: Values in [0, 1], shape ``(B, C, H, W)``.
        mask: 1 inside a lesion, else 0, shape ``(B, 1, H, W)``, type of the images.
        count: Number of lesions, shape ``(B,)``, int64.
    """

    image: Tensor
    mask: Tensor
    count: Tensor  # type: ignore[assignment]  # hides tuple.count, which nobody needs here


@dataclass(frozen=True)
class Lesions:
    """Lesions of a batch, of several families.

    Attributes:
        families: Families that have lesions.
        parts: Parameters of the lesions of each of them, sorted by image and order.
    """

    families: tuple[Lesion[Any], ...]
    parts: tuple[Parameters, ...]

    def __len__(self) -> int:
        """Return the number of lesions."""
        return sum(len(part) for part in self.parts)

    @property
    def family(self) -> list[str]:
        """Name of the family of each lesion, family by family as in :attr:`image`."""
        return [family.name for family, part in zip(self.families, self.parts, strict=True) for _ in range(len(part))]

    @property
    def image(self) -> Tensor:
        """Image of each lesion, shape ``(N,)``, int64."""
        return self._all("image", torch.zeros(0, dtype=torch.long))

    @property
    def order(self) -> Tensor:
        """Rank of each lesion within its image, shape ``(N,)``, int64."""
        return self._all("order", torch.zeros(0, dtype=torch.long))

    @property
    def centre(self) -> Tensor:
        """Centre ``(y, x)`` of each lesion in pixels, shape ``(N, 2)``."""
        return self._all("centre", torch.zeros(0, 2))

    def of_image(self, index: int) -> Lesions:
        """Return the lesions of one image, renumbered as those of a batch of one; donors keep their index."""
        parts = [(family, part.of_image(index)) for family, part in zip(self.families, self.parts, strict=True)]
        return Lesions.of([(family, part) for family, part in parts if len(part)])

    @staticmethod
    def of(parts: Sequence[tuple[Lesion[Any], Parameters]]) -> Lesions:
        """Return lesions out of pairs of a family and its parameters."""
        return Lesions(tuple(family for family, _ in parts), tuple(part for _, part in parts))

    def _all(self, name: str, empty: Tensor) -> Tensor:
        """Return one of the parameters that all families share."""
        return torch.cat([getattr(part, name) for part in self.parts]) if self.parts else empty


class LesionMixture(Transform):  # type: ignore[misc]  # torchvision ships no types
    """Add synthetic lesions to normal images, each of one family drawn at random, batched, on the images' device.

    As a torchvision transform it takes what anomalib passes to ``train_augmentations``: an image, or an image and a
    mask, which the lesions are added to. With ``return_mask=True`` it answers as anomalib's
    ``PerlinAnomalyGenerator`` does, ``images -> (images, masks)``, and can take its place in DRAEM, GLASS and DSR.

    What cannot be seen is no lesion: masks are cut down to the pixels that change visibly, all others stay as they
    were, and a lesion of which too little is left is drawn again, three times as its own family, twice as any of the
    mixture, then as a plain spot (:class:`Spot`), which shows on an image of one colour too, where a displacement, for
    one, changes nothing. So the number of lesions stays exact.

    Args:
        families: Names out of :data:`FAMILIES`, or configured lesions.
        counts: Numbers of lesions, one of which is drawn for each image whose number is not given.
        keep_on_foreground: Place lesions on tissue; see :func:`anomalib_msacl.lesions.foreground.foreground`.
        foreground_threshold: Intensity above which a pixel is tissue, in [0, 1]; a plain background of another colour
            is left out too.
        visible: Change of intensity that is visible, in [0, 1]; see :func:`anomalib_msacl.lesions.painting.paint`.
            With 0 masks are whole outlines, and no lesion is drawn again.
        return_mask: Return ``(images, masks)`` when called.

    Raises:
        InputError: If a family does not exist, or a value is out of its limits.

    Example:
        >>> import torch
        >>> mixture = LesionMixture(["medmix", "haze"])
        >>> output = mixture.synthesize(torch.rand(4, 3, 64, 64), counts=torch.tensor([0, 1, 2, 3]))
        >>> output.image.shape, output.mask.shape, output.count.tolist()
        (torch.Size([4, 3, 64, 64]), torch.Size([4, 1, 64, 64]), [0, 1, 2, 3])
    """

    _transformed_types = (torch.Tensor,)

    def __init__(
        self,
        families: Sequence[str | Lesion] = ("medmix",),  # type: ignore[type-arg]  # jsonargparse reads it
        counts: Sequence[int] = (0, 1, 2, 3),
        keep_on_foreground: bool = True,
        foreground_threshold: float = 0.08,
        visible: float = 0.02,
        return_mask: bool = False,
    ) -> None:
        super().__init__()
        place = type(self).__name__
        self.families = _configured(families)
        self.counts = [int(count) for count in counts] if isinstance(counts, Sequence) else [int(counts)]
        if not self.counts or min(self.counts) < 0:
            raise InputError(f"{place}: counts is {self.counts}, but it must name at least one number, none below 0.")
        for name, value in (("foreground_threshold", foreground_threshold), ("visible", visible)):
            if not 0 <= value <= 1:
                raise InputError(f"{place}: {name} is {value}, but it must be from 0 to 1.")
        self.keep_on_foreground = keep_on_foreground
        self.foreground_threshold = float(foreground_threshold)
        self.visible = float(visible)
        self.return_mask = return_mask

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the families."""
        return tuple(family.name for family in self.families)

    def synthesize(
        self, images: Tensor, counts: Tensor | int | None = None, generator: torch.Generator | None = None
    ) -> LesionOutput:
        """Draw lesions and add them to images.

        Args:
            images: Values in [0, 1], shape ``(B, C, H, W)``, float32 or half.
            counts: Lesions for each image, shape ``(B,)``, or one number for all; drawn from ``self.counts`` if None.
                With shape ``(B, K)``, K images are made of each, which stand next to each other in the output; that is
                faster than to repeat the images before.
            generator: Source of the random numbers, on its own device; torch's global one if None.

        Returns:
            Images, masks and counts; images equal the input wherever the mask is 0, so an image with no lesion is the
            input bit for bit.

        Raises:
            InputError: If the images are not a floating batch of at least 32 x 32 pixels.
        """
        draw = self._checked(images, generator)
        counts = self._counts(len(images), counts, draw)
        canvas = self._canvas(images, counts.shape[1])
        _, painted = self._draw(canvas, counts.flatten(), draw)
        image, mask = compose(images, painted, canvas.copies)
        return LesionOutput(image, mask, counts.flatten())

    @torch.no_grad()
    def draw(
        self, images: Tensor, counts: Tensor | int | None = None, generator: torch.Generator | None = None
    ) -> Lesions:
        """Draw the lesions of a batch of images; nothing is changed.

        Args and errors are those of :meth:`synthesize`.

        Returns:
            The lesions that :meth:`synthesize` adds, for :meth:`apply`; with counts of shape ``(B, K)`` they belong on
            images of which each is repeated K times.
        """
        draw = self._checked(images, generator)
        counts = self._counts(len(images), counts, draw)
        return self._draw(self._canvas(images, counts.shape[1]), counts.flatten(), draw)[0]

    def apply(self, images: Tensor, lesions: Lesions, donors: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Add lesions that were drawn before.

        Args:
            images: Values in [0, 1], shape ``(B, C, H, W)``.
            lesions: What to add; ``lesions.image`` points into ``images``.
            donors: Images that patches are cut from, of the same size; ``images`` if None.

        Returns:
            Images and masks, the same at every call.
        """
        canvas = self._canvas(images, donors=donors)
        painted = [
            pixels
            for family, part in zip(lesions.families, lesions.parts, strict=True)
            for _, pixels in paint(canvas, family, part, self.visible)[1]
        ]
        return compose(images, painted)

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Add lesions to the image among the inputs (torchvision's extension point)."""
        images = [tensor for tensor in flat_inputs if not isinstance(tensor, tv_tensors.Mask)]
        if not images:
            raise InputError(
                f"{type(self).__name__}: no image is among the inputs; pass an image tensor, alone or with a mask."
            )
        output = self.synthesize(_batched(images[0]))
        return {"image": output.image, "mask": output.mask}

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

    def extra_repr(self) -> str:
        """Return every setting, so that two mixtures that differ read differently."""
        names = ("families", "counts", "keep_on_foreground", "foreground_threshold", "visible", "return_mask")
        return ", ".join(f"{name}={getattr(self, name)}" for name in names)

    def _checked(self, images: Tensor, generator: torch.Generator | None) -> Draw:
        """Return random numbers for images that are fit for lesions."""
        check_images(images, type(self).__name__)
        return Draw(generator, images.device)

    def _canvas(self, images: Tensor, copies: int = 1, donors: Tensor | None = None) -> Canvas:
        """Return the images with what lesions need to know of them."""
        threshold = self.foreground_threshold if self.keep_on_foreground else -1.0
        return Canvas(images, threshold, copies, donors)

    def _counts(self, batch: int, counts: Tensor | int | None, draw: Draw) -> Tensor:
        """Return the number of lesions of each copy of each image, shape ``(B, K)``, int64."""
        if counts is None:
            counts = torch.tensor(self.counts, device=draw.target)[draw.integers(len(self.counts), batch)]
        counts = torch.as_tensor(counts, device=draw.target).long()
        shaped = counts.ndim == 0 or (counts.ndim <= 2 and len(counts) == batch)
        if not shaped or bool((counts < 0).any()):
            raise InputError(
                f"{type(self).__name__}: counts is {counts.tolist()}, but must be one number per image, none below 0."
            )
        return counts if counts.ndim == 2 else counts.expand(batch)[:, None]

    def _draw(self, canvas: Canvas, counts: Tensor, draw: Draw) -> tuple[Lesions, list[Pixels]]:
        """Draw lesions until all of them are visible, and return them with their pixels."""
        image = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
        order = torch.arange(len(image), device=image.device) - (counts.cumsum(0) - counts)[image]
        occupied = Occupied(len(counts), int(counts.max()) if len(counts) else 0, canvas.side, image.device)
        own = draw.integers(len(self.families), len(image))
        drawn: dict[int, list[Parameters]] = {}
        painted: list[Pixels] = []
        todo = torch.arange(len(image), device=image.device)
        for attempt in range(_TRIES):
            if len(todo) == 0:
                break
            kind = self._kinds(attempt, own[todo], draw)
            left = []
            for index, part in self._place(canvas, image[todo], order[todo], kind, occupied, draw):
                rows = todo[kind == index]
                seen, pixels = paint(canvas, self._pool[index], part, self.visible)
                if attempt == _TRIES - 1:  # a spot of a few pixels, or ``visible`` above the shift of any
                    seen = torch.ones_like(seen)
                drawn.setdefault(index, []).append(part.select(seen))
                painted += [group.select(seen[lesion]) for lesion, group in pixels]
                left.append(rows[~seen])
            todo = torch.cat(left).sort().values
        parts = [(self._pool[index], _sorted(first.join(rest))) for index, (first, *rest) in sorted(drawn.items())]
        return Lesions.of([(family, part) for family, part in parts if len(part)]), painted

    @property
    def _pool(self) -> tuple[Lesion[Any], ...]:
        """The families of the mixture, and the last resort."""
        return (*self.families, _LAST_RESORT)

    def _kinds(self, attempt: int, own: Tensor, draw: Draw) -> Tensor:
        """Return the family of each lesion to be drawn, as an index into the pool."""
        if attempt < _OWN_TRIES:
            return own
        if attempt < _OWN_TRIES + _ANY_TRIES:
            return draw.integers(len(self.families), len(own))
        return torch.full_like(own, len(self.families))

    def _place(
        self, canvas: Canvas, image: Tensor, order: Tensor, kind: Tensor, occupied: Occupied, draw: Draw
    ) -> list[tuple[int, Parameters]]:
        """Draw a lesion for each row, family by family, at places that keep clear of each other."""
        parts = []
        candidates = torch.zeros(len(image), CANDIDATES, 2, device=image.device)
        extent = torch.zeros(len(image), device=image.device)
        for index in torch.unique(kind).tolist():
            rows, family = (kind == index).nonzero()[:, 0], self._pool[index]
            part = family.draw(canvas, image[rows], draw)
            candidates[rows] = canvas.places(image[rows], CANDIDATES, family.inset, draw)
            extent[rows] = part.extent
            parts.append((index, rows, part))
        centre = occupied.settle(candidates, image, order, extent)
        return [(index, replace(part, order=order[rows], centre=centre[rows])) for index, rows, part in parts]


def _configured(families: Sequence[str | Lesion[Any]]) -> tuple[Lesion[Any], ...]:
    """Return lesions for names or lesions."""
    wrong = [each for each in families if not isinstance(each, Lesion) and each not in FAMILIES]
    if isinstance(families, str) or wrong or not families:
        raise InputError(
            f"families is {families}, but must list at least one of {', '.join(FAMILIES)}, or configured lesions."
        )
    return tuple(each if isinstance(each, Lesion) else FAMILIES[each]() for each in families)


def _sorted(part: Parameters) -> Parameters:
    """Return lesions sorted by image and order."""
    ranks = int(part.order.max()) + 1 if len(part) else 1
    return part.select((part.image * ranks + part.order).argsort())


def _batched(image: Tensor) -> Tensor:
    """Return ``(C, H, W)`` or ``(B, C, H, W)`` as a plain batch."""
    image = image.as_subclass(Tensor)
    return image[None] if image.ndim == 3 else image
