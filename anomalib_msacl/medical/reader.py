"""One reader for images of 8 and more bits, DICOM files and NIfTI slices: to float [0, 1] RGB.

Arrays need no torch, which is imported for tensors only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from anomalib_msacl.data.files import UnreadableError, read_bytes
from anomalib_msacl.data.inspection import check_finite, plain_words
from anomalib_msacl.data.masks import MaskFinding
from anomalib_msacl.medical.dicom import dicom_frames, read_dicom
from anomalib_msacl.medical.image import Array, RawImage
from anomalib_msacl.medical.inset import without_inset
from anomalib_msacl.medical.intensity import Intensity, Sample
from anomalib_msacl.medical.kinds import kind_of
from anomalib_msacl.medical.nifti import check_same_grid, nifti_length, nifti_slices, read_nifti
from anomalib_msacl.medical.raster import read_raster
from anomalib_msacl.medical.slices import Slices

if TYPE_CHECKING:
    from torchvision.tv_tensors import Image, Mask

_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R 601, as Pillow's


@dataclass(frozen=True)
class Contents:
    """What one look at a file gave.

    Attributes:
        path: The file.
        sha256: Hex digest of its bytes.
        frames: Indices of its slices or frames; one, 0, for a file of a single image.
        size: Height and width in pixels.
        colour: Whether it has colours.
        pixels: Digest of the pixels of each frame: the same for the same image in another file.
        samples: What the intensity rule needs to know, one for each frame.
        constant: Frames of one value throughout.
        eight_bits: Whether it is an image of 8 bits, which Pillow reads as it is.
        problem: Why it cannot be used, in words that follow the file's name; empty where it can.
    """

    path: str
    sha256: str = ""
    frames: tuple[int, ...] = ()
    size: tuple[int, int] = (0, 0)
    colour: bool = False
    pixels: tuple[str, ...] = ()
    samples: tuple[Sample, ...] = ()
    constant: tuple[int, ...] = ()
    eight_bits: bool = False
    problem: str = ""


@dataclass(frozen=True)
class MaskContents(MaskFinding):
    """What one look at a mask file gave.

    Attributes:
        frames: Frames with a lesion.
    """

    frames: tuple[int, ...] = ()


@dataclass
class ImageReader:
    """Reads files of any kind to RGB in [0, 1].

    Args:
        intensity: The rule for grey values.
        slices: Which slices of a volume, or frames of a file, are images.
        grey: Turn colours into grey.
        hide_inset: Black out the box that shows the position of a colonoscope.
    """

    intensity: Intensity = field(default_factory=Intensity)
    slices: Slices = field(default_factory=Slices)
    grey: bool = False
    hide_inset: bool = False

    @classmethod
    def of(
        cls, intensity: str | Mapping[str, Sequence[float]] = "auto", slices: Slices | None = None, grey: bool = False
    ) -> ImageReader:
        """Build a reader from what is written in YAML; see :meth:`Intensity.of`."""
        return cls(Intensity.of(intensity), slices or Slices(), grey)

    def fit(self, contents: Iterable[Contents]) -> None:
        """Fix the intensity rule by the training images."""
        self.intensity = self.intensity.fitted(sample for found in contents for sample in found.samples)

    def reads_as_pillow(self, contents: Contents) -> bool:
        """Say whether Pillow, and so anomalib, reads the same from a file as this reader."""
        return contents.eight_bits and self.intensity.rule == "auto" and not self.grey and not self.hide_inset

    def read(self, path: str | Path, frame: int = 0) -> Image:
        """Read an image as a tensor, whose pixels are those of :meth:`read_array`.

        Args:
            path: The file.
            frame: Index of the slice or frame.

        Returns:
            Shape ``(3, H, W)``, float32, in [0, 1]; grey images have three equal channels.

        Raises:
            UnreadableError: If it cannot be read.
            InputError: If a library is missing.
        """
        import torch  # noqa: PLC0415  # screening does without
        from torchvision.tv_tensors import Image  # noqa: PLC0415

        return Image(torch.from_numpy(self.read_array(path, frame)))

    def read_array(self, path: str | Path, frame: int = 0) -> Array:
        """Read an image as an array; arguments, result and errors are those of :meth:`read`."""
        with plain_words():
            return self.rendered(self.decoded(Path(path), frame))

    def rendered(self, image: RawImage) -> Array:
        """Return a decoded image as :meth:`read_array` does."""
        pixels = self.intensity.apply(image)
        pixels = np.stack([pixels] * 3) if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
        pixels = without_inset(pixels) if self.hide_inset else pixels
        return np.ascontiguousarray(pixels)

    def read_mask(self, path: str | Path, frame: int = 0) -> Mask:
        """Read a mask: everything above 0 is lesion, or above half in a JPEG file, whose values are not exact.

        Returns:
            Shape ``(H, W)``, uint8, 0 or 1.

        Raises:
            UnreadableError: If it cannot be read.
            InputError: If a library is missing.
        """
        import torch  # noqa: PLC0415
        from torchvision.tv_tensors import Mask  # noqa: PLC0415

        return Mask(torch.from_numpy(self._lesion(Path(path), frame)[0].astype(np.uint8)))

    def inspect(self, path: str) -> Contents:
        """Decode all of a file and say what is in it, or what is wrong with it.

        Raises:
            InputError: If a library is missing.
        """
        try:
            with plain_words():
                return self._inspect(Path(path))
        except UnreadableError as error:
            return Contents(path, problem=str(error))

    def inspect_mask(self, path: str, image: Contents) -> MaskContents:
        """Decode a mask and say in which frames there is a lesion, or why its frames are not those of its image.

        Args:
            path: The file.
            image: What was found in the image that it belongs to.

        Raises:
            InputError: If a library is missing.
        """
        try:
            with plain_words():
                _check_same_frames(Path(path), Path(image.path), self.slices)
            pairs = {frame: self._lesion(Path(path), frame) for frame in image.frames}
        except UnreadableError as error:
            return MaskContents(problem=str(error))
        height, width = next(iter(pairs.values()))[0].shape
        lit = tuple(frame for frame, (inside, _) in pairs.items() if inside.any())
        lowest, highest = (pick([pick(values) for _, values in pairs.values()]) for pick in (np.min, np.max))
        return MaskContents(
            size=(height, width),
            empty=not lit,
            full=all(inside.all() for inside, _ in pairs.values()),
            constant=bool(lowest == highest),
            frames=lit,
        )

    def _lesion(self, path: Path, frame: int) -> tuple[Array, Array]:
        """Return where a mask says lesion, shape ``(H, W)``, and its values."""
        with plain_words():
            values = _decoded(path, frame, self.slices).values
        threshold = values.max() / 2 if str(path).lower().endswith((".jpg", ".jpeg")) else 0
        inside: Array = values > threshold
        return np.asarray(inside if inside.ndim == 2 else inside.any(axis=-1)), values

    def _inspect(self, path: Path) -> Contents:
        """Do the work of :meth:`inspect`, with exceptions."""
        frames = frames_of(path, self.slices)
        if not frames:
            raise UnreadableError("has no slice with an image among those chosen: set other slices")
        pixels, samples, constant, sizes, colours, plain = [], [], [], set(), set(), True
        for frame in frames:
            image = self.decoded(path, frame)
            check_finite(image.values)
            if np.ptp(image.values) == 0:
                constant.append(frame)
            sizes.add((int(image.values.shape[0]), int(image.values.shape[1])))
            colours.add(image.colour)
            plain = plain and image.kind == "raster" and image.range == (0, 255)
            digest = hashlib.sha256(f"{image.values.shape}".encode())
            digest.update(np.ascontiguousarray(image.values).data)
            pixels.append(digest.hexdigest())
            samples.append(Sample.of(image, self.intensity.own_window))
        return Contents(
            path=str(path),
            sha256=hashlib.sha256(read_bytes(path)).hexdigest(),
            frames=tuple(frames),
            size=sizes.pop(),
            colour=any(colours),
            pixels=tuple(pixels),
            samples=tuple(samples),
            constant=tuple(constant),
            eight_bits=plain,
        )

    def decoded(self, path: Path, frame: int) -> RawImage:
        """Decode a frame, in grey if that is asked for; libraries may raise anything on a broken file."""
        image = _decoded(path, frame, self.slices)
        if not (self.grey and image.colour):
            return image
        highest = (image.range or (0.0, 1.0))[1]
        luma: Array = image.values @ _LUMA * np.float32(highest)
        return replace(image, values=luma, kind="raster")


def frames_of(path: Path, slices: Slices) -> list[int]:
    """Return the indices of a file's slices or frames; slices of one value throughout are left out.

    Raises:
        UnreadableError: If the file is broken.
        InputError: If a library is missing.
    """
    if kind_of(path) == "nifti":
        return nifti_slices(path, slices)
    number = _number_of_frames(path, slices)
    return slices.of(number) if number > 1 else [0]


def _number_of_frames(path: Path, slices: Slices) -> int:
    """Return how many slices or frames a file has, by its header."""
    kind = kind_of(path)
    if kind == "nifti":
        return nifti_length(path, slices.axis)
    return dicom_frames(path) if kind == "dicom" else 1


def _check_same_frames(mask: Path, image: Path, slices: Slices) -> None:
    """Raise :class:`UnreadableError` where the slices or frames of a mask are not those of its image, one for one."""
    if kind_of(mask) == kind_of(image) == "nifti":
        check_same_grid(mask, image)
        return
    number, expected = (_number_of_frames(path, slices) for path in (mask, image))
    if number != expected:
        raise UnreadableError(
            f"has {number} slices or frames and its image {image.name} {expected}: give the mask one for each"
        )


def _decoded(path: Path, frame: int, slices: Slices) -> RawImage:
    """Decode one frame of a file of any kind."""
    kind = kind_of(path)
    if kind == "dicom":
        return read_dicom(path, frame)
    return read_nifti(path, frame, slices) if kind == "nifti" else read_raster(path)
