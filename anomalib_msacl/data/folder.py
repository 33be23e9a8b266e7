"""anomalib's ``Folder`` with plain messages about missing or empty folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from anomalib.data import Folder
from torchvision.datasets.folder import IMG_EXTENSIONS

from anomalib_msacl.data.files import as_list, check_root, find_images
from anomalib_msacl.data.medmix_split import MedMixSplit
from anomalib_msacl.errors import InputError, name_some
from anomalib_msacl.paths import with_home


class CheckedFolder(MedMixSplit, Folder):
    """Images of one's own in folders, looked at before they are read.

    Takes the same arguments as :class:`anomalib.data.Folder`; only ``num_workers`` starts at 0, and
    ``val_split_mode`` may also be ``medmix``. The folders are checked when the data is set up, not when the object is
    made.

    Args:
        name: Name of the dataset, used for the result folders.
        normal_dir: Folder or folders of normal training images, relative to ``root`` or absolute.
        root: Folder that the other folders are relative to; the working folder where it is ``None``.
        num_workers: Number of data loading processes, 0 for none.
        **kwargs: All other arguments of :class:`anomalib.data.Folder`.

    Raises:
        InputError: If ``val_split_mode`` does not exist; from ``setup()``, when ``root`` or a named folder is missing
            or cannot be listed, when a folder has no image or one that is no regular file, or when abnormal images
            have not exactly one mask of their name each, in the folder that belongs to theirs.
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
        super().__init__(
            name=name, normal_dir=with_home(normal_dir), root=with_home(root), num_workers=num_workers, **kwargs
        )
        # Not above: jsonargparse finds the arguments of anomalib's Folder by kwargs that are passed on as they are.
        for argument in ("abnormal_dir", "normal_test_dir", "mask_dir"):
            setattr(self, argument, with_home(getattr(self, argument)))

    def read_data(self) -> None:
        """Check the folders, then read them as ``Folder`` does."""
        self._check_folders()
        super().read_data()

    def _check_folders(self) -> None:
        """Raise :class:`InputError` where the folders cannot give a dataset."""
        root = Path(self.root) if self.root is not None else Path()
        check_root(root, self.name)
        endings = tuple(ending.lower() for ending in self.extensions or IMG_EXTENSIONS)
        named = {
            "normal_dir": self.normal_dir,
            "abnormal_dir": self.abnormal_dir,
            "normal_test_dir": self.normal_test_dir,
            "mask_dir": self.mask_dir,
        }
        images = {
            argument: [
                path
                for folder in as_list(folders)
                for path in find_images(argument, root, folder, lambda file: file.suffix.lower() in endings, endings)
            ]
            for argument, folders in named.items()
        }
        if images["abnormal_dir"] and images["mask_dir"]:
            self._check_pairs(root, images["abnormal_dir"], images["mask_dir"])

    def _check_pairs(self, root: Path, abnormal: Sequence[Path], masks: Sequence[Path]) -> None:
        """Raise :class:`InputError` where anomalib, which goes by the order of the paths, would find no pairs."""
        remedy = "give each abnormal image exactly one mask of the same name"
        if len(abnormal) != len(masks):
            raise InputError(
                f"mask_dir '{self.mask_dir}' has {len(masks)} and abnormal_dir '{self.abnormal_dir}' has "
                f"{len(abnormal)} images below '{root}': {remedy}",
            )
        pairs = list(zip(*(sorted(path.absolute() for path in paths) for paths in (abnormal, masks)), strict=True))
        odd = [f"{mask.name} with {image.name}" for image, mask in pairs if image.stem not in mask.stem]
        if odd:
            raise InputError(
                f"masks and abnormal images below '{root}' do not pair up in the order of their names, "
                f"{name_some(odd)}: {remedy}"
            )
        ours, theirs = (
            [(root / folder).absolute() for folder in as_list(named)] for named in (self.abnormal_dir, self.mask_dir)
        )
        if len(ours) != len(theirs):
            return  # masks of all folders lie in one
        partners = list(zip(ours, theirs, strict=True))
        strays = [
            f"{mask.relative_to(mask.parents[1])} with {image.relative_to(image.parents[1])}"
            for image, mask in pairs
            if not any(image.is_relative_to(its) and mask.is_relative_to(own) for its, own in partners)
        ]
        if strays:
            raise InputError(
                f"masks and abnormal images below '{root}' pair up in the order of their paths, by which some are of "
                f"other folders, {name_some(strays)}: name the folders of mask_dir like those of abnormal_dir, with as "
                "many images each"
            )
