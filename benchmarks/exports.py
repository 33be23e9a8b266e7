"""Every export of five models on MSACL weights against torch: agreement, AUROC, file size and latency.

    python benchmarks/exports.py --data DATA --weights WEIGHTS --sets colonoscopy brain_mri

DATA holds one folder per set, laid out as configs/msacl_patchcore_folder.yaml says; WEIGHTS is a folder in timm's
format. For each set the backbone is pre-trained once; all models take those weights. Then the weights are deleted, and
the checkpoints are exported as `anomalib-msacl export` does, with the antialiasing of the tested model. The exports run
where anomalib_msacl cannot be imported. The torch export, which all others are compared with, is the tested model.

The test images are divided in two. One half gives threshold, normalisation and calibration, and the metric of the
quantisation with accuracy control; every figure is of the other half. What is in the results folder already is not
done again; `--table` only prints what is there, `--latency` times the exports of one set.
"""

from __future__ import annotations

import argparse
import functools
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from _common import auroc

CONFIG = Path(__file__).parents[1] / "configs" / "msacl_patchcore_folder.yaml"
ANOMALIB = str(Path(sys.executable).with_name("anomalib"))
MODELS: dict[str, dict[str, Any]] = {
    "Patchcore": {"layers": ["blocks.2", "blocks.4"], "coreset_sampling_ratio": 0.01},
    "Padim": {"layers": ["blocks.1", "blocks.2", "blocks.4"], "n_features": 100},
    "Patchflow": {},
    "Dfm": {"layer": "blocks.4"},
    "Dfkde": {"layers": ["blocks.6"]},
    "MHPatchcore": {"layers": ["blocks.2", "blocks.4"]},
}
# Else OpenVINO computes in bf16 on some processors.
PRECISION = {"INFERENCE_PRECISION_HINT": "f32"}
EPOCHS = {"Patchflow": 4}
# anomalib 2.7 exports these with a batch of two, which its own inferencer cannot fill; a batch of one is asked for.
ONE_IMAGE = {"Dfm", "Dfkde", "MHPatchcore"}
ONE_IMAGE_AXES = "{dynamic_axes: {input: {2: height, 3: width}}}"
# Its quantisations ask a model whose batch is fixed for a shape without dynamic parts.
NO_AXES = "{dynamic_axes: {}}"
QUANTISED = {"int8_ptq", "int8_acq"}
# anomalib 2.7 builds these for the default input size when it loads their checkpoint, whatever they were trained with.
SIZED = {"Patchflow"}
# By NNCF itself, as docs/deployment.md says: what anomalib's PTQ loses by is left out.
BY_NNCF = "int8_ptq, by nncf"
# Weights but those of convolutions, whose errors add up from layer to layer.
WEIGHTS_BY_NNCF = "int8, by nncf"
FORMATS = ("torch", "onnx", "fp32", "fp16", "int8", "int8_ptq", "int8_acq", BY_NNCF, WEIGHTS_BY_NNCF)
COMPARED = 32
SIZE = (128, 128)


def divide(folder: Path, target: Path) -> Path:
    """Lay a set out anew, with half of the test images under ``val``, by links."""
    for source in sorted(path for path in folder.rglob("*") if path.is_file()):
        part, kind = source.relative_to(folder).parts[:2]
        siblings = sorted(source.parent.iterdir())
        if part != "train":
            half = "val" if siblings.index(source) % 2 == 0 else "test"
            part = half if part == "test" else f"{part}_{half}"
        link = target / part / kind / source.name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(source.resolve())
    return target


def fixed(model: str, kind: str) -> bool:
    """Whether an export takes images of one size only."""
    return model in ONE_IMAGE and kind in QUANTISED


