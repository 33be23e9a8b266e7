"""A batch and its features across processes: the loss of a step is that of the batch of all of them.

Every process works out the whole loss from the features of all processes; those of the others come with gradients
(:func:`anomalib_msacl.distributed.gather`). Rows stand in the order in which one process would have them, so that what
is drawn from them is drawn alike; the first process draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from anomalib_msacl import distributed
from anomalib_msacl.pretraining.synthesis import SyntheticBatch
from anomalib_msacl.pretraining.views import PairDraw


class Exchange(Protocol):
    """What the terms ask of the other processes.

    Attributes:
        classes: Class of each image of all processes, shape ``(N,)``.
        owners: Which original image each was made from, shape ``(N,)``.
    """

    classes: Tensor
    owners: Tensor

    def rows(self, own: Tensor) -> Tensor:
        """Return a tensor with one row for each image of this process, ``(n, ...)``, for all: ``(N, ...)``."""

    def take(self, own: Tensor, places: Sequence[Tensor]) -> Tensor:
        """Return entries of such a tensor, at ``places`` in that of all processes, shape ``(M, ...)``."""

    def some(self, entries: int, number: int, device: torch.device) -> Tensor:
        """Return which of so many entries are chosen at random, ``number`` at most, in random order."""

    def pairs(self, images: Tensor, number: int) -> tuple[Tensor, Tensor, PairDraw]:
        """Return the first normal images of all processes, at most so many, and what is random about their patches.

        Args:
            images: Images of this process, shape ``(n, C, H, W)``.
            number: Images at most.

        Returns:
            Those of them that are here, at least one, where they stand among all, shape ``(m,)`` and maybe empty, and
            the draws for all of them.
        """

    def joined(self, own: Tensor, places: Tensor) -> Tensor:
        """Return features of such images in the order of their places, ``(M, ...)``, from those of this process."""


class Alone:
    """The exchange of a single process.

    Args:
        classes: Class of each image, shape ``(N,)``.
        owners: Which original image each was made from, shape ``(N,)``.
    """

    def __init__(self, classes: Tensor, owners: Tensor) -> None:
        self.classes, self.owners = classes, owners

    def rows(self, own: Tensor) -> Tensor:
        """Return the rows as they are."""
        return own

    def take(self, own: Tensor, places: Sequence[Tensor]) -> Tensor:
        """Return entries."""
        return own[tuple(places)]

    def some(self, entries: int, number: int, device: torch.device) -> Tensor:
        """Choose entries."""
        return torch.randperm(entries, device=device)[:number]

    def pairs(self, images: Tensor, number: int) -> tuple[Tensor, Tensor, PairDraw]:
        """Return the first normal images and draw their patches."""
        normal = images[self.classes == 0][:number]
        places = torch.arange(len(normal), device=images.device)
        return normal, places, PairDraw.of(len(normal), images.device)

    def joined(self, own: Tensor, places: Tensor) -> Tensor:
        """Return the features as they are."""
        del places
        return own


class Together:
    """The exchange among several processes.

    Args:
        batch: The images of this process.
        counts: Whether they count; a process that has none takes part with an image that does not.
    """

    def __init__(self, batch: SyntheticBatch, counts: bool = True) -> None:
        self._number = len(batch.classes) if counts else 0
        processes = distributed.world_size()
        owners = batch.owners * processes + distributed.rank()  # every process has one image after the other
        own = torch.stack([batch.classes, owners, _view(batch)], dim=1)[: self._number]
        self._sizes = distributed.gather_sizes(self._number)
        classes, owners, view = distributed.gather(own, self._sizes).unbind(dim=1)
        span = int(owners.max()) + 1
        self._sorted = (view * span + owners).argsort(stable=True)
        self._normal = batch.classes == 0
        self.classes, self.owners = classes[self._sorted], owners[self._sorted]

    def rows(self, own: Tensor) -> Tensor:
        """Gather the rows, with gradients."""
        return distributed.gather(own[: self._number], self._sizes)[self._sorted]

    def take(self, own: Tensor, places: Sequence[Tensor]) -> Tensor:
        """Gather no more than the entries that are asked for, with gradients."""
        row, *inner = places
        place = self._sorted[row]  # in the rows of process after process
        ends = torch.tensor(self._sizes, device=row.device).cumsum(0)
        process = torch.bucketize(place, ends, right=True)
        mine = process == distributed.rank()
        begin = int(ends[distributed.rank()]) - self._number
        entries = own[(place[mine] - begin, *(index[mine] for index in inner))]
        sizes = torch.bincount(process, minlength=len(self._sizes)).tolist()
        gathered = distributed.gather(entries, sizes)
        return gathered[process.argsort(stable=True).argsort()]

    def some(self, entries: int, number: int, device: torch.device) -> Tensor:
        """Let the first process choose entries."""

        def draw() -> Tensor:
            return torch.randperm(entries, device=device)[:number].cpu()

        return distributed.on_main(draw).to(device)

    def pairs(self, images: Tensor, number: int) -> tuple[Tensor, Tensor, PairDraw]:
        """Return what is here of the first normal images of all processes; the first process draws their patches."""
        device = images.device
        begin = sum(self._sizes[: distributed.rank()])
        place = self._sorted.argsort()[begin : begin + self._number]  # of the own rows among all
        among = (self.classes == 0).cumsum(0) - 1
        total = min(number, int((self.classes == 0).sum()))
        chosen = self._normal[: self._number] & (among[place] < number)
        draw = distributed.on_main(lambda: PairDraw.of(total, device).to(torch.device("cpu"))).to(device)
        places = among[place[chosen]]
        own = images[: self._number][chosen] if len(places) else images[:1]
        return own, places, draw

    def joined(self, own: Tensor, places: Tensor) -> Tensor:
        """Gather the features, with gradients."""
        sizes = distributed.gather_sizes(len(places))
        order = distributed.gather(places, sizes).argsort()
        return distributed.gather(own[: len(places)], sizes)[order]


def exchange_of(batch: SyntheticBatch, counts: bool = True) -> Exchange:
    """Return the exchange for a batch.

    Args:
        batch: The images of this process.
        counts: Whether they count.
    """
    return Together(batch, counts) if distributed.world_size() > 1 else Alone(batch.classes, batch.owners)


def _view(batch: SyntheticBatch) -> Tensor:
    """Return which of the views of its original each image belongs to, shape ``(n,)``."""
    same = (batch.owners[:, None] == batch.owners) & (batch.classes[:, None] == batch.classes)
    return same.tril(-1).sum(dim=1)
