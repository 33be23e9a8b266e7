"""A checkpoint is a plain one of anomalib: it exports and predicts where this package cannot be imported."""

from __future__ import annotations

import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pytest
import torch
from anomalib import models
from anomalib.data.utils import read_image
from anomalib.engine import Engine
from anomalib.pre_processing import PreProcessor
from lightning.pytorch import Trainer
from PIL import Image
from torchvision.transforms.v2 import CenterCrop, Compose, Normalize, Resize, Transform

from anomalib_msacl import MsaclPretraining
from anomalib_msacl.cli import main
from tests.conftest import make_recipe, phantom
from tests.rounding import WEIGHTED, check_rounding, stored

ROOT = Path(__file__).parents[2]
LAYERS = ["layer1", "layer2"]  # the stages behind them are left out of the exports
MODELS: dict[str, dict[str, Any]] = {
    "Patchcore": {"layers": LAYERS, "coreset_sampling_ratio": 0.1},
    "Padim": {"layers": LAYERS, "n_features": 20},
    "Patchflow": {"num_scales": 1, "lr": 1e-4},
    "Dfm": {"layer": "layer2"},
}
# Largest difference to torch, of scores and maps before they are normalised, relative to the largest of them.
# Distances to a bank are differences of products, whose last digits depend on the processor (1.1e-4 was seen).
TOLERANCES = {"torch": 1e-6, "onnx": 2e-3, "fp32": 2e-3}
# How far rounded weights move a score depends on weights and processor, so here the weights themselves are looked at;
# docs/deployment.md has measured figures.
ROUNDED = {"fp16": "f16", "int8": "u8"}
COMPRESSED = ("Patchcore", "Padim")  # rounding is OpenVINO's, whatever the model

# Runs without this package: every export and torch on the same images. `anomalib export` makes all exports of Patchcore
# and the ONNX files of the others, whose other exports come from what it calls: parsing a command takes seconds.
ELSEWHERE = """
import json, sys
sys.modules["anomalib_msacl"] = None
from pathlib import Path
import numpy as np
import openvino
import torch
from anomalib import models
from anomalib.cli.cli import AnomalibCLI
from anomalib.data.utils import read_image
from anomalib.deploy import CompressionType, OpenVINOInferencer
from anomalib.engine import Engine
from anomalib.models.components.base.export_mixin import ExportMixin

torch.set_num_threads(1)
work, root, compressed, formats = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3].split(","), sys.argv[4:]
paths = sorted((root / "test").rglob("*.png"))

# An OpenVINO export begins by tracing the network, which takes most of the time; the ONNX export has done so.
trace, traced = ExportMixin.to_onnx, {}
def trace_once(self, *arguments, **options):
    name = type(self).__name__
    for module in self.modules():
        module.inplace = False  # changes no value, and is traced in half of the time
    traced[name] = traced.get(name) or trace(self, *arguments, **options)
    return traced[name]
ExportMixin.to_onnx = trace_once

def as_numbers(score, anomaly_map):
    maps = [] if anomaly_map is None else np.asarray(anomaly_map).squeeze().astype(float).tolist()
    return [np.asarray(score).item(), maps]

@torch.inference_mode()
def run_torch(model):
    batches = [model(read_image(path, as_tensor=True)[None]) for path in paths]
    return [as_numbers(batch.pred_score, batch.anomaly_map) for batch in batches]

def run_onnx(file):  # not by anomalib's inferencer, which fails where OpenVINO knows an output by several names
    model = openvino.Core().compile_model(file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    has_map = any("anomaly_map" in output.names for output in model.outputs)
    found = [model(read_image(path, as_tensor=True)[None].numpy()) for path in paths]
    return [as_numbers(output["pred_score"], output["anomaly_map"] if has_map else None) for output in found]

def run_openvino(file):
    inferencer = OpenVINOInferencer(file, device="CPU", config={"INFERENCE_PRECISION_HINT": "f32"})
    batches = [inferencer.predict(path) for path in paths]
    return [as_numbers(batch.pred_score, batch.anomaly_map) for batch in batches]

def export(name, model, checkpoint, kind):
    target = kind if kind in ("torch", "onnx") else "openvino"
    if name != "Patchcore" and kind != "onnx":
        return export_from_python(name, model, checkpoint, kind, target)
    arguments = ["export", "--model", f"anomalib.models.{name}", "--model.backbone", "resnet18",
        "--model.pre_trained", "false", "--ckpt_path", str(checkpoint),
        "--export_type", target, "--export_root", str(work / name / kind)]
    if target == "openvino" and kind != "fp32":
        arguments += ["--compression_type", kind.upper()]
    if name == "Dfm":  # anomalib 2.7 would export it for exactly two images
        arguments += ["--onnx_kwargs", "{dynamic_axes: {input: {2: height, 3: width}}}"]
    AnomalibCLI(arguments)
    return exported(name, kind)

def export_from_python(name, model, checkpoint, kind, target):
    compression = CompressionType[kind.upper()] if kind in ("fp16", "int8") else None
    engine = Engine(logger=False, accelerator="cpu", devices=1)
    engine.export(model, target, work / name / kind, compression_type=compression, ckpt_path=checkpoint)
    return exported(name, kind)

def exported(name, kind):
    return next(path for path in (work / name / kind).rglob("model.*") if path.suffix in (".pt", ".onnx", ".xml"))

result = {}
for checkpoint in sorted(work.glob("*.ckpt")):
    name = checkpoint.stem
    model = getattr(models, name).load_from_checkpoint(checkpoint).eval()
    post = model.post_processor
    rows = {"here": run_torch(model)}
    for kind in formats if name in compressed else formats[:-2]:  # the last two are compressed
        file = export(name, model, checkpoint, kind)
        if kind == "torch":
            rows[kind] = run_torch(torch.load(file, weights_only=False)["model"].eval())
        else:
            rows[kind] = run_onnx(file) if kind == "onnx" else run_openvino(file)
    ranges = [float((high - low) / max(abs(low), abs(high)))
        for low, high in ((post.image_min, post.image_max), (post.pixel_min, post.pixel_max))]
    result[name] = {"rows": rows, "ranges": ranges}
(work / "result.json").write_text(json.dumps(result))
"""


