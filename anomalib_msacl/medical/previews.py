"""Pictures of medical images, drawn when somebody looks at them: most runs never do."""

from __future__ import annotations

from dataclasses import dataclass

from torchvision.transforms.v2.functional import to_pil_image

from anomalib_msacl.data.files import UnreadableError
from anomalib_msacl.data.scratch import ScratchFolder
from anomalib_msacl.errors import InputError
from anomalib_msacl.medical.reader import ImageReader


@dataclass(frozen=True)
class Preview:
    """A PNG of 8 bits, which shows an image as the model sees it.

    The image is read once more, because a batch that kept it for this would be twice as large, and has been
    normalised by the time that it is shown.

    Attributes:
        reader: Reads the image.
        file: Where it is read from.
        frame: Index of its slice or frame, from 0.
        folder: Where the picture goes; kept alive by this object.
        name: Path of the picture in the folder.
    """

    reader: ImageReader
    file: str
    frame: int
    folder: ScratchFolder
    name: str

    def drawn(self) -> str:
        """Return the path of the picture, which is drawn if it is not there yet.

        Raises:
            InputError: If the file cannot be read any more.
        """
        path = self.folder.path / self.name
        if not path.is_file():
            try:
                image = self.reader.read(self.file, self.frame)
            except UnreadableError as error:
                raise InputError(f"{self.file} {error}") from error
            path.parent.mkdir(parents=True, exist_ok=True)
            to_pil_image(image).save(path, compress_level=1)  # three times as fast as the default
        return str(path)
