"""The main job on the embedded phantom images, through the command line of anomalib.

Trains PatchCore twice, on the untouched and on the pre-trained backbone, exports the second to OpenVINO, and says what
came of it.
"""

from __future__ import annotations

import csv
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
CONFIG = ROOT / "configs" / "msacl_patchcore.yaml"
RESULTS = Path("results") / "demo"
ANOMALIB, OURS = (str(Path(sys.executable).with_name(name)) for name in ("anomalib", "anomalib-msacl"))


def train(name: str, *options: str) -> dict[str, float]:
    """Run `anomalib train` and return its test metrics."""
    folder = RESULTS / name
    # Small sets scatter: score all test images rather than the half that does not set the threshold.
    data = ["--data.init_args.val_split_mode", "same_as_test"]
    weights = ["--trainer.callbacks.init_args.root", str(RESULTS / "weights" / name)]
    logger = ["--trainer.logger", "lightning.pytorch.loggers.CSVLogger", "--trainer.logger.save_dir", str(folder)]
    before = set(folder.rglob("metrics.csv"))
    command = [
        ANOMALIB,
        "train",
        "--config",
        str(CONFIG),
        "--default_root_dir",
        str(folder),
        *logger,
        *weights,
        *data,
        *options,
    ]
    print("$", *command, flush=True)
    subprocess.run(command, check=True)
    (metrics,) = set(folder.rglob("metrics.csv")) - before
    with metrics.open() as file:
        return {key: float(value) for row in csv.DictReader(file) for key, value in row.items() if value}


def export() -> Path:
    """Export the last checkpoint to OpenVINO, as it was tested, and return the model."""
    run = RESULTS / "pretrained" / "Patchcore" / "phantom_fundus" / "latest"
    checkpoint = run / "weights" / "lightning" / "model.ckpt"
    model = ["--model", "anomalib.models.Patchcore", "--model.backbone", "resnet18", "--model.pre_trained", "false"]
    options = ["--ckpt_path", str(checkpoint), "--export_type", "openvino", "--export_root", str(run)]
    command = [OURS, "export", *model, *options]
    print("$", *command, flush=True)
    subprocess.run(command, check=True)
    return run / "weights" / "openvino" / "model.xml"


def main() -> None:
    """Run the job and print a summary."""
    start = time.monotonic()
    untouched = train("untouched", "--trainer.callbacks.init_args.recipe.max_steps", "0")
    pretrained = train("pretrained")
    exported = export()
    pictures = RESULTS / "pretrained" / "Patchcore" / "phantom_fundus" / "latest" / "images"
    saved = (RESULTS / "weights" / "pretrained").glob("*/model.safetensors")
    weights = max(saved, key=lambda path: path.stat().st_mtime).parent
    print(f"\nDone in {time.monotonic() - start:.0f} s, on phantom images, which have no medical meaning.")
    print(f"  pictures:          {pictures}")
    print(f"  weights:           {weights} (its README.md says which step was kept, and why)")
    print(f"  OpenVINO model:    {exported}")
    print(f"  to score images:   {OURS} screen {exported} IMAGES --out scores")
    print("  PatchCore, test:   backbone      image AUROC  pixel AUROC")
    for name, metrics in (("untouched", untouched), ("pre-trained", pretrained)):
        print(f"                     {name:12}  {metrics['image_AUROC']:11.3f}  {metrics['pixel_AUROC']:11.3f}")


if __name__ == "__main__":
    main()
