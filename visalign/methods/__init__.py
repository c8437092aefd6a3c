"""Alignment methods: one file each, what experience it needs and its loss."""
