"""Inference-time search: one file per method."""
