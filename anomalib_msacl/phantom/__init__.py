"""Rendered phantom images with exactly known lesions; they carry no medical meaning."""

from anomalib_msacl.phantom.datamodule import Phantom
from anomalib_msacl.phantom.rendering import render

__all__ = ["Phantom", "render"]
