"""What the processes of one training agree on: gathered rows, sums, and what the first process found out or drew.

All of it is torch.distributed, in the process group that Lightning opens. With one process every function returns what
it was given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, distributed, nn

from anomalib_msacl.errors import InputError, LostProcessError, first_line

Found = TypeVar("Found")

_APART = 1_000_003  # between the seeds of two processes


def world_size() -> int:
    """Return how many processes train together; 1 where nothing is distributed."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    """Return which of the processes this is, from 0."""
    return distributed.get_rank() if world_size() > 1 else 0


def is_main() -> bool:
    """Whether this is the process that looks at files, scores candidates and saves."""
    return rank() == 0


def seed_of_process(seed: int) -> int:
    """Return the seed of this process: each draws views and lesions of its own; the first takes the seed as it is."""
    return (seed + _APART * rank()) % 2**63


def gather(rows: Tensor, sizes: Sequence[int] | None = None) -> Tensor:
    """Return the rows of all processes, process by process; gradients flow back to the process that a row is from.

    If every process works out the same loss from all rows, and gradients of weights are averaged over the processes as
    DDP does, then these averages are the gradients of that loss.

    Args:
        rows: Shape ``(n, ...)``; ``n`` may differ between processes, and may be 0.
        sizes: ``n`` of each process; exchanged first if None.

    Returns:
        Shape ``(sum of n, ...)``.
    """
    if world_size() == 1:
        return rows
    sizes = gather_sizes(len(rows)) if sizes is None else sizes
    if not any(sizes):
        return rows
    with _lost_processes():
        return cast("Tensor", cast("Any", _Gather).apply(rows, list(sizes)))


def gather_sizes(number: int) -> list[int]:
    """Return a whole number of every process."""
    return [int(each) for each in gather_objects(number)]


def gather_objects(value: Found) -> list[Found]:
    """Return a value of every process; it is pickled on the way."""
    if world_size() == 1:
        return [value]
    found: list[Any] = [None] * world_size()
    with _lost_processes():
        distributed.all_gather_object(found, value)
    return found


def total(tensor: Tensor) -> Tensor:
    """Return the sum of a tensor over the processes, on the device of the tensor."""
    if world_size() == 1:
        return tensor
    summed = tensor.to(_device(), copy=True)
    with _lost_processes():
        distributed.all_reduce(summed)
    return summed.to(tensor.device)


def on_main(function: Callable[..., Found], *arguments: Any) -> Found:
    """Let the first process work something out, and return to all of them what it found.

    Args:
        function: Called on the first process alone. It must not wait for the others.
        *arguments: Its arguments.

    Returns:
        What it returned, pickled on the way to the others.

    Raises:
        Exception: What the function raised; on the other processes an :class:`InputError` that quotes it.
    """
    if world_size() == 1:
        return function(*arguments)
    error: Exception | None = None
    answer: list[Any] = [None, ""]
    if is_main():
        try:
            answer[0] = function(*arguments)
        except Exception as raised:  # whatever it is, the others must not wait for an answer
            error, answer[1] = raised, str(raised) if isinstance(raised, InputError) else first_line(raised)
    with _lost_processes():
        distributed.broadcast_object_list(answer)
    if error is not None:
        raise error
    if answer[1]:
        raise InputError(answer[1])
    return cast("Found", answer[0])


def copy_from_main(module: nn.Module) -> None:
    """Give a module the parameters and buffers that it has on the first process."""
    if world_size() == 1:
        return
    with torch.no_grad(), _lost_processes():
        for tensor in module.state_dict().values():
            sent = tensor.detach().to(_device(), copy=True).contiguous()
            distributed.broadcast(sent, 0)
            tensor.copy_(sent)


def wait_for_all() -> None:
    """Go on when all processes have come here."""
    gather_sizes(0)


class _Gather(torch.autograd.Function):
    """Rows of all processes; the gradient of a row is summed over the processes that looked at it."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, sizes: list[int]) -> Tensor:
        """Pad to the longest, gather, and cut the padding off."""
        ctx.sizes = sizes
        padded = rows.new_zeros((max(sizes), *rows.shape[1:]))
        padded[: len(rows)] = rows
        gathered = [torch.empty_like(padded) for _ in sizes]
        distributed.all_gather(gathered, padded)
        return torch.cat([part[:size] for part, size in zip(gathered, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Sum over the processes, and return the part of this one."""
        summed = gradient.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(summed)
        return torch.split(summed, ctx.sizes)[rank()], None


def _device() -> torch.device:
    """Return where the backend takes tensors."""
    if distributed.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


@contextmanager
def _lost_processes() -> Iterator[None]:
    """Say in one sentence that another process is gone."""
    try:
        yield
    except RuntimeError as error:
        raise LostProcessError.of(error) from error
