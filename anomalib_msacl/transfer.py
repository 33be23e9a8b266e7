"""Where anomalib's models keep their pre-trained backbones, and how other weights get there.

The rule is on networks, not on models: anomalib wraps pre-trained networks in a ``TimmFeatureExtractor``, uses a model
of timm as it is, or traces one of torchvision with torch.fx. Whatever a later anomalib adds in one of these three ways
works without a change here. Only what the networks do not tell stands in the tables below.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import timm
import torch
from anomalib import LearningType
from anomalib.models.components import AnomalibModule, TimmFeatureExtractor
from torch import nn

from anomalib_msacl.backbone import create_backbone
from anomalib_msacl.backbone.encoder import evaluating, stages_of
from anomalib_msacl.errors import InputError

# A traced network of torchvision does not know its name: the hyper-parameter that does, or the name itself.
TORCHVISION = {"Cfa": "backbone", "UniNet": "teacher_backbone", "Csflow": "efficientnet_b5"}
# timm's architecture is torchvision's but for these arguments.
TORCHVISION_ARGS: Mapping[str, Mapping[str, Any]] = {"efficientnet_b5": {"bn_eps": 1e-3}}
# Models whose networks look like any other, but which read more than images.
DEPTH = frozenset({"CFM"})


@dataclass(frozen=True)
class PretrainedBackbone:
    """The pre-trained backbone of an anomalib model.

    Attributes:
        architecture: Its name in timm, with the tag of its weights if the model names one.
        networks: Every network of the model that holds its weights, or a part of them, by its name in the model.
        library: Whose weights the model was built with: ``timm`` or ``torchvision``.
        layers: The layers that the model reads, by name or index; None if the networks do not tell.
        model_args: Further arguments of the architecture, for :func:`anomalib_msacl.backbone.create_backbone`.
        extractor: anomalib's wrapper around the network, if there is one.
    """

    architecture: str
    networks: Mapping[str, nn.Module]
    library: str = "timm"
    layers: list[str | int] | None = None
    model_args: Mapping[str, Any] = field(default_factory=dict)
    extractor: TimmFeatureExtractor | None = None

    def check_size(self, size: Sequence[int]) -> None:
        """Send one image through anomalib's own extractor: what it cannot use shall fail before the pre-training.

        Args:
            size: Height and width of the images in pixels.

        Raises:
            InputError: If the extractor takes no images of this size, or if it returns maps with the channels last,
                as those of Swin transformers are, which anomalib's models take for the height.
        """
        if self.extractor is None:
            return
        parameter = next(self.extractor.parameters())
        image = torch.zeros(1, 3, *size, device=parameter.device, dtype=parameter.dtype)
        try:
            with torch.no_grad(), evaluating(self.extractor):
                maps = list(TimmFeatureExtractor.forward(self.extractor, image).values())  # U-Flow overrides it
        except (AssertionError, RuntimeError, ValueError) as error:
            raise InputError(
                f"anomalib's extractor with the backbone {self.architecture!r} cannot take images of "
                f"{size[0]} x {size[1]} pixels ({(str(error).splitlines() or ['-'])[0]}); resize to the size that it "
                "was built for, or name another backbone."
            ) from error
        if self.extractor.output_fmt == "NCHW" and not channels_first(maps, self.extractor):
            raise InputError(
                f"the backbone {self.architecture!r} gives its maps with the channels last, which anomalib's models "
                "take for channels first, so that their scores mean nothing; name another backbone."
            )

    def fill(self, backbone: nn.Module) -> None:
        """Copy weights into every network.

        Args:
            backbone: The same architecture, from :func:`anomalib_msacl.backbone.create_backbone`.

        Raises:
            InputError: If it is another architecture.
        """
        for network in self.networks.values():
            transfer(backbone, network)


def find_backbone(model: AnomalibModule) -> PretrainedBackbone:
    """Return the pre-trained backbone of a model.

    Teachers and encoders are found; students and decoders, which must stay random, are not.

    Args:
        model: A model of anomalib.

    Returns:
        The backbone and where it is.

    Raises:
        InputError: If there is none, if there are several of different architectures, or if a layer that was asked
            for does not exist; the sentence says why.
    """
    check_kind(model)
    found = [_describe(model, name, network) for name, network in _networks(model)]
    if not found:
        raise InputError(
            f"MsaclPretraining: {type(model).__name__} has no pre-trained image backbone of timm or torchvision; use "
            "a model such as Patchcore or Padim."
        )
    architectures = sorted({one.architecture for one in found})
    if len(architectures) > 1:
        raise InputError(
            f"MsaclPretraining: {type(model).__name__} joins {len(architectures)} pre-trained backbones, "
            f"{' and '.join(architectures)}, but one is needed; choose a backbone of one architecture."
        )
    networks = {name: network for one in found for name, network in one.networks.items()}
    return replace(found[0], networks=networks)


def check_kind(model: AnomalibModule) -> None:
    """Refuse models that no backbone of images can be pre-trained for.

    Raises:
        InputError: If a model reads video or depth, or is made to work without training.
    """
    name = type(model).__name__
    if name in DEPTH:
        raise InputError(
            f"MsaclPretraining: {name} reads point clouds beside images, MSACL pre-trains on images alone; use an "
            "image model."
        )
    if ".models.video." in type(model).__module__:
        raise InputError(f"MsaclPretraining: {name} reads video, MSACL pre-trains on images; use an image model.")
    if model.learning_type in {LearningType.ZERO_SHOT, LearningType.FEW_SHOT}:
        raise InputError(
            f"MsaclPretraining: {name} compares images with text prompts or a few examples and is never fitted, so "
            "there is nothing to pre-train it on; use a model such as Patchcore or Padim."
        )


def transfer(backbone: nn.Module, target: nn.Module) -> None:
    """Copy the weights of a full backbone into the part of it that an anomalib model uses.

    ``features_only`` drops the last layers, writes some module names with ``_`` for ``.`` and puts some models into a
    ``model`` or ``body``; vision transformers come with a classifier, which features do not pass; torchvision has
    other names for the tensors of an EfficientNet, in the same order. Nothing else may differ.

    Args:
        backbone: Source, a full model of timm.
        target: Network inside a model of anomalib.

    Raises:
        InputError: If a tensor of the target is missing in the source or has another shape.
    """
    source = {_flat(name): tensor for name, tensor in backbone.state_dict().items()}
    state = target.state_dict()
    classifiers = (getattr(target, "pretrained_cfg", None) or {}).get("classifier") or ()
    classifiers = (classifiers,) if isinstance(classifiers, str) else tuple(classifiers)
    by_order = dict(zip(state, source.values(), strict=False)) if not source.keys() & set(map(_plain, state)) else {}
    for name, tensor in state.items():
        if name.startswith(tuple(f"{classifier}." for classifier in classifiers)):
            continue
        found = by_order.get(name, source.get(_plain(name), source.get(_flat(name))))
        if found is None or found.shape != tensor.shape:
            shape = "missing" if found is None else f"of shape {tuple(found.shape)}"
            raise InputError(
                f"weights of another architecture: {name} of shape {tuple(tensor.shape)} in the model is {shape} in "
                "the pre-trained backbone; name the same backbone in both."
            )
        state[name] = found
    target.load_state_dict(state)


def _networks(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the networks that anomalib builds with pre-trained weights, each once."""
    found: list[tuple[str, nn.Module]] = []
    inside: set[nn.Module] = set()
    for name, module in model.named_modules():  # parents come before their children
        if module in inside:
            continue
        timm_model = type(module).__module__.startswith("timm.models.") and hasattr(module, "pretrained_cfg")
        if timm_model or isinstance(module, TimmFeatureExtractor | torch.fx.GraphModule):
            found.append((name, module))
            inside.update(module.modules())
    # A student is an extractor with gradients beside its teacher; Glass has one alone, which it goes on training.
    students = [(name, module) for name, module in found if getattr(module, "requires_grad", False)]
    yield from (one for one in found if one not in students or len(found) == len(students))


