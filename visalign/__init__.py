"""visalign."""
