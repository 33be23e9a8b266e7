"""``Msacl``: a backbone pre-trained by MSACL, and a detector on its features."""

from anomalib_msacl.detectors.msacl.lightning_model import Msacl
from anomalib_msacl.detectors.msacl.torch_model import MsaclModel

__all__ = ["Msacl", "MsaclModel"]
