"""The bank of pipelines."""

if __name__ != "visalign.pipelines":
    raise ImportError(f"this folder is imported as visalign.pipelines, not as {__name__}")