def _describe(model: AnomalibModule, name: str, network: nn.Module) -> PretrainedBackbone:
    """Say what backbone a network is."""
    if isinstance(network, TimmFeatureExtractor) and isinstance(network.backbone, str):
        inner = cast("nn.Module", network.feature_extractor)
        _check_layers(model, network)
        place = f"{name}.feature_extractor"
        read = [layer for _, layer in sorted(zip(network.idx, network.layers, strict=True))]  # as timm gives them
        return PretrainedBackbone(network.backbone, {place: inner}, "timm", read, _args(inner), network)
    if isinstance(network, TimmFeatureExtractor | torch.fx.GraphModule):
        known = TORCHVISION.get(type(model).__name__, "")
        architecture = model.hparams.get(known, known)
        if not timm.is_model(architecture):
            raise InputError(
                f"MsaclPretraining: which architecture {name} of {type(model).__name__} is cannot be told; use a model "
                "such as Patchcore or Padim."
            )
        if isinstance(network, TimmFeatureExtractor):
            name, network = f"{name}.feature_extractor", cast("nn.Module", network.feature_extractor)
        args = TORCHVISION_ARGS.get(architecture, {})
        return PretrainedBackbone(architecture, {name: network}, "torchvision", None, args)
    config = cast("Mapping[str, Any]", network.pretrained_cfg)
    architecture = ".".join(filter(None, (config["architecture"], config.get("tag"))))
    layers = getattr(getattr(network, "feature_info", None), "out_indices", None)
    return PretrainedBackbone(architecture, {name: network}, "timm", list(layers) if layers else None, _args(network))