def pre_processor(*sizes: Transform) -> PreProcessor:
    return PreProcessor(Compose([*sizes, Normalize([0.5] * 3, [0.5] * 3)]))


def fit(name: str, work: Path, root: Path, weights: str, steps: int, **options: Any) -> Path:
    """Fit a model on MSACL weights, keep its checkpoint in ``work`` and return the folder of the weights."""
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002  # the coreset of PatchCore draws its projection from it, by scikit-learn
    settings = {"backbone": "test_resnet", "pre_processor": pre_processor(Resize((64, 64)))}
    settings |= {**MODELS[name], **options}
    model = getattr(models, name)(pre_trained=False, visualizer=False, **settings)
    # Scaled channels of random weights lose still more to 8 bits, which says nothing about real ones.
    recipe = make_recipe(max_steps=steps, batch_size=4, accumulate=1, evaluations=0, centre_images=4, whitening=0)
    callback = MsaclPretraining(weights, recipe, work / "msacl")
    engine = Engine(
        callbacks=[callback],
        default_root_dir=work / "results",
        accelerator="cpu",
        devices=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        **({"max_epochs": 1} if name == "Patchflow" else {}),
    )
    engine.fit(model, datamodule=phantom(root, seed=0))
    shutil.move(engine.best_model_path, work / f"{name}.ckpt")
    assert callback.directory
    return callback.directory


