"""Detectors of this package, each a model of anomalib."""
