"""One reader for pictures of 8 and more bits, DICOM files and NIfTI slices: to float [0, 1] RGB."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.tv_tensors import Image, Mask

from anomalib_msacl.data.dicom import dicom_frames, has_dicom_prefix, read_dicom
from anomalib_msacl.data.inset import without_inset
from anomalib_msacl.data.intensity import Intensity, Sample
from anomalib_msacl.data.picture import Array, Kind, Picture, Slices, UnreadableError, brief
from anomalib_msacl.data.raster import nifti_slices, read_nifti, read_raster
from anomalib_msacl.errors import InputError

DICOM_EXTENSIONS = (".dcm", ".dicom", ".ima")
NIFTI_EXTENSIONS = (".nii", ".nii.gz")
PICTURE_EXTENSIONS = tuple(dict.fromkeys((*IMG_EXTENSIONS, ".jp2", ".j2k", ".jpx")))
EXTENSIONS = (*PICTURE_EXTENSIONS, *DICOM_EXTENSIONS, *NIFTI_EXTENSIONS)
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R 601, as Pillow's


@dataclass(frozen=True)
class Contents:
    """What one look at a file gave.

    Attributes:
        path: The file.
        sha256: Hex digest of its bytes.
        frames: Indices of its slices or frames; one, 0, for a file of a single picture.
        size: Height and width in pixels.
        colour: Whether it has colours.
        pixels: Digest of the pixels of each frame: the same for the same picture in another file.
        samples: What the intensity rule needs to know, one for each frame.
        constant: Frames of one value throughout.
        eight_bits: Whether it is a picture of 8 bits, which Pillow reads as it is.
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
        """Build a reader from what stands in YAML; see :meth:`Intensity.of`."""
        return cls(Intensity.of(intensity), slices or Slices(), grey)

    def fit(self, contents: Iterable[Contents]) -> None:
        """Fix the intensity rule by the training images."""
        self.intensity = self.intensity.fitted(sample for found in contents for sample in found.samples)

    def reads_as_pillow(self, contents: Contents) -> bool:
        """Say whether Pillow, and so anomalib, reads the same from a file as this reader."""
        return contents.eight_bits and self.intensity.rule == "auto" and not self.grey and not self.hide_inset

    def read(self, path: str | Path, frame: int = 0) -> Image:
        """Read an image.

        Args:
            path: The file.
            frame: Index of the slice or frame.

        Returns:
            Shape ``(3, H, W)``, float32, in [0, 1]; grey images have three equal channels.

        Raises:
            UnreadableError: If it cannot be read.
            InputError: If a library is missing.
        """
        with _plain_words():
            pixels = self.intensity.apply(self._picture(Path(path), frame))
        pixels = np.stack([pixels] * 3) if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
        pixels = without_inset(pixels) if self.hide_inset else pixels
        return Image(torch.from_numpy(np.ascontiguousarray(pixels)))

    def read_mask(self, path: str | Path, frame: int = 0) -> Mask:
        """Read a mask: everything above 0 is lesion, or above half in a JPEG file, whose values are not exact.

        Returns:
            Shape ``(H, W)``, uint8, 0 or 1.

        Raises:
            UnreadableError: If it cannot be read.
            InputError: If a library is missing.
        """
        with _plain_words():
            values = _decoded(Path(path), frame, self.slices).values
        threshold = values.max() / 2 if str(path).lower().endswith((".jpg", ".jpeg")) else 0
        inside = values > threshold if values.ndim == 2 else (values > threshold).any(axis=-1)
        return Mask(torch.from_numpy(inside.astype(np.uint8)))

    def inspect(self, path: str) -> Contents:
        """Decode all of a file and say what is in it, or what is wrong with it.

        Raises:
            InputError: If a library is missing.
        """
        return _safely(path, self._inspect)

    def inspect_mask(self, path: str, frames: Sequence[int]) -> Contents:
        """Decode a mask and say in which frames there is a lesion; those are the ``frames`` of what is returned.

        Args:
            path: The file.
            frames: Frames of the image that it belongs to.

        Raises:
            InputError: If a library is missing.
        """

        def look(file: Path) -> Contents:
            masks = {frame: self.read_mask(file, frame) for frame in frames}
            lit = tuple(frame for frame, mask in masks.items() if mask.any())
            height, width = next(iter(masks.values())).shape
            return Contents(path, frames=lit, size=(height, width))

        return _safely(path, look)

    def _inspect(self, path: Path) -> Contents:
        """Do the work of :meth:`inspect`, with exceptions."""
        frames = frames_of(path, self.slices)
        if not frames:
            raise UnreadableError("has no slice with an image among those chosen: set other slices")
        pixels, samples, constant, sizes, colours, plain = [], [], [], set(), set(), True
        for frame in frames:
            picture = self._picture(path, frame)
            if not np.isfinite(picture.values).all():
                raise UnreadableError("holds NaN or infinite values")
            if np.ptp(picture.values) == 0:
                constant.append(frame)
            sizes.add((int(picture.values.shape[0]), int(picture.values.shape[1])))
            colours.add(picture.colour)
            plain = plain and picture.kind == "picture" and picture.range == (0, 255)
            content = np.ascontiguousarray(picture.values)
            pixels.append(hashlib.sha256(f"{content.shape}".encode() + content.tobytes()).hexdigest())
            samples.append(Sample.of(picture))
        return Contents(
            path=str(path),
            sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
            frames=tuple(frames),
            size=sizes.pop(),
            colour=any(colours),
            pixels=tuple(pixels),
            samples=tuple(samples),
            constant=tuple(constant),
            eight_bits=plain,
        )

    def _picture(self, path: Path, frame: int) -> Picture:
        """Decode a frame, in grey if that is asked for."""
        picture = _decoded(path, frame, self.slices)
        if not (self.grey and picture.colour):
            return picture
        highest = (picture.range or (0.0, 1.0))[1]
        luma: Array = picture.values @ _LUMA * np.float32(highest)
        return replace(picture, values=luma, kind="picture")


