"""``Igd``: Interpolated Gaussian Descriptor (Chen et al., AAAI 2022, arXiv 2101.10043), written from its formulas."""

from anomalib_msacl.detectors.igd.lightning_model import Igd
from anomalib_msacl.detectors.igd.torch_model import IgdModel

__all__ = ["Igd", "IgdModel"]
