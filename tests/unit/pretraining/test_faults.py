"""A process of two that is killed ends the other with a sentence, not a hang, and the run can be started again."""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import distributed, multiprocessing

from anomalib_msacl import pretrain
from anomalib_msacl.backbone import Encoder, create_backbone, folder
from anomalib_msacl.backbone.folder import is_intact, remove_leftovers
from anomalib_msacl.distributed import on_main
from anomalib_msacl.pretraining import pipeline
from anomalib_msacl.pretraining.checkpoints import Checkpoints
from anomalib_msacl.pretraining.choice import Choice
from anomalib_msacl.pretraining.devices import joining_strategy
from anomalib_msacl.pretraining.lightning_model import PretrainingModule, make_trainer
from tests.conftest import make_recipe
from tests.processes import METHOD, prepare_server

RUN: dict[str, Any] = {"max_steps": 2, "batch_size": 4, "accumulate": 1, "evaluations": 1, "centre_images": 4}
RUN |= {"evaluation_images": 4, "position": 0.0, "whitening": 0.1}
TIMEOUT = timedelta(seconds=60)


class Fault(NamedTuple):
    """Where a process is killed, which one, and whether a checkpoint is left to go on from."""

    place: object
    name: str
    rank: int
    goes_on: bool = True


FAULTS = {
    "whitening": Fault(pipeline, "whiten", 1, goes_on=False),
    "training": Fault(PretrainingModule, "on_train_batch_end", 1),
    "choice": Fault(Choice, "decide", 0),
    "saving": Fault(folder, "_put", 0),
}


def kill_in(fault: Fault) -> None:
    """Let this process be killed where the fault says; a training is killed in its second step."""
    original: Callable[..., Any] = getattr(fault.place, fault.name)

    def killed(*args: Any, **kwargs: Any) -> Any:
        if fault.name == "on_train_batch_end" and args[0].global_step < 2:
            return original(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGKILL)
        return None

    setattr(fault.place, fault.name, killed)


def work(rank: int, root: str, group: str, name: str) -> None:
    """Pre-train in one process of two and save, or write down what was said."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    place = Path(root)
    distributed.init_process_group("gloo", f"file://{place}/{group}", rank=rank, world_size=2, timeout=TIMEOUT)
    fault = FAULTS.get(name)
    if fault is not None and fault.rank == rank:
        kill_in(fault)
    torch.manual_seed(5)
    backbone, provenance = create_backbone("test_efficientnet", "random")
    images = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    recipe, checkpoints = make_recipe(**RUN), Checkpoints(place / "run.ckpt", 0)
    trainer = make_trainer(recipe, accelerator="cpu", devices=2, strategy=joining_strategy(rank))
    try:
        encoder = Encoder(backbone, frozen_stride=4)
        found = pretrain(encoder, provenance, images, images.flip(-1), recipe, trainer, checkpoints)
        on_main(remove_leftovers, place / "weights")
        on_main(lambda: str(found.save(place / "weights")))
    except BaseException as error:  # of a process whose end nobody sees: written down
        (place / f"{group}.said").write_text(f"{type(error).__name__}: {error}")
        os._exit(1)
    (place / f"{group}.resumed").write_text(str(checkpoints.resumed))
    os._exit(0)


def both(root: Path, group: str, name: str = "") -> list[int | None]:
    """Return how two processes ended."""
    prepare_server()
    context = multiprocessing.get_context(METHOD)
    started = [context.Process(target=work, args=(rank, str(root), group, name)) for rank in range(2)]
    for process in started:
        process.start()
    for process in started:
        process.join(2 * TIMEOUT.total_seconds())
    return [process.exitcode for process in started]


@pytest.mark.parametrize("name", FAULTS)
def test_a_killed_process_ends_the_other_with_a_sentence_and_the_run_goes_on(name: str, tmp_path: Path) -> None:
    fault = FAULTS[name]
    ends = both(tmp_path, "first", name)
    assert ends[fault.rank] == -signal.SIGKILL
    assert ends[1 - fault.rank] == 1
    said = (tmp_path / "first.said").read_text()
    assert said.startswith("LostProcessError: another process of this training ended")
    assert "Start the same command again" in said
    assert "\n" not in said
    assert not (tmp_path / "weights").exists()
    assert both(tmp_path, "again") == [0, 0]
    assert (tmp_path / "again.resumed").read_text() == str(fault.goes_on)
    assert is_intact(tmp_path / "weights")
    assert not list(tmp_path.glob(".saving-weights-*"))
