"""Screening: an exported model, or a checkpoint, on files of any kind. Needs neither torch nor anomalib for exports."""
