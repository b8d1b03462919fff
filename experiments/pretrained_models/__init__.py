"""Pretrained models for presets and benchmarks, without a download: from a package, or trained here once and kept.

`built_in_model("small-llama")` is a folder as Hugging Face writes it; `built_in_conversion(..., blocks=3)` is it cut
into blocks. Settings name one as `pretrained = "built-in:small-llama"`.
"""

from .kept import BUILT_IN, PREFIX, built_in_conversion, built_in_model, models_folder, settle_built_in

__all__ = ["BUILT_IN", "PREFIX", "built_in_conversion", "built_in_model", "models_folder", "settle_built_in"]