@pytest.fixture(scope="module")
def checkpoints(phantom_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the checkpoints of all models, and nothing else."""
    work = tmp_path_factory.mktemp("exports")
    weights, steps = "random", 2
    for name in MODELS:
        weights, steps = str(fit(name, work, phantom_root, weights, steps)), 0
    shutil.rmtree(work / "msacl")
    shutil.rmtree(work / "results")
    return work


@pytest.fixture(scope="module")
def exports(checkpoints: Path, phantom_root: Path) -> dict[str, Any]:
    """Figures of all exports of all models, from the checkpoints alone."""
    root = next(phantom_root.glob("fundus*"))
    kinds = [*TOLERANCES, *ROUNDED]
    command = [sys.executable, "-c", ELSEWHERE, str(checkpoints), str(root), ",".join(COMPRESSED), *kinds]
    run(command, checkpoints)
    content: dict[str, Any] = json.loads((checkpoints / "result.json").read_text())
    return content


def run(command: list[str], folder: Path, environment: dict[str, str] | None = None) -> str:
    """Run a command in a folder and return what it prints."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("kind", TOLERANCES)
@pytest.mark.parametrize("name", MODELS)
def test_exports_agree_with_torch_where_the_package_and_the_weights_are_gone(
    exports: dict[str, Any], name: str, kind: str
) -> None:
    rows, ranges = exports[name]["rows"], exports[name]["ranges"]
    assert len(rows[kind]) == len(rows["here"]) == 12
    for (score, anomaly_map), (score_there, map_there) in zip(rows["here"], rows[kind], strict=True):
        assert abs(score - score_there) * ranges[0] <= TOLERANCES[kind]
        assert len(anomaly_map) == len(map_there) == 64
        worst = (torch.tensor(anomaly_map) - torch.tensor(map_there)).abs().max().item()
        assert worst * ranges[1] <= TOLERANCES[kind]
    for scores in ([score for score, _ in rows["here"]], [score for score, _ in rows[kind]]):
        assert len({round(score, 4) for score in scores}) > 4  # some lie beyond the normalised range
    assert torch.tensor([anomaly_map for _, anomaly_map in rows[kind]]).std(dim=0).max() > 0.01


@pytest.mark.parametrize("kind", ROUNDED)
@pytest.mark.parametrize("name", COMPRESSED)
@pytest.mark.usefixtures("exports")
def test_compressed_exports_hold_the_weights_within_their_rounding(checkpoints: Path, name: str, kind: str) -> None:
    exact, rounded = (stored(next((checkpoints / name / folder).rglob("model.xml"))) for folder in ("fp32", kind))
    weights = {place for place, item in exact.items() if item.operation in WEIGHTED}
    assert len(weights) > 5
    assert {item.kind for item in exact.values()} == {"f32"}
    assert {rounded[place].kind for place in weights} == {ROUNDED[kind]}
    for place in weights:
        check_rounding(exact[place], rounded[place])


def blocks(page: str, language: str) -> list[str]:
    """Return the code blocks of a page."""
    return re.findall(rf"```{language}\n(.*?)```", page, flags=re.DOTALL)


def draw_images(source: Path, target: Path) -> None:
    """Lay out images that a detector has learned, the same ones with a huge lesion, and some it has not seen."""
    for kind in ("learned", "spoiled", "new"):
        (target / kind).mkdir(parents=True)
    for path in sorted((source / "train" / "good").iterdir())[:4]:
        image = np.array(Image.open(path).convert("RGB"))
        Image.fromarray(image).save(target / "learned" / path.name)
        y, x = np.indices(image.shape[:2]) // 8
        image[(y + x) % 2 == 0] = 255 - image[(y + x) % 2 == 0]
        Image.fromarray(image).save(target / "spoiled" / path.name)
    for folder in (source / "test").iterdir():
        for path in sorted(folder.iterdir())[:2]:
            shutil.copy(path, target / "new" / f"{folder.name}{path.name}")


def example(name: str, *arguments: object) -> None:
    """Run a script of examples/ as `python examples/NAME` does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")


def test_deployment_page_works_as_written(
    phantom_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    # Weights of ImageNet: what a network of random ones makes of a lesion, eight bits may undo.
    options: dict[str, Any] = {"backbone": "tf_efficientnet_lite0", "layers": ["blocks.2", "blocks.4"]}
    options["pre_processor"] = pre_processor(Resize(64), CenterCrop(64))  # as many configurations for ImageNet have it
    fit("Patchcore", tmp_path, phantom_root, "offline", 0, **options)
    (tmp_path / "Patchcore.ckpt").rename(tmp_path / "model.ckpt")
    source, images = next(phantom_root.glob("fundus*")), tmp_path / "images"
    draw_images(source, images)
    paths = sorted(images.rglob("*.png"))
    (export,) = [block for block in blocks(page, "bash") if block.startswith("anomalib-msacl export")]
    main(shlex.split(export.replace("\\\n", " "))[1:])
    network = models.Patchcore.load_from_checkpoint(tmp_path / "model.ckpt").eval()
    with torch.inference_mode():
        expected = [network(read_image(path, as_tensor=True)[None]).pred_score.item() for path in paths]
    files = {"source.xml": Path("exported/weights/openvino/model.xml")}
    files |= {name: Path(name).with_suffix("") / "model.xml" for name in ("quantize.py", "compress.py")}
    exact, quantized, compressed = files.values()
    example("quantize.py", exact, source / "train", quantized)
    example("compress.py", exact, compressed)
    for file in (exact, quantized, compressed):
        out = tmp_path / f"seen-{file.parts[0]}"
        capsys.readouterr()
        example("openvino_inference.py", file, images, out)
        rows = [line.split("\t") for line in capsys.readouterr().out.splitlines() if line.count("\t") == 2]
        assert [row[0] for row in rows] == [str(path) for path in paths]
        scores = torch.tensor([float(score) for _, score, _ in rows])
        if file == exact:
            torch.testing.assert_close(scores, torch.tensor(expected), rtol=0, atol=5e-3)
        kinds = [path.parent.name for path in paths]
        learned, spoiled = (scores[[kind == wanted for kind in kinds]] for wanted in ("learned", "spoiled"))
        assert learned.max() < spoiled.min()
        for _, score, label in rows:
            if abs(float(score) - 0.5) > 1e-3:
                assert label == ("abnormal" if float(score) > 0.5 else "normal")
        pictures = [Image.open(out / f"{path.parent.name}_{path.name}") for path in paths]
        assert {picture.size for picture in pictures} == {(64, 64)}
        assert len({picture.tobytes() for picture in pictures}) == len(paths)
    before = stored(exact)
    convolutions = {place for place, item in before.items() if item.operation in {"Convolution", "GroupConvolution"}}
    blurs = {place for place in convolutions if before[place].values.shape[:2] == (1, 1)}
    banks = {place for place, item in before.items() if item.operation == "MatMul"}
    assert (len(convolutions), len(blurs), len(banks)) == (34, 1, 2)  # the blur and 33 of the backbone's first layers
    for file, eight_bits, places in ((compressed, "u8", banks), (quantized, "i8", convolutions - blurs)):
        after = stored(file)
        for place in convolutions | banks:
            assert after[place].kind == (eight_bits if place in places else "f32")
            check_rounding(before[place], after[place])


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name)
def test_examples_need_no_package_of_ours_and_are_on_the_page(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    names = set(re.findall(r"^\s*(?:from|import) (\w+)", text, re.MULTILINE))
    assert "anomalib_msacl" not in names
    assert f"python examples/{path.name}" in (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")
    assert f"python examples/{path.name}" in text
    assert len(text.splitlines()) <= 60


@pytest.mark.parametrize("name", ["openvino_inference.py", "quantize.py"])
def test_examples_say_that_there_are_no_pictures(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "image.dcm").touch()
    with pytest.raises(SystemExit) as caught:
        example(name, "model.xml", tmp_path, tmp_path / "out")
    assert caught.value.code == 2
    assert "has no file that ends in .bmp, .jpeg" in capsys.readouterr().err


def test_a_compressed_network_of_fixed_size_keeps_it(tmp_path: Path) -> None:
    """``export --input_size``, then compress.py, as docs/deployment.md says."""
    layer = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3), torch.nn.Flatten(), torch.nn.Linear(16 * 36, 32)).eval()
    network = openvino.convert_model(layer, example_input=torch.rand(1, 3, 8, 8), input=[1, 3, 8, 8])
    openvino.save_model(network, tmp_path / "fixed.xml", compress_to_fp16=False)
    example("compress.py", tmp_path / "fixed.xml", tmp_path / "small" / "model.xml")
    found = openvino.Core().read_model(tmp_path / "small" / "model.xml")
    assert list(found.input(0).shape) == [1, 3, 8, 8]


def test_patchflow_comes_back_as_it_was_when_its_size_is_given_again(tmp_path: Path) -> None:
    """What docs/deployment.md says of anomalib; once it is mended there, the last line fails and the row can go."""
    torch.manual_seed(0)
    size = models.Patchflow.configure_pre_processor((64, 64))
    trained = models.Patchflow(backbone="test_resnet", pre_trained=False, num_scales=2, pre_processor=size).eval()
    trainer = Trainer(barebones=True, accelerator="cpu", devices=1)
    trainer.strategy.connect(trained)
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    again = models.Patchflow.configure_pre_processor((64, 64))
    mended, plain = (
        models.Patchflow.load_from_checkpoint(tmp_path / "model.ckpt", **options).eval()
        for options in ({"pre_processor": again}, {})
    )
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        expected, same, other = (model.model(images).anomaly_map for model in (trained, mended, plain))
    assert torch.equal(same, expected)
    assert plain.input_size == (64, 64)
    assert (other - expected).abs().max() > 1e-5
