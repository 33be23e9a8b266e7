"""PatchCore with a memory bank of several sizes, before and after the pre-training.

    python benchmarks/coreset.py DATA WEIGHTS [--out results/compare] [--sets ..] [--shares .001 .003 .01 .03]

The greedy coreset is drawn once, of the largest share of the patches. It picks one patch after the other, so that its
first ones are the coreset of each smaller share. Backbones are those of compare.py, which makes what is missing.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import yaml

from _common import sets_in
from compare import FIGURES, Bench


def figures(bench: Bench, name: str, arm: str, seed: int, shares: list[float]) -> dict[float, dict[str, float]]:
    """Return the figures of PatchCore for each share of the patches, the largest share first."""
    folder = bench.backbone(name, arm, seed)
    with bench.fitted(name, "patchcore", seed, folder) as (engine, detector, data):
        bank, found = detector.model.memory_bank, {}
        for share in shares:
            detector.model.memory_bank = bank[: round(len(bank) * share / shares[0])]
            tested = engine.test(detector, datamodule=data)[0]
            found[share] = {key: value for key, value in tested.items() if key in FIGURES}
    return found


def main() -> None:
    """Print a row for each set, arm and share."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("weights")
    parser.add_argument("--config", type=Path, default=Path(__file__).with_name("compare.yaml"))
    parser.add_argument("--out", type=Path, default=Path("results/compare"))
    parser.add_argument("--sets", nargs="*")
    parser.add_argument("--arm", default="msacl")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shares", nargs="*", type=float, default=[0.001, 0.003, 0.01, 0.03])
    arguments = parser.parse_args()
    config: dict[str, Any] = yaml.safe_load(arguments.config.read_text())
    shares = sorted(arguments.shares, reverse=True)
    for name in arguments.sets or sets_in(arguments.data):
        for arm in (config["reference"], arguments.arm):
            bench = Bench(config, arguments.data, arguments.weights, arguments.out.resolve())
            if not (bench.backbone(name, arm, arguments.seed) / "notes.json").exists():
                bench.run(name, arm, arguments.seed, ["patchcore"])
            settings = {**config["models"]["patchcore"]["init_args"], "coreset_sampling_ratio": shares[0]}
            models = {"patchcore": {**config["models"]["patchcore"], "init_args": settings}}
            bench.config = {**config, "models": models}
            for share, found in figures(bench, name, arm, arguments.seed, shares).items():
                shown = ", ".join(f"{key} {value:.3f}" for key, value in found.items())
                print(f"{name}, {arm}, {share:.2%} of the patches: {shown}", flush=True)


if __name__ == "__main__":
    main()
