"""anomalib's ``Folder`` with plain messages about missing or empty folders."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from anomalib.data import Folder
from torchvision.datasets.folder import IMG_EXTENSIONS

from anomalib_msacl.errors import InputError

Directories = str | Path | Sequence[str | Path] | None


class CheckedFolder(Folder):
    """Images of one's own in folders, looked at before they are read.

    Takes the same arguments as :class:`anomalib.data.Folder`; only ``num_workers`` starts at 0. The folders are
    checked when the data is set up, not when the object is made.

    Args:
        name: Name of the dataset, used for the result folders.
        normal_dir: Folder or folders of normal training images, relative to ``root`` or absolute.
        root: Folder that the other folders are relative to; the working folder where it is ``None``.
        num_workers: Number of data loading processes, 0 for none.
        **kwargs: All other arguments of :class:`anomalib.data.Folder`.

    Raises:
        InputError: From ``setup()``, when ``root`` or a named folder is missing, when a folder has no image, or when
            there are not as many masks as abnormal images.
    """

    def __init__(
        self,
        name: str,
        normal_dir: str | Path | Sequence[str | Path],
        root: str | Path | None = None,
        num_workers: int = 0,
        **kwargs: Any,
    ) -> None:
        """Keep the settings; the class describes them."""
        super().__init__(name=name, normal_dir=normal_dir, root=root, num_workers=num_workers, **kwargs)

    def _setup(self, _stage: str | None = None) -> None:
        """Check the folders, then read them as ``Folder`` does."""
        self._check_folders()
        super()._setup(_stage)

    def _check_folders(self) -> None:
        """Raise :class:`InputError` where the folders cannot give a dataset."""
        root = Path(self.root) if self.root is not None else Path()
        if not root.is_dir():
            raise InputError(f"the root folder '{root}' of the dataset '{self.name}' is missing: set root to its path")
        extensions = _accepted_extensions(self.extensions)
        counts = {
            argument: sum(_count_images(argument, root, folder, extensions) for folder in as_list(folders))
            for argument, folders in self._named_folders().items()
        }
        abnormal, masks = counts["abnormal_dir"], counts["mask_dir"]
        if abnormal and masks and abnormal != masks:
            raise InputError(
                f"mask_dir '{self.mask_dir}' has {masks} and abnormal_dir '{self.abnormal_dir}' has {abnormal} images "
                f"below '{root}': give each abnormal image exactly one mask of the same name",
            )

    def _named_folders(self) -> dict[str, Directories]:
        """Give the folder arguments by name."""
        return {
            "normal_dir": self.normal_dir,
            "abnormal_dir": self.abnormal_dir,
            "normal_test_dir": self.normal_test_dir,
            "mask_dir": self.mask_dir,
        }


def as_list(folders: Directories) -> list[str | Path]:
    """Give a folder argument as a list, empty for ``None``."""
    if folders is None:
        return []
    return [folders] if isinstance(folders, str | Path) else list(folders)


def _accepted_extensions(extensions: Sequence[str] | None) -> tuple[str, ...]:
    """Give the accepted file extensions in lower case, torchvision's list for ``None``."""
    return tuple(extension.lower() for extension in extensions or IMG_EXTENSIONS)


def _count_images(argument: str, root: Path, folder: str | Path, extensions: tuple[str, ...]) -> int:
    """Count the images in a folder and below it.

    Args:
        argument: Name of the constructor argument, for the messages.
        root: Folder that ``folder`` is relative to, unless it is absolute.
        folder: The folder.
        extensions: Accepted file extensions in lower case, with the dot.

    Returns:
        The number of images, at least 1.

    Raises:
        InputError: When the folder is missing or has no image.
    """
    path = root / folder
    if not path.is_dir():
        raise InputError(f"{argument} '{folder}' is missing below '{root}': {describe_neighbours(path)}")
    count = sum(1 for file in path.glob("**/*") if file.suffix.lower() in extensions and not file.is_dir())
    if count == 0:
        raise InputError(
            f"{argument} '{folder}' below '{root}' has no images: put files there that end in {', '.join(extensions)}",
        )
    return count


def describe_neighbours(missing: Path) -> str:
    """Say which folders exist where a missing one was looked for."""
    parent = next(above for above in missing.absolute().parents if above.is_dir())
    names = sorted(entry.name for entry in os.scandir(parent) if entry.is_dir())
    listed = f"choose from the folders of '{parent}', which are {', '.join(names)}"
    return listed if names else f"create it, as '{parent}' has no folders yet"
