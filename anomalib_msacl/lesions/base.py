"""The contract of a family of lesions: draw parameters in one method, render them in another.

A family is a frozen dataclass whose fields are its magnitudes. All that is random about N lesions is a frozen dataclass
of tensors, one row a lesion, so that lesions can be looked at, changed and drawn on the images again. A new family is
one subclass of :class:`Lesion` with a ``name``; defining it enters it into :data:`FAMILIES`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor
from typing_extensions import Self

from anomalib_msacl.errors import InputError
from anomalib_msacl.lesions.geometry import outline_extent
from anomalib_msacl.lesions.randomness import Draw, Range

if TYPE_CHECKING:
    from anomalib_msacl.lesions.canvas import Canvas, Windows

FAMILIES: dict[str, type[Lesion[Any]]] = {}

# How the irregularity of an outline is shared out to harmonics 2 to 5.
_HARMONICS = (0.4, 0.3, 0.2, 0.1)
_THINNEST = 1.5  # pixels: a smaller radius may cover no pixel


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """Everything that decides how N lesions of a family look, one row a lesion; lengths in pixels, angles in radians.

    Attributes:
        image: Index of the image that receives the lesion, shape ``(N,)``, int64.
        order: Rank of the lesion within its image, from 0; a later one lies on top. Shape ``(N,)``, int64.
        centre: ``(y, x)`` of the lesion, shape ``(N, 2)``.
        extent: Upper bound of the distance from the centre to what is changed, shape ``(N,)``.
    """

    image: Tensor
    order: Tensor
    centre: Tensor
    extent: Tensor

    def __len__(self) -> int:
        """Return the number of lesions."""
        return len(self.image)

    def select(self, rows: Tensor) -> Self:
        """Return the lesions of the given rows (an index or a boolean mask of shape ``(N,)``)."""
        if rows.dtype == torch.bool:
            rows = rows.nonzero()[:, 0]  # once, not for every tensor
        return replace(self, **{each.name: getattr(self, each.name)[rows] for each in fields(self)})

    def of_image(self, index: int) -> Self:
        """Return the lesions of one image, renumbered as those of a batch of one; donors keep their index."""
        own = self.select(self.image == index)
        return replace(own, image=torch.zeros_like(own.image))

    def join(self, others: Sequence[Self]) -> Self:
        """Return these lesions followed by others of the same family, drawn for images of the same size."""
        names = [each.name for each in fields(self)]
        return replace(self, **{name: torch.cat([getattr(part, name) for part in (self, *others)]) for name in names})


P = TypeVar("P", bound=Parameters)


class Rendered(NamedTuple):
    """What N lesions of one window size do to their windows.

    Attributes:
        target: What the pixels become where a lesion is at its full weight, shape ``(N, C, h, w)``, float32. Values
            outside [0, 1] are cut off after blending.
        weight: Share of the target, 0 outside a lesion, shape ``(N, 1, h, w)``.
    """

    target: Tensor
    weight: Tensor


def limited(default: Range | float, lowest: float, highest: float) -> Any:
    """Return a field of a family: a magnitude or a pair ``(low, high)`` that must lie within limits."""
    return field(default=default, metadata={"limits": (lowest, highest)})


@dataclass(frozen=True)
class Lesion(ABC, Generic[P]):
    """A family of lesions, configured.

    Lengths are relative to the shorter side of the image, changes of intensity to images in [0, 1]. A pair
    ``(low, high)`` is a range that each lesion's own value is drawn from.

    Raises:
        InputError: If a magnitude is out of its limits.
    """

    name: ClassVar[str]
    inset: ClassVar[float] = 0.03  # how far from the border of the tissue a centre lies, relative to the side

    def __init_subclass__(cls, **options: Any) -> None:
        """Enter a family with a name of its own into the registry."""
        super().__init_subclass__(**options)
        if "name" in cls.__dict__:
            FAMILIES[cls.name] = cls

    def __post_init__(self) -> None:
        """Check every magnitude that has limits."""
        for each in fields(self):
            if "limits" in each.metadata:
                value = checked(type(self).__name__, each, getattr(self, each.name))
                object.__setattr__(self, each.name, value)  # YAML brings lists

    @abstractmethod
    def draw(self, canvas: Canvas, image: Tensor, draw: Draw) -> P:
        """Draw the parameters of one lesion for each of the given images; nothing is changed.

        Args:
            canvas: The images.
            image: Image of each lesion, shape ``(N,)``, int64.
            draw: Random numbers.

        Returns:
            The parameters; start from :meth:`somewhere`.
        """

    @abstractmethod
    def render(self, windows: Windows, parameters: P) -> Rendered:
        """Work out what lesions do to the pixels around them; the same parameters give the same pixels.

        Args:
            windows: A window around each lesion; read the images from here.
            parameters: What to render.
        """

    def somewhere(self, canvas: Canvas, image: Tensor, draw: Draw) -> dict[str, Tensor]:
        """Return the parameters that all families share but the extent, for lesions at random places on the tissue."""
        centre = canvas.places(image, 1, self.inset, draw)[:, 0]
        return {"image": image, "order": torch.zeros_like(image), "centre": centre}


@dataclass(frozen=True, kw_only=True)
class OutlinedParameters(Parameters):
    """Parameters of lesions with an irregular outline; see :class:`anomalib_msacl.lesions.geometry.Outline`."""

    radius: Tensor
    aspect: Tensor
    angle: Tensor
    harmonics: Tensor
    edge: Tensor


def draw_outline(
    canvas: Canvas, number: int, draw: Draw, radius: Range, aspect: Range, irregularity: float, edge: Range
) -> dict[str, Tensor]:
    """Draw irregular ellipses.

    Args:
        canvas: The images, for their size.
        number: How many.
        draw: Random numbers.
        radius: Mean radius, relative to the shorter side, log-uniform.
        aspect: Long axis over short axis.
        irregularity: Largest deviation from the ellipse, relative to the radius.
        edge: Width of the soft edge, relative to the radius.

    Returns:
        What :class:`OutlinedParameters` adds, and the extent.
    """
    size = (draw.log_uniform(radius, number) * canvas.side).clamp_min(_THINNEST)
    ratio = draw.uniform(aspect, number)
    share = torch.tensor(_HARMONICS, device=size.device) * irregularity
    amplitude, phase = draw.uniform((0.0, 1.0), number, len(share)) * share, draw.angle(number, len(share))
    harmonics = torch.stack([amplitude * phase.cos(), amplitude * phase.sin()], dim=-1)
    return {
        "extent": outline_extent(size, ratio, harmonics),
        "radius": size,
        "aspect": ratio,
        "angle": draw.angle(number),
        "harmonics": harmonics,
        "edge": draw.uniform(edge, number),
    }


def checked(place: str, each: Any, value: Any) -> Range | float:
    """Return a magnitude as a float or a pair of floats, or say what is wrong with it.

    Args:
        place: Class that the field belongs to.
        each: The dataclass field, with its limits and a default of the same form.
        value: What the user gave.
    """
    lowest, highest = each.metadata["limits"]
    pair = isinstance(each.default, tuple)
    values = value if pair else (value, value)
    good = isinstance(values, Sequence) and len(values) == 2 and all(isinstance(v, int | float) for v in values)
    if good and lowest <= values[0] <= values[1] <= highest:
        return (float(values[0]), float(values[1])) if pair else float(value)
    wanted = f"(low, high) with {lowest} <= low <= high <= {highest}" if pair else f"from {lowest} to {highest}"
    raise InputError(f"{place}: {each.name} is {value}, but it must be {wanted}.")