def _safely(path: str, look: Callable[[Path], Contents]) -> Contents:
    """Look into a file; what cannot be read gives the problem."""
    try:
        with _plain_words():
            return look(Path(path))
    except UnreadableError as error:
        return Contents(path, problem=str(error))


@contextmanager
def _plain_words() -> Iterator[None]:
    """Turn whatever the libraries raise on a broken file into an :class:`UnreadableError`."""
    try:
        yield
    except (InputError, UnreadableError):
        raise
    except Exception as error:  # corrupt bytes make them raise nearly any kind
        reason = error.strerror if isinstance(error, OSError) else None
        raise UnreadableError(f"cannot be opened: {reason}" if reason else f"is broken: {brief(error)}") from error


def kind_of(path: Path) -> Kind:
    """Return the kind of a file, by its name, or by its first bytes where the name does not say."""
    name = path.name.lower()
    if name.endswith(NIFTI_EXTENSIONS):
        return "nifti"
    if name.endswith(DICOM_EXTENSIONS) or (not name.endswith(PICTURE_EXTENSIONS) and has_dicom_prefix(path)):
        return "dicom"
    return "picture"


def frames_of(path: Path, slices: Slices) -> list[int]:
    """Return the indices of a file's slices or frames; slices of one value throughout are left out.

    Raises:
        UnreadableError: If the file is broken.
        InputError: If a library is missing.
    """
    kind = kind_of(path)
    if kind == "nifti":
        return nifti_slices(path, slices)
    number = dicom_frames(path) if kind == "dicom" else 1
    return slices.of(number) if number > 1 else [0]


def list_images(folder: Path, extensions: Sequence[str] | None = None) -> list[Path]:
    """Return the images in a folder and below it, sorted; hidden files are passed over.

    Args:
        folder: The folder.
        extensions: Accepted ends of names, with the dot. If None all that can be read, and files of other names that
            begin as DICOM files do.
    """
    known = tuple(extension.lower() for extension in extensions or EXTENSIONS)
    files = (
        path
        for path in folder.rglob("*")
        if not any(part.startswith(".") for part in path.relative_to(folder).parts) and path.is_file()
    )
    return sorted(
        path
        for path in files
        if path.name.lower().endswith(known)
        or (extensions is None and path.name != "DICOMDIR" and has_dicom_prefix(path))
    )


def stem_of(path: Path) -> str:
    """Return a file's name without its extension; names of DICOM files may hold dots that are none.

    >>> stem_of(Path("a/scan.nii.gz")), stem_of(Path("1.2.840")), stem_of(Path("x.PNG"))
    ('scan', '1.2.840', 'x')
    """
    lower = path.name.lower()
    end = next((end for end in sorted(EXTENSIONS, key=len, reverse=True) if lower.endswith(end)), "")
    return path.name[: len(path.name) - len(end)]


def _decoded(path: Path, frame: int, slices: Slices) -> Picture:
    """Decode one frame of a file of any kind."""
    kind = kind_of(path)
    if kind == "dicom":
        return read_dicom(path, frame)
    return read_nifti(path, frame, slices) if kind == "nifti" else read_raster(path)
