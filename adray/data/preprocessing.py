"""How an image file becomes a model's input, said in plain values for other programs and for hashes."""

from __future__ import annotations

from adray.config import TrainConfig, to_plain
from adray.data.decode import Geometry
from adray.files import canonical_hash
from adray.types import Json, PixelRule

NORMALIZATIONS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "minus1_1": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
}
"""Mean and standard deviation by channel (RGB), of pixels in [0, 1]."""
_PROSE = ("decode", "order")
"""Sentences for people, which may be put otherwise."""


def describe_preprocessing(config: TrainConfig, pixels: PixelRule) -> Json:
    """Say how an image file becomes the model's input, for other programs to do the same. JSON."""
    geometry = Geometry(config.img_size, config.crop_size)
    mean, std = NORMALIZATIONS[config.normalize]
    crop = None
    if config.crop_size is not None:
        margin = geometry.margin
        crop = {"top": margin, "left": margin, "size": [geometry.side] * 2}
    return {
        "decode": "8-bit RGB, turned as EXIF says; grey repeated, transparency on black; "
        + pixels.sentence,
        "pixels": to_plain(pixels),
        "resize": {
            "size": [config.img_size, config.img_size],
            "interpolation": geometry.interpolation,
            "antialias": True,
            "keep_aspect_ratio": False,
            "like": "Pillow's Image.resize, rounded to 8 bits",
        },
        "crop": crop,
        "scale": 1 / 255,
        "mean": list(mean),
        "std": list(std),
        "order": "channels RGB first; (pixel * scale - mean) / std",
    }


def preprocessing_hash(config: TrainConfig, pixels: PixelRule) -> str:
    """Hash how an image file becomes the model's input."""
    described = describe_preprocessing(config, pixels)
    return canonical_hash({key: value for key, value in described.items() if key not in _PROSE})