def _args(network: nn.Module) -> dict[str, Any]:
    """Return the arguments that a transformer was created with for images of another size than its own."""
    size = getattr(getattr(network, "patch_embed", None), "img_size", None)
    default = (getattr(network, "pretrained_cfg", None) or {}).get("input_size", (0,))[1:]
    return {"img_size": list(size)} if size and tuple(size) != tuple(default) else {}


def channels_first(maps: Sequence[torch.Tensor], extractor: TimmFeatureExtractor) -> bool:
    """Whether maps have their channels in front of height and width.

    timm gives them in the order of the network, and says their channels in the order in which the layers are named.

    Args:
        maps: What the extractor returned.
        extractor: Has an entry of ``out_dims`` for each of them.
    """
    return all(one.ndim == 4 for one in maps) and sorted(one.shape[1] for one in maps) == sorted(extractor.out_dims)


def check_layers(backbone: str, layers: Sequence[str | int]) -> None:
    """Refuse layers that a backbone does not have.

    Args:
        backbone: A timm name, ``local-dir:DIR`` or ``hf-hub:OWNER/NAME``.
        layers: Names, or indices, which are passed over.

    Raises:
        InputError: If there are none, or one does not exist; the sentence names those that do.
    """
    names = [stage["module"] for stage in stages_of(create_backbone(backbone, "random").model)]
    given = isinstance(layers, list | tuple)
    if not given or len(layers) > len(names):
        shown = f"a list of {len(layers)}" if given else repr(layers)
        raise InputError(f"layers is {shown}, but must be a list of some of the layers {', '.join(names)}.")
    missing = [layer for layer in layers if isinstance(layer, str) and layer not in names]
    if missing or not layers:
        raise InputError(
            f"layer {(missing or ['-'])[0]!r} does not exist in the backbone {backbone!r}; its layers are "
            f"{', '.join(names)}."
        )


def _check_layers(model: AnomalibModule, extractor: TimmFeatureExtractor) -> None:
    """Refuse layers that anomalib has dropped with only a warning."""
    asked = [layer for layer in model.hparams.get("layers") or () if isinstance(layer, str)]
    if not extractor.layers or any(layer not in extractor.layers for layer in asked):
        check_layers(cast("str", extractor.backbone), asked)


def _flat(name: str) -> str:
    """Return a tensor's name in the one spelling in which full and features-only models agree."""
    return name.replace(".", "_")


def _plain(name: str) -> str:
    """Return the same without the wrapper that some features-only models put around the backbone."""
    return _flat(name.removeprefix("model.").removeprefix("body."))
