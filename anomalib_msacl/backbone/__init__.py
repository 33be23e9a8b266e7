"""Backbones: feature maps by layer name, whitening, and weights with a record of where they come from."""

from anomalib_msacl.backbone.encoder import Encoder
from anomalib_msacl.backbone.folder import save_backbone
from anomalib_msacl.backbone.hub import push_backbone
from anomalib_msacl.backbone.provenance import Provenance
from anomalib_msacl.backbone.realignment import realign
from anomalib_msacl.backbone.sources import Backbone, create_backbone
from anomalib_msacl.backbone.whitening import rescale, whiten

__all__ = [
    "Backbone",
    "Encoder",
    "Provenance",
    "create_backbone",
    "push_backbone",
    "realign",
    "rescale",
    "save_backbone",
    "whiten",
]