def data(root: Path, one_image: bool = False) -> dict[str, Any]:
    """Return a datamodule that validates on one half of the test images, or on these one by one, of one size."""
    arguments = {
        "name": root.name,
        "root": str(root),
        "normal_dir": "train/good",
        "normal_test_dir": "val/good",
        "abnormal_dir": "val/lesion",
        "mask_dir": "ground_truth_val/lesion" if (root / "ground_truth_val").is_dir() else None,
        "val_split_mode": "same_as_test",
        "num_workers": 0,
        "train_batch_size": 32,
        "eval_batch_size": 1 if one_image else 32,
    }
    if one_image:
        transform = {"class_path": "torchvision.transforms.v2.Resize", "init_args": {"size": list(SIZE)}}
        arguments |= {"val_augmentations": transform, "test_augmentations": transform}
    return {"class_path": "anomalib.data.Folder", "init_args": arguments}


def train(root: Path, model: str, weights: Path, steps: int, msacl: Path) -> Path:
    """Run `anomalib train` and return the checkpoint."""
    config = yaml.safe_load(CONFIG.read_text())
    kept = {key: config["model"]["init_args"][key] for key in ("backbone", "pre_trained", "pre_processor")}
    arguments = {**kept, **MODELS[model], "evaluator": False, "visualizer": False}
    config["model"] = {"class_path": f"anomalib.models.{model}", "init_args": arguments}
    config["data"] = data(root)
    callback = config["trainer"]["callbacks"][0]["init_args"]
    callback |= {"weights": str(weights), "root": str(msacl), "recipe": {"max_steps": steps}}
    if model in EPOCHS:
        config["trainer"]["max_epochs"] = EPOCHS[model]
    work = Path(tempfile.mkdtemp(dir=msacl.parent, prefix="training-"))
    (work / "config.yaml").write_text(yaml.safe_dump(config))
    command = [ANOMALIB, "fit", "--config", str(work / "config.yaml"), "--default_root_dir", str(work)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    checkpoint = msacl.parent / f"{model}.ckpt"
    shutil.move(next(work.rglob("model.ckpt")), checkpoint)
    shutil.rmtree(work)
    return checkpoint


def train_all(root: Path, weights: Path, steps: int, models: list[str]) -> None:
    """Pre-train once, fit the models on those weights, and delete the weights."""
    msacl = root / "msacl"
    for model in models:
        if (root / f"{model}.ckpt").exists():
            continue
        start = time.monotonic()
        pretrained = next(iter(msacl.glob("tf_efficientnet_lite0-*")), None)
        train(root, model, pretrained or weights, 0 if pretrained else steps, msacl)
        print(f"{root.name} {model}: fitted in {time.monotonic() - start:.0f} s", flush=True)
    shutil.rmtree(msacl, ignore_errors=True)


def export_arguments(model: str, kind: str, root: Path) -> list[str]:
    """Return the command line of the export.

    The model's arguments come from the checkpoint; those given here build a network that is thrown away.
    """
    target = "openvino" if kind not in {"torch", "onnx"} else kind
    arguments = ["export", "--model", f"anomalib.models.{model}", "--model.backbone", "resnet18"]
    arguments += ["--model.pre_trained", "false", "--ckpt_path", str(root / f"{model}.ckpt")]
    arguments += ["--export_type", target, "--export_root", str(root / "exports" / model / kind)]
    if kind in {"fp16", "int8", "int8_ptq", "int8_acq"}:
        arguments += ["--compression_type", kind.upper()]
    if kind in QUANTISED:
        datamodule = data(root, one_image=model in ONE_IMAGE)
        arguments += ["--data", datamodule["class_path"]]
        given = {key: value for key, value in datamodule["init_args"].items() if value is not None}
        arguments += [f"--data.{key}={json.dumps(v) if isinstance(v, dict) else v}" for key, v in given.items()]
    if kind == "int8_acq":
        arguments += ["--metric", "anomalib.metrics.AUROC", "--metric.fields", "[pred_score,gt_label]"]
    if fixed(model, kind):
        arguments += ["--input_size", str(list(SIZE)), "--onnx_kwargs", NO_AXES]
    elif model in ONE_IMAGE and target != "torch":
        arguments += ["--onnx_kwargs", ONE_IMAGE_AXES]
    return arguments


def exported(root: Path, model: str, kind: str) -> Path | None:
    """Return an exported model's file, if there is one."""
    folder = root / "exports" / model / kind
    found = [path for path in sorted(folder.rglob("model.*")) if path.suffix in {".pt", ".onnx", ".xml"}]
    return found[0] if found else None


def quantize_backbone(root: Path, model: str) -> None:
    """Quantise the convolutions of the backbone in the FP32 export, with weights that cannot overflow."""
    import nncf
    import openvino
    from anomalib.data import Folder
    from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, OverflowFix

    network = openvino.Core().read_model(exported(root, model, "fp32"))
    datamodule = Folder(**data(root)["init_args"] | {"eval_batch_size": 1})
    datamodule.setup()
    images = nncf.Dataset(datamodule.val_dataloader(), lambda batch: batch.image.numpy())
    nodes = network.get_ordered_ops()
    convolutions = [node for node in nodes if node.get_type_name() in {"Convolution", "GroupConvolution"}]
    others = {node.get_type_name() for node in nodes} - {"Convolution", "GroupConvolution"}
    blur = [node.get_friendly_name() for node in convolutions if node.get_output_partial_shape(0)[1] == 1]
    quantized = nncf.quantize(
        network,
        images,
        ignored_scope=nncf.IgnoredScope(types=sorted(others), names=blur, validate=False),
        # Without VNNI a processor adds int8 products in 16 bits, which 8-bit weights overflow.
        advanced_parameters=AdvancedQuantizationParameters(overflow_fix=OverflowFix.ENABLE),
    )
    target = root / "exports" / model / BY_NNCF / "model.xml"
    target.parent.mkdir(parents=True, exist_ok=True)
    openvino.save_model(quantized, target, compress_to_fp16=False)


def compress_banks(root: Path, model: str) -> None:
    """Compress the weights of the FP16 export to 8 bits, but not those of convolutions."""
    import nncf
    import openvino

    scope = nncf.IgnoredScope(types=["Convolution", "GroupConvolution"], validate=False)
    network = openvino.Core().read_model(exported(root, model, "fp16"))
    compressed = nncf.compress_weights(network, mode=nncf.CompressWeightsMode.INT8_ASYM, ignored_scope=scope)
    target = root / "exports" / model / WEIGHTS_BY_NNCF / "model.xml"
    target.parent.mkdir(parents=True, exist_ok=True)
    openvino.save_model(compressed, target)


def export_all(root: Path, model: str, kinds: list[str]) -> None:
    """Export what is missing from the checkpoint."""
    import anomalib.models
    from anomalib.cli.cli import AnomalibCLI
    from anomalib.models.components.base.export_mixin import ExportMixin

    from anomalib_msacl.export import antialiased_exports

    trace = ExportMixin.to_onnx
    if model in SIZED:
        kind_of_model = getattr(anomalib.models, model)
        size = kind_of_model.configure_pre_processor(SIZE)
        kind_of_model.load_from_checkpoint = functools.partial(kind_of_model.load_from_checkpoint, pre_processor=size)

    def trace_once(self: Any, *arguments: Any, **options: Any) -> Any:
        return exported(root, model, "onnx") or trace(self, *arguments, **options)

    for kind in kinds:
        if exported(root, model, kind):
            continue
        # Every OpenVINO export begins by tracing the network to ONNX, which takes most of its time.
        ExportMixin.to_onnx = trace if fixed(model, kind) else trace_once  # type: ignore[method-assign]
        start = time.monotonic()
        try:
            if kind == BY_NNCF:
                quantize_backbone(root, model)
            elif kind == WEIGHTS_BY_NNCF:
                compress_banks(root, model)
            else:
                with antialiased_exports():
                    AnomalibCLI(export_arguments(model, kind, root))
        except Exception as error:  # a row of the table, not the end of the run
            print(f"{root.name} {model} {kind}: {type(error).__name__}: {str(error)[:500]}", flush=True)
            continue
        print(f"{root.name} {model} {kind}: exported in {time.monotonic() - start:.0f} s", flush=True)
    ExportMixin.to_onnx = trace  # type: ignore[method-assign]


def predictor(root: Path, model: str, kind: str, threads: int) -> Callable[[Any], tuple[float, Any]]:
    """Return a function from an image in [0, 1], height x width x 3, to score and map."""
    import numpy as np
    import openvino
    import torch
    from anomalib.deploy import OpenVINOInferencer
    from torchvision.transforms.v2 import Resize

    path = exported(root, model, kind)
    if path is None:
        raise FileNotFoundError(kind)
    if path.suffix == ".pt":  # our own file, written a moment ago
        network = torch.load(path, weights_only=False)["model"].eval()

        def from_torch(image: Any) -> tuple[float, Any]:
            with torch.inference_mode():
                batch = network(torch.from_numpy(image).permute(2, 0, 1)[None])
            return batch.pred_score.item(), None if batch.anomaly_map is None else batch.anomaly_map[0, 0].numpy()

        return from_torch
    if path.suffix == ".onnx":  # anomalib's inferencer fails where OpenVINO knows an output by several names
        compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_NUM_THREADS": threads, **PRECISION})
        has_map = any("anomaly_map" in output.names for output in compiled.outputs)

        def from_onnx(image: Any) -> tuple[float, Any]:
            outputs = compiled(image.transpose(2, 0, 1)[None])
            return outputs["pred_score"].item(), outputs["anomaly_map"].squeeze().copy() if has_map else None

        return from_onnx
    inferencer = OpenVINOInferencer(path, device="CPU", config={"INFERENCE_NUM_THREADS": threads, **PRECISION})
    resize = Resize(SIZE)

    def from_openvino(image: Any) -> tuple[float, Any]:
        if fixed(model, kind):
            image = resize(torch.from_numpy(image).permute(2, 0, 1)).permute(1, 2, 0).numpy()
        batch = inferencer.predict(image)
        anomaly_map = None if batch.anomaly_map is None else np.asarray(batch.anomaly_map).squeeze().copy()
        return float(np.asarray(batch.pred_score).squeeze()), anomaly_map

    return from_openvino


def test_images(root: Path) -> Iterator[tuple[Any, bool, Any]]:
    """Yield image, label and mask (None without masks) of the half that nothing was chosen on."""
    import numpy as np
    from anomalib.data.utils import read_image
    from PIL import Image

    has_masks = (root / "ground_truth_test").is_dir()
    for path in sorted((root / "test").rglob("*.*")):
        mask = None
        if has_masks:
            mask = np.zeros((128, 128), dtype=bool)
            if path.parent.name == "lesion":
                found = next((root / "ground_truth_test" / "lesion").glob(f"{path.stem}.*"))
                mask = np.asarray(Image.open(found).convert("L").resize(SIZE, Image.Resampling.NEAREST)) > 127
        yield read_image(path, as_tensor=False).astype(np.float32), path.parent.name == "lesion", mask


def measure(root: Path, model: str, kinds: list[str]) -> None:
    """Compare every export with torch and write the rows."""
    import numpy as np
    import torch

    torch.set_num_threads(1)
    images, labels, masks = zip(*test_images(root), strict=True)
    compared = np.linspace(0, len(images) - 1, COMPARED).astype(int)
    out = root / f"{model}.json"
    rows: dict[str, dict[str, Any]] = json.loads(out.read_text()) if out.exists() else {}
    reference: list[tuple[float, Any]] = []
    for kind in ("torch", *(kind for kind in kinds if kind != "torch")):
        path = exported(root, model, kind)
        if path is None:
            continue
        predict = predictor(root, model, kind, 1)
        found = [predict(image) for image in images]
        reference = reference or found
        row = {
            "score": max(abs(found[i][0] - reference[i][0]) for i in compared),
            "image": auroc([score for score, _ in found], labels),
            "size": sum(part.stat().st_size for part in path.parent.glob("model*")) / 1e6,
        }
        if found[0][1] is not None:
            row["map"] = max(float(np.abs(found[i][1] - reference[i][1]).max()) for i in compared)
            if masks[0] is not None:
                row["pixel"] = auroc([anomaly_map for _, anomaly_map in found], masks)
        rows[kind] = row
        print(root.name, model, kind, {key: round(value, 6) for key, value in row.items()}, flush=True)
    out.write_text(json.dumps(rows, indent=1))


def latency(root: Path, model: str, kinds: list[str], rounds: int) -> None:
    """Time all exports in turn, one image each, and write medians in milliseconds."""
    import torch

    images = [image for image, *_ in test_images(root)][:rounds]
    result: dict[str, dict[str, float]] = {}
    for threads in (1, 2):
        torch.set_num_threads(threads)
        contenders = {kind: predictor(root, model, kind, threads) for kind in kinds if exported(root, model, kind)}
        times: dict[str, list[float]] = {kind: [] for kind in contenders}
        for image in [images[0], images[0], *images]:
            for kind, predict in contenders.items():
                start = time.perf_counter()
                predict(image)
                times[kind].append(time.perf_counter() - start)
        for kind, seconds in times.items():
            result.setdefault(kind, {})[f"{threads} threads"] = 1000 * statistics.median(seconds[2:])
    for kind, row in result.items():
        print(root.name, model, kind, {key: round(value, 2) for key, value in row.items()}, flush=True)
    (root / f"{model}.latency.json").write_text(json.dumps(result, indent=1))


def table(out: Path, sets: list[str], models: list[str]) -> None:
    """Print all rows as a Markdown table."""
    print("| model | export | score | map | image AUROC | pixel AUROC | MB | ms, 1 thread | ms, 2 threads |")
    print("|---|---|---|---|---|---|---|---|---|")
    for model in models:
        figures = {name: _read(out / name / f"{model}.json") for name in sets}
        times = next((found for name in sets if (found := _read(out / name / f"{model}.latency.json"))), {})
        for kind in FORMATS:
            rows = [figures[name].get(kind, {}) for name in sets]
            cells = [" / ".join(f"{row[key]:{form}}" if key in row else "-" for row in rows) for key, form in _CELLS]
            speed = [f"{times[kind][key]:.1f}" if kind in times else "-" for key in ("1 threads", "2 threads")]
            print(f"| {model} | {kind} | {' | '.join(cells)} | {' | '.join(speed)} |")


_CELLS = (("score", ".0e"), ("map", ".0e"), ("image", ".3f"), ("pixel", ".3f"), ("size", ".1f"))


def _read(path: Path) -> dict[str, Any]:
    """Return the content of a file, nothing if there is none."""
    content: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return content


def main() -> None:
    """Do what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--sets", nargs="+", default=["colonoscopy", "brain_mri"])
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--formats", nargs="+", default=list(FORMATS), choices=FORMATS)
    parser.add_argument("--out", type=Path, default=Path("results/exports"))
    parser.add_argument("--steps", type=int, default=40, help="of the pre-training")
    parser.add_argument("--rounds", type=int, default=40, help="images to time")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--latency", action="store_true")
    parser.add_argument("--elsewhere", action="store_true", help=argparse.SUPPRESS)  # the script's own second process
    arguments = parser.parse_args()
    out: Path = arguments.out.resolve()
    if not (arguments.table or arguments.latency) and None in (arguments.data, arguments.weights):
        parser.error("give --data and --weights, or --table or --latency for what is there already")
    if arguments.elsewhere:
        pairs = [(out / name, model) for name in arguments.sets for model in arguments.models]
        for root, model in () if arguments.latency else pairs:
            export_all(root, model, arguments.formats)
        for name in [name for name in sys.modules if name.split(".")[0] == "anomalib_msacl"] + ["anomalib_msacl"]:
            sys.modules[name] = None  # type: ignore[assignment]  # any import of it fails
        for root, model in pairs:
            if arguments.latency:
                latency(root, model, arguments.formats, arguments.rounds)
            else:
                measure(root, model, arguments.formats)
        return
    if not arguments.table:
        for name in () if arguments.latency else arguments.sets:
            if not (out / name).exists():
                divide((arguments.data / name).resolve(), out / name)
            train_all(out / name, arguments.weights.resolve(), arguments.steps, arguments.models)
        with tempfile.TemporaryDirectory() as work:  # OpenVINO and anomalib write into the working folder
            command = [sys.executable, str(Path(__file__).resolve()), *sys.argv[1:], "--out", str(out), "--elsewhere"]
            subprocess.run(command, check=True, cwd=work)
    table(out, arguments.sets, arguments.models)


if __name__ == "__main__":
    main()
