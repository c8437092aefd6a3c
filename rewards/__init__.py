"""The bank of rewards."""

if __name__ != "visalign.rewards":
    raise ImportError(f"this folder is imported as visalign.rewards, not as {__name__}")
