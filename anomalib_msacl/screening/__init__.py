"""Screening of files with a trained detector; what runs without torch."""
