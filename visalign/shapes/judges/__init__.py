"""The judges of the built-in world and how they are made: a CLIP, two heads on it, and a vision-language model."""
