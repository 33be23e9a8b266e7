"""Half the size of an FP16 export: weights in 8 bits, but not those of convolutions, whose errors add up.

    python examples/compress.py exported/weights/openvino/model.xml compressed/model.xml

An export of fixed size (--input_size) keeps its size.
"""

import argparse
from pathlib import Path

import nncf
import openvino


def main() -> None:
    """Read a network, compress it, and save it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    given = parser.parse_args()
    network = openvino.Core().read_model(given.source)
    convolutions = nncf.IgnoredScope(types=["Convolution", "GroupConvolution"], validate=False)
    mode = nncf.CompressWeightsMode.INT8_ASYM
    given.target.parent.mkdir(parents=True, exist_ok=True)
    openvino.save_model(nncf.compress_weights(network, mode=mode, ignored_scope=convolutions), given.target)


if __name__ == "__main__":
    main()
