"""Vision transformers: ViT (Dosovitskiy et al. 2021), DeiT (Touvron et al. 2021), DINOv2 (Oquab et al. 2024).

DINOv2 multiplies what a layer adds by one number a channel (LayerScale); those stay as they are.
"""

from __future__ import annotations

from typing import Any

from .common import VisionTrunk


class ViTTrunk(VisionTrunk):
    package = "vit"
    config_class = "ViTConfig"
    classes = ("ViTModel", "ViTForImageClassification", "ViTForMaskedImageModeling")
    image_classifier = "ViTForImageClassification"
    layers_at = "layers"


class DeiTTrunk(VisionTrunk):
    package = "deit"
    config_class = "DeiTConfig"
    classes = (
        "DeiTModel",
        "DeiTForImageClassification",
        "DeiTForImageClassificationWithTeacher",
        "DeiTForMaskedImageModeling",
    )
    image_classifier = "DeiTForImageClassification"
    layers_at = "layers"


class Dinov2Trunk(VisionTrunk):
    package = "dinov2"
    config_class = "Dinov2Config"
    classes = ("Dinov2Model", "Dinov2ForImageClassification")
    layers_at = "encoder.layer"

    embeddings: Any
