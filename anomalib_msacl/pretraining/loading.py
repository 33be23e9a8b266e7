"""Batches of a training that can be divided among processes, and that goes on in the middle of an epoch.

A :class:`SharedLoader` yields what the loader that it is made of would yield; with several processes each of them gets
its share of every batch, so that a step sees the same images however many processes there are. Lightning keeps its
state in checkpoints.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import islice
from typing import Any, cast

import torch
from torch.utils.data import DataLoader, DistributedSampler, Sampler

from anomalib_msacl import distributed
from anomalib_msacl.errors import InputError

RandomState = dict[str, torch.Tensor]


def random_state() -> RandomState:
    """Return the state of torch's random numbers, on the CPU and on the present GPU."""
    state = {"cpu": torch.get_rng_state()}
    return {**state, "cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else state


def set_random_state(state: RandomState) -> None:
    """Restore what :func:`random_state` returned."""
    torch.set_rng_state(state["cpu"].cpu())
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())


class Shares(Sampler[list[int]]):
    """The share of this process in every batch of a sampler: with two processes every other image, and so on.

    Args:
        batches: Draws the batches of all processes, the same on each of them: its random numbers are those of the
            first process.

    Attributes:
        start: State of the random numbers before the present epoch was drawn.
        sizes: Images of its own, and of all processes, in each of the batches that were drawn and have not been yielded
            by the loader yet. A batch with fewer images than processes leaves some without one; they get an image that
            must not count.
    """

    def __init__(self, batches: Any) -> None:
        self.batches = batches
        self.start: RandomState | None = None
        self.sizes: deque[tuple[int, int]] = deque()
        self._goes_on: tuple[RandomState, int] | None = None

    def __len__(self) -> int:
        """Return the number of batches."""
        return len(self.batches)

    def go_on(self, start: RandomState, number: int) -> None:
        """Let the next epoch be one that was begun before.

        Args:
            start: As :attr:`start` was in it.
            number: Batches that were taken already.
        """
        self._goes_on = (start, number)

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the indices of this process."""
        self.sizes.clear()
        for indices in self._all():
            own = indices[distributed.rank() :: distributed.world_size()]
            self.sizes.append((len(own), len(indices)))
            yield own or indices[:1]

    def _all(self) -> Iterator[list[int]]:
        """Yield the batches of all processes; samplers draw from the global random numbers when they begin."""
        present = random_state()
        begun, self._goes_on = self._goes_on, None
        self.start, skipped = begun or (distributed.on_main(random_state), 0)
        set_random_state(self.start)
        batches = iter(self.batches)
        first = list(islice(batches, skipped + 1))[skipped:]
        if begun or not distributed.is_main():
            set_random_state(present)
        yield from first
        yield from batches


class SharedLoader(DataLoader[Any]):
    """A loader whose batches are divided among processes, and whose epochs can be gone on with.

    Args:
        loader: Yields the batches of all processes.

    Attributes:
        whole: The loader.
        filler: Whether the batch that was yielded last holds no image of this process.
        size: Images of all processes in that batch.
        after: State of the random numbers of a run that goes on: what they were when it stopped; None otherwise.

    Raises:
        InputError: If the loader cannot be divided.
    """

    def __init__(self, loader: DataLoader[Any]) -> None:
        if not isinstance(loader, DataLoader) or loader.batch_sampler is None:
            raise InputError(
                f"MSACL pre-training on several devices needs a DataLoader of a data set with indices, but got "
                f"{type(loader).__name__}; give one, or train on one device."
            )
        shares = Shares(loader.batch_sampler)
        super().__init__(loader.dataset, batch_sampler=shares, **_options(loader, loader.persistent_workers))
        self.whole, self.filler, self.size = loader, False, 0
        self.after: RandomState | None = None
        self._shares, self._taken = shares, 0
        self._loaded: dict[str, Any] | None = None
        if distributed.world_size() > 1:  # tells Lightning that the images are divided already
            places = (distributed.world_size(), distributed.rank())
            self.__dict__["sampler"] = DistributedSampler(cast("Any", loader.dataset), *places)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # torch names a private class
        """Yield the batches of an epoch, or what is left of it."""
        loaded, self._loaded = self._loaded, None
        self._taken, self.after = 0, None
        if loaded is None:
            return self._walk(super().__iter__())
        self.after = loaded["now"]
        if 0 < loaded["taken"] < len(self):
            self._taken = loaded["taken"]
            self._shares.go_on(loaded["start"], self._taken)
            return self._walk(super().__iter__())
        set_random_state(loaded["now"])  # the next epoch begins: its workers draw their seed
        batches = super().__iter__()
        self.after = random_state()
        return self._walk(batches)

    def _walk(self, batches: Iterator[Any]) -> Iterator[Any]:
        """Yield batches and count them."""
        for batch in batches:
            self._taken += 1
            own, self.size = self._shares.sizes.popleft()
            self.filler = own == 0
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Return where the epoch stands, with the random numbers of every process; all of them must ask."""
        states = distributed.gather_objects((self._shares.start, random_state()))
        return {"taken": self._taken, "states": [{"start": start, "now": now} for start, now in states]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned; with another number of processes the random numbers are new."""
        states = state["states"]
        if len(states) != distributed.world_size() or states[0]["start"] is None:
            self._loaded = None
            return
        self._loaded = {"taken": state["taken"], **states[distributed.rank()]}


def with_batches(loader: DataLoader[Any], batches: Any, persistent: bool) -> DataLoader[Any]:
    """Return a loader of the same data with other batches.

    Args:
        loader: Is left alone.
        batches: A batch sampler.
        persistent: Whether workers stay alive between two epochs.
    """
    return DataLoader(loader.dataset, batch_sampler=batches, **_options(loader, persistent))


def _options(loader: DataLoader[Any], persistent: bool) -> dict[str, Any]:
    """Return the arguments of a loader that say how data is read."""
    names = ["num_workers", "collate_fn", "pin_memory", "timeout", "worker_init_fn", "multiprocessing_context"]
    names += ["generator", "prefetch_factor"]
    return {**{name: getattr(loader, name) for name in names}, "persistent_workers": persistent}
