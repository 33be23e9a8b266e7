"""The model card of a folder of weights."""

from __future__ import annotations

import importlib.metadata
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from anomalib_msacl.backbone.provenance import Provenance

PACKAGES = ("anomalib-msacl", "anomalib", "torch", "timm", "lightning")

_TEMPLATE = """---
{{ card_data }}
---
# {{ provenance.architecture }}, pre-trained by MSACL

- initial weights: {{ provenance.description }}
- data: {{ facts.data }}, {{ facts.images }} normal training images
- input: {{ size }} pixels, mean {{ provenance.mean | list }}, std {{ provenance.std | list }}
- layers: {{ provenance.layers | join(", ") }}; feature maps down to the deepest: {{ whitened }}
- steps made: {{ facts.steps }}; seed and settings: in the recipe below
- kept: {{ facts.kept or "nothing was compared" }}
- versions: {{ versions }}

{{ facts.verdict }}
{% if facts.candidates %}
| candidate | image AUROC | pixel AUROC |
|---|---|---|
{% for name, image, pixel in facts.candidates -%}
| {{ name }} | {{ "%.3f" | format(image) }} | {{ "%.3f" | format(pixel) }} |
{% endfor %}
{%- endif %}
Load with `timm.create_model("local-dir:DIR", pretrained=True)`, or name `DIR` as `weights`.

```json
{{ recipe }}
```
"""


@dataclass(frozen=True)
class CardFacts:
    """What a model card tells of a pre-training.

    Attributes:
        recipe: The recipe as plain data.
        data: Name of the data set.
        images: Number of normal training images; None if unknown.
        steps: Steps that were made.
        verdict: One sentence: which weights are kept, and why.
        candidates: Name, image AUROC and pixel AUROC of all that were compared.
        kept: Name of the candidate that is kept; None where nothing was compared, or where an older card does not say.
    """

    recipe: Mapping[str, Any]
    data: str = "unknown"
    images: int | str = "unknown"
    steps: int = 0
    verdict: str = "No step was made: these are the initial weights, but for the scale of whitened maps."
    candidates: Sequence[tuple[str, float, float]] = field(default_factory=tuple)
    kept: str | None = None


def model_card(provenance: Provenance, facts: CardFacts) -> str:
    """Return the text of a model card.

    Args:
        provenance: What the weights are.
        facts: How they were made.
    """
    std = provenance.feature_std
    data = ModelCardData(
        library_name="timm",
        license=provenance.license or "unknown",
        tags=["anomaly-detection", "self-supervised", "msacl"],
    )
    card = ModelCard.from_template(
        data,
        template_str=_TEMPLATE,
        provenance=provenance,
        facts=facts,
        size=" x ".join(map(str, provenance.input_size)) or "unknown",
        whitened="as they were" if std is None else f"channels of standard deviation {std:g}",
        versions=", ".join(f"{name} {version_of(name)}" for name in PACKAGES),
        recipe=json.dumps(facts.recipe, indent=2),
    )
    return str(card)


def read_card(folder: str | Path) -> CardFacts | None:
    """Read what the model card of a folder of weights tells of their pre-training.

    Args:
        folder: Of weights that this package saved.

    Returns:
        The facts; None where there is no card, or one of others.
    """
    path = Path(folder) / "README.md"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    data = re.search(r"^- data: (.*), (\S+) normal training images$", text, re.MULTILINE)
    steps = re.search(r"^- steps made: (\d+);", text, re.MULTILINE)
    kept = re.search(r"^- kept: (.*)$", text, re.MULTILINE)
    recipe = re.search(r"^```json\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    if not data or not steps or not recipe:
        return None
    verdict = re.search(r"^(MSACL: .*)$", text, re.MULTILINE)
    candidates = [
        (name, float(image), float(pixel))
        for name, image, pixel in re.findall(r"^\| (.+?) \| ([\d.]+) \| ([\d.]+) \|$", text, re.MULTILINE)
    ]
    facts = CardFacts(json.loads(recipe.group(1)), data.group(1), data.group(2), int(steps.group(1)))
    named = kept.group(1) if kept and kept.group(1) in {name for name, _, _ in candidates} else None
    return replace(facts, verdict=verdict.group(1) if verdict else facts.verdict, candidates=candidates, kept=named)


def version_of(package: str) -> str:
    """Return the installed version of a package."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
