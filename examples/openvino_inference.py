"""Scores and heat maps of a folder of pictures, by an exported model and anomalib alone.

For machines that have anomalib but not anomalib_msacl. It reads PNG, JPEG, BMP and TIFF of 8 bits, as anomalib does.

    python examples/openvino_inference.py exported/weights/openvino/model.xml IMAGES OUT
"""

import argparse
from pathlib import Path

from anomalib.deploy import OpenVINOInferencer
from anomalib.visualization.image.functional import overlay_image, visualize_anomaly_map
from PIL import Image

ENDINGS = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"}
# Two cores. OpenVINO would compute in bf16 where a processor has it; distances to a memory bank need more digits.
SETTINGS = {"INFERENCE_NUM_THREADS": 2, "INFERENCE_PRECISION_HINT": "f32"}


def main() -> None:
    """Print a line for each picture, and save its map."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("out", type=Path)
    given = parser.parse_args()
    paths = [path for path in sorted(given.images.rglob("*")) if path.suffix.lower() in ENDINGS]
    if not paths:
        parser.error(f"{given.images} has no file that ends in {', '.join(sorted(ENDINGS))}")
    given.out.mkdir(parents=True, exist_ok=True)
    inferencer = OpenVINOInferencer(given.model, device="CPU", config=SETTINGS)
    for path in paths:
        found = inferencer.predict(path)
        print(path, f"{found.pred_score.item():.3f}", "abnormal" if found.pred_label.item() else "normal", sep="\t")
        if found.anomaly_map is not None:  # Dfkde has none
            heat = overlay_image(Image.open(path).convert("RGB"), visualize_anomaly_map(found.anomaly_map))
            heat.save(given.out / "_".join(path.relative_to(given.images).with_suffix(".png").parts))


if __name__ == "__main__":
    main()
