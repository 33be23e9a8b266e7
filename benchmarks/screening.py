"""Throughput of `anomalib-msacl screen` against anomalib's OpenVINOInferencer, and its memory.

    python benchmarks/screening.py --data DATA --weights WEIGHTS --sets brain_mri chest_xray

DATA holds one folder per set, laid out as configs/msacl_patchcore_folder.yaml says; WEIGHTS is a folder in timm's
format. PatchCore and PaDiM of 128 pixels are fitted on the set, exported by `anomalib-msacl export`, and the test
images are scored, each way in a process of its own, in turn, as often as `--rounds` says. The inferencer predicts one
file after the other with its default settings, but for 32 bits, and writes a line of CSV for each. Time counts from
the first image to the last: loading the model is left out. CPU seconds are those of the process in that time; on a
busy machine they say more than the clock.

    python benchmarks/screening.py --many 100000

screens so many small PNG with a small model, and prints the memory of the process after a tenth of them and at the end.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

CORES = 2


def fit(name: str, data: Path, weights: Path, work: Path) -> Path:
    """Fit a detector, export it, and return model.xml."""
    from anomalib import models
    from anomalib.engine import Engine

    from _common import pre_processor, set_of
    from anomalib_msacl.export import antialiased_exports

    layers = {"Patchcore": ["blocks.2", "blocks.4"], "Padim": ["blocks.1", "blocks.2", "blocks.4"]}[name]
    more = {"Patchcore": {"coreset_sampling_ratio": 0.01}, "Padim": {"n_features": 100}}[name]
    options: dict[str, Any] = {"layers": layers, "backbone": f"local-dir:{weights.resolve()}", "visualizer": False}
    model = getattr(models, name)(pre_processor=pre_processor((128, 128)), **options, **more)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    engine = Engine(default_root_dir=work, accelerator="cpu", devices=1, **quiet)
    engine.fit(model, datamodule=set_of(data, val_split_mode="from_test", seed=0))
    with antialiased_exports():
        return Path(engine.export(model, "openvino", export_root=work / "export"))


def usage() -> float:
    """Return the CPU seconds of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def report(images: int, begun: tuple[float, float]) -> None:
    """Print what a way took."""
    wall, cpu = time.perf_counter() - begun[0], usage() - begun[1]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"images": images, "wall": wall, "cpu": cpu, "peak MB": peak}))


def by_inferencer(model: Path, images: Path, out: Path) -> None:
    """Predict one file after the other."""
    from anomalib.deploy import OpenVINOInferencer

    inferencer = OpenVINOInferencer(model, device="CPU", config={"INFERENCE_PRECISION_HINT": "f32"})
    paths = sorted(path for path in images.rglob("*") if path.is_file())
    inferencer.predict(paths[0])
    begun = time.perf_counter(), usage()
    with (out / "scores.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        for path in paths:
            found = inferencer.predict(path)
            writer.writerow([path, found.pred_score.item(), found.pred_label.item()])
    report(len(paths), begun)


def by_screening(model: Path, images: Path, out: Path, workers: int) -> None:
    """Screen the same files."""
    import anomalib_msacl.screening.command

    command = anomalib_msacl.screening.command
    begun: list[tuple[float, float]] = []
    load = command.load_scorer

    def loaded(*arguments: Any) -> Any:
        scorer = load(*arguments)
        begun.append((time.perf_counter(), usage()))
        return scorer

    command.load_scorer = loaded
    command.run_screening(model, [images], out, maps="none", workers=workers, progress=False)
    report(sum(path.is_file() for path in images.rglob("*")), begun[0])


WAYS = {"OpenVINOInferencer": 0, "screen, one file at a time": 1, "screen, two files at a time": 2}


def measure(way: str, model: Path, images: Path) -> dict[str, float]:
    """Run a way in a process of its own, on two cores."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-W", "ignore", __file__, "--way", way, str(model), str(images), out]
        root = str(Path(__file__).parents[1])
        environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": str(CORES)}
        done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=out, env=environment)
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def many(number: int, work: Path) -> None:
    """Screen many files, and print how much memory it takes on the way."""
    from anomalib import models
    from anomalib.engine import Engine

    from _common import pre_processor
    from anomalib_msacl.data import Phantom
    from anomalib_msacl.export import antialiased_exports

    options: dict[str, Any] = {"backbone": "test_resnet", "layers": ["layer2", "layer3"], "pre_trained": False}
    model = models.Patchcore(pre_processor=pre_processor((64, 64)), visualizer=False, **options)
    data = Phantom("fundus", work / "phantom", image_size=64, train_images=8, test_images=8, seed=0)
    engine = Engine(default_root_dir=work, accelerator="cpu", devices=1, enable_progress_bar=False, logger=False)
    engine.fit(model, datamodule=data)
    with antialiased_exports():
        file = Path(engine.export(model, "openvino", export_root=work / "export"))
    drawn = [Path(path) for path in data.test_data.samples["image_path"]]
    for index in range(number):
        link = work / "images" / f"{index // 1000:03d}" / f"{index:06d}.png"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.hardlink_to(drawn[index % len(drawn)])
    command = [sys.executable, "-m", "anomalib_msacl", "screen", file, work / "images", "--out", work / "out"]
    begun = time.perf_counter()
    process = subprocess.Popen([*command, "--maps", "none"], stdout=subprocess.DEVNULL)
    table, early = work / "out" / "scores.csv", False
    last = 0
    while process.poll() is None:
        time.sleep(2)
        done = sum(1 for _ in table.open()) - 1 if table.exists() else 0
        used = resident(process.pid) or last
        if done >= number / 10 and not early:
            early = True
            print(f"{done} files: {used} MB")
        last = used
    lines = sum(1 for _ in table.open()) - 1
    seconds = time.perf_counter() - begun
    print(f"{lines} files: {last} MB, {lines / seconds:.0f} files a second, status {process.returncode}")


def resident(process: int) -> int:
    """Return the memory of a process in MB, 0 where it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) // 1024 for line in lines if line.startswith("VmRSS"))


def main() -> None:
    """Fit, export, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--sets", nargs="+", default=["brain_mri"])
    parser.add_argument("--models", nargs="+", default=["Patchcore", "Padim"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--keep", type=Path, help="folder for the exports, which are not made again")
    parser.add_argument("--many", type=int, help="screen so many small files instead, and print the memory")
    parser.add_argument("--way", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.way:
        way, model, images, out = given.way[0], *map(Path, given.way[1:])
        workers = WAYS[way]
        by_screening(model, images, out, workers) if workers else by_inferencer(model, images, out)
        return
    if given.many:
        with tempfile.TemporaryDirectory() as temporary:
            many(given.many, Path(temporary))
        return
    print("| set, model | way | images a second | CPU ms an image | peak MB |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        for name in given.sets:
            for model in given.models:
                work = (given.keep or Path(temporary)).resolve() / name / model
                files = list(work.rglob("model.xml"))
                file = files[0] if files else fit(model, given.data / name, given.weights, work)
                images = (given.data / name / "test").resolve()
                rounds = [{way: measure(way, file, images) for way in WAYS} for _ in range(given.rounds)]
                for way in WAYS:
                    best = max(one[way]["images"] / one[way]["wall"] for one in rounds)
                    cpu = min(1000 * one[way]["cpu"] / one[way]["images"] for one in rounds)
                    peak = max(one[way]["peak MB"] for one in rounds)
                    print(f"| {name}, {model} | {way} | {best:.0f} | {cpu:.1f} | {peak:.0f} |", flush=True)


if __name__ == "__main__":
    main()
