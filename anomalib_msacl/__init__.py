"""MSACL / PMSACL pre-training on normal images, as a plug-in of anomalib.

The names below are all that most users need; see the modules for the pure functions behind them.
"""

from anomalib_msacl.callback import MsaclPretraining
from anomalib_msacl.errors import InputError
from anomalib_msacl.lesions import MedMix
from anomalib_msacl.pretraining import Msacl
from anomalib_msacl.recipe import Recipe

__all__ = ["InputError", "MedMix", "Msacl", "MsaclPretraining", "Recipe"]
__version__ = "0.2.0.dev0"
