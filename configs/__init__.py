"""Proven runs, as YAML."""
