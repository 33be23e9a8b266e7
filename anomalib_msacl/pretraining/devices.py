"""A trainer of its own for the pre-training, on the devices of the processes that run already."""

from __future__ import annotations

from typing import Any

from lightning.fabric.plugins import ClusterEnvironment
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch import distributed as torch_distributed

from anomalib_msacl import distributed


class RunningProcesses(ClusterEnvironment):
    """The processes of a group that is open already: nothing is launched, and nothing is closed.

    Args:
        local_rank: Which process of this machine it is.
        node_rank: Which machine it is.
    """

    def __init__(self, local_rank: int, node_rank: int = 0) -> None:
        super().__init__()
        self._local_rank, self._node_rank = local_rank, node_rank

    @property
    def creates_processes_externally(self) -> bool:
        """They are there."""
        return True

    @property
    def main_address(self) -> str:
        """Not asked for: the group is open."""
        return "127.0.0.1"

    @property
    def main_port(self) -> int:
        """Not asked for: the group is open."""
        return 0

    @staticmethod
    def detect() -> bool:
        """Never found by itself."""
        return False

    def world_size(self) -> int:
        """Return the number of processes."""
        return distributed.world_size()

    def set_world_size(self, size: int) -> None:
        """Take no other number."""

    def global_rank(self) -> int:
        """Return which of all processes it is."""
        return distributed.rank()

    def set_global_rank(self, rank: int) -> None:
        """Take no other rank."""

    def local_rank(self) -> int:
        """Return which process of this machine it is."""
        return self._local_rank

    def node_rank(self) -> int:
        """Return which machine it is."""
        return self._node_rank


def devices_of(outer: Trainer) -> dict[str, Any]:
    """Return the arguments of a trainer on the devices of another one, which has opened its process group.

    Args:
        outer: Runs on one device, or on several by DDP.
    """
    device = outer.strategy.root_device
    accelerator = {"cuda": "gpu"}.get(device.type, device.type)
    if distributed.world_size() == 1:
        return {"accelerator": accelerator, "devices": [device.index] if device.index is not None else 1}
    strategy: Any = outer.strategy
    parallel = strategy.parallel_devices
    return {
        "accelerator": accelerator,
        "devices": [each.index for each in parallel] if device.index is not None else len(parallel),
        "num_nodes": outer.num_nodes,
        "strategy": joining_strategy(outer.local_rank, outer.node_rank),
    }


def joining_strategy(local_rank: int, node_rank: int = 0) -> DDPStrategy:
    """Return DDP in the process group that is open."""
    return DDPStrategy(
        cluster_environment=RunningProcesses(local_rank, node_rank),
        process_group_backend=torch_distributed.get_backend(),
        find_unused_parameters=True,
    )
