"""Datamodules and data checks."""

from anomalib_msacl.data.checks import check_datamodule
from anomalib_msacl.data.folder import CheckedFolder
from anomalib_msacl.data.phantom import Phantom

__all__ = ["CheckedFolder", "Phantom", "check_datamodule"]
