"""Convolutions of the backbone in 8 bits, from an FP32 export and about 100 pictures of its training.

    python examples/quantize.py exported/weights/openvino/model.xml IMAGES quantized/model.xml

An export of fixed size (--input_size) needs pictures of that size.
"""

import argparse
from pathlib import Path

import nncf
import openvino
from anomalib.data.utils import read_image
from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, OverflowFix

ENDINGS = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"}
CONVOLUTIONS = {"Convolution", "GroupConvolution"}


def main() -> None:
    """Read a network, quantise it, and save it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("target", type=Path)
    given = parser.parse_args()
    pictures = [path for path in sorted(given.images.rglob("*")) if path.suffix.lower() in ENDINGS]
    if not pictures:
        parser.error(f"{given.images} has no file that ends in {', '.join(sorted(ENDINGS))}")
    network = openvino.Core().read_model(given.source)
    nodes = network.get_ordered_ops()
    # The blur of the map is a convolution of one channel, whose small weights would not survive.
    blurs = [
        node for node in nodes if node.get_type_name() in CONVOLUTIONS and node.get_output_partial_shape(0)[1] == 1
    ]
    left_alone = nncf.IgnoredScope(
        types=sorted({node.get_type_name() for node in nodes} - CONVOLUTIONS),
        names=[node.get_friendly_name() for node in blurs],
        validate=False,
    )
    data = nncf.Dataset(pictures, lambda path: read_image(path, as_tensor=True)[None].numpy())
    # Without VNNI a processor adds products of 8 bits in 16, which weights of 8 bits overflow.
    parameters = AdvancedQuantizationParameters(overflow_fix=OverflowFix.ENABLE)
    quantized = nncf.quantize(network, data, ignored_scope=left_alone, advanced_parameters=parameters)
    given.target.parent.mkdir(parents=True, exist_ok=True)
    openvino.save_model(quantized, given.target)


if __name__ == "__main__":
    main()
