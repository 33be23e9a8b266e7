"""Choice of the weights to keep, among named candidates."""

from __future__ import annotations

import math
from typing import Any

import torch

from anomalib_msacl.backbone.tensors import StateDict
from anomalib_msacl.pretraining.questions import FEWEST, Asks, Score, standard_error

UNTOUCHED = "untouched"
WHITENED = "whitened"
_CLEARLY = 2.0  # standard errors
_TITLES = {UNTOUCHED: "the untouched backbone", WHITENED: "the whitened backbone"}


def step_name(step: int) -> str:
    """Return the name of the candidate of a step.

    >>> step_name(20)
    'step 20'
    """
    return f"step {step}"


def is_due(evaluations: int, step: int, total: float) -> bool:
    """Return whether a candidate is compared after a step.

    Args:
        evaluations: How often one is compared in a run.
        step: Steps made so far.
        total: Steps of the run; infinite if unknown, and then every 25 steps are due.

    >>> [step for step in range(1, 41) if is_due(2, step, 40)]
    [20, 40]
    """
    every = math.ceil(total / evaluations) if evaluations and math.isfinite(total) else 25
    return evaluations > 0 and (step >= total or step % every == 0)


class Choice:
    """Candidates, their scores and the best of them. The last one is kept unless another is clearly better.

    Clearly means: the image AUROC of the best candidate is above that of the last one by more than two standard errors
    of their difference, so that training is not given up for noise. What harms real lesions and not synthetic ones goes
    unnoticed (docs/experiments.md).

    Args:
        program: What the verdict begins with.

    Attributes:
        questions: What the candidates are asked; None where nothing is compared.
        scores: Score by name, in the order in which the candidates were compared.
        kept: Name of the candidate that is kept; None before the decision, or where the last one was never compared.
    """

    def __init__(self, program: str = "MSACL") -> None:
        self.program = program
        self.questions: Asks | None = None
        self.scores: dict[str, Score] = {}
        self.kept: str | None = None
        self._best: str | None = None
        self._best_weights: StateDict = {}

    def consider(self, name: str, encoder: Any, weights: StateDict, device: torch.device) -> None:
        """Score a candidate and remember its weights if it is the best so far; nothing without questions.

        Args:
            name: For people, e.g. "step 20".
            encoder: Has the weights of the candidate.
            weights: A copy of them.
            device: Where the encoder is.
        """
        if self.questions is None:
            return
        score = self.scores[name] = self.questions.score(encoder, device)
        if self._best is None or score.image_auroc > self.scores[self._best].image_auroc:
            self._best, self._best_weights = name, weights

    def decide(self, last: str, weights: StateDict) -> StateDict:
        """Return the weights to keep, and remember their name.

        Args:
            last: Name of the last candidate.
            weights: Those of the last candidate.
        """
        if self.questions is None or self._best is None or last not in self.scores or not self._clearly_better(last):
            self._best, self._best_weights = last if last in self.scores else None, weights
        self.kept = self._best
        return self._best_weights

    def verdict(self) -> str:
        """Return one sentence: which weights are kept, and what was compared."""
        if self.kept is None:
            return f"{self.program}: nothing was compared; the weights of the last step are kept."
        first, last = next(iter(self.scores)), next(reversed(self.scores))
        start, kept = self.scores[first], self.scores[self.kept]
        figures = (
            f"image AUROC {start.image_auroc:.3f} -> {kept.image_auroc:.3f}, pixel AUROC "
            f"{start.pixel_auroc:.3f} -> {kept.pixel_auroc:.3f} ({first} -> kept)"
        )
        if self.kept == last:
            few = kept.held_out is not None and kept.held_out < FEWEST
            reason = f"fewer than {FEWEST} cannot tell which is better" if few else "none was clearly better"
            return (
                f"{self.program}: the last candidate, {last}, is kept: {reason} on held-out normal images with "
                f"synthetic lesions; {figures}."
            )
        return (
            f"{self.program}: {_TITLES.get(self.kept, self.kept)} is kept: on held-out normal images with synthetic "
            f"lesions it was clearly better than the last candidate, {last}, with an image AUROC of "
            f"{self.scores[last].image_auroc:.3f}; {figures}."
        )

    def state_dict(self) -> dict[str, Any]:
        """Return plain data and tensors, so that a resumed run goes on choosing."""
        scores = {name: tuple(score) for name, score in self.scores.items()}
        return {"scores": scores, "kept": self.kept, "best": self._best, "best_weights": self._best_weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.scores = {name: Score(*score) for name, score in state["scores"].items()}
        self.kept, self._best, self._best_weights = (state[name] for name in ("kept", "best", "best_weights"))

    def _clearly_better(self, last: str) -> bool:
        """Whether the score of the best is above that of the last one by more than two standard errors."""
        best, final = self.scores[self._best or last], self.scores[last]
        return best.image_auroc - final.image_auroc > _CLEARLY * standard_error(best, final)
