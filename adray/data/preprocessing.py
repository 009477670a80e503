"""How an image file becomes a model's input, said in plain values for other programs and for hashes."""

from __future__ import annotations

from dataclasses import asdict

from adray.config import TrainConfig, to_plain
from adray.data.geometry import ROI_SIDE, UNSEEN_COLOR, Geometry
from adray.data.pixel_rule import rule_said
from adray.files import canonical_hash
from adray.types import Json, PixelRule, Roi

NORMALIZATIONS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "minus1_1": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
}
"""Mean and standard deviation by channel (RGB), of pixels in [0, 1]."""
_FIT_MEANINGS = {
    "pad": "the longer side is resized to `resize.size`, the shorter in proportion (rounded, half up, "
    "at least 1), and laid in the middle (rounded down) of a square of `unseen_color`; `crop` follows",
    "crop": "the square in the middle of the image (from the half rest, rounded down) is taken first, "
    "then resized; `crop` follows",
}
_RECTANGLE_MEANINGS = {
    "pad": "the image is resized in proportion, to the largest that fits into `resize.size` (each side "
    "rounded, half up, at least 1), and laid in the middle (rounded down) of such a rectangle of "
    "`unseen_color`",
    "crop": "the largest part of the image in proportion to `resize.size` (each side rounded, half up) "
    "is taken from its middle (from the half rest, rounded down) first, then resized",
}
"""The same for an input that is no square."""
_PROSE = ("decode", "order")
"""Sentences for people, which may be put otherwise."""


def describe_preprocessing(config: TrainConfig, pixels: PixelRule, roi: Roi | None = None) -> Json:
    """Say how an image file becomes the model's input, for other programs to do the same. JSON."""
    geometry = Geometry.of(config, roi)
    mean, std = NORMALIZATIONS[config.normalize]
    crop = None
    if config.crop_size is not None:
        margin = geometry.margin
        crop = {"top": margin, "left": margin, "size": [geometry.side] * 2}
    described: Json = {
        "decode": "8-bit RGB, turned as EXIF says; grey repeated, transparency on black; "
        + str(rule_said(pixels)),
        "pixels": to_plain(pixels),
        "resize": {
            "size": list(geometry.uncropped),
            "interpolation": geometry.interpolation,
            "antialias": True,
            "keep_aspect_ratio": config.fit != "squeeze",
            "like": "Pillow's Image.resize, rounded to 8 bits",
        },
        "crop": crop,
        "scale": 1 / 255,
        "mean": list(mean),
        "std": list(std),
        "order": "channels RGB first; (pixel * scale - mean) / std",
    }
    return described | _describe_fit(geometry)


def _describe_fit(geometry: Geometry) -> Json:
    """Say what is not as in the plain case, where an image is squeezed and all of it counts. JSON."""
    described: Json = {}
    if geometry.fit != "squeeze":
        meanings = _FIT_MEANINGS if geometry.aspect == 1 else _RECTANGLE_MEANINGS
        described["fit"] = {"name": geometry.fit, "meaning": meanings[geometry.fit]}
    if geometry.roi is not None:
        described["roi"] = {
            "grid": geometry.roi.packed,
            "meaning": f"base85 of zlib of {ROI_SIDE} x {ROI_SIDE} bits, rows first, over the whole "
            "image; before the resize a pixel whose middle lies on a 0 is painted in `unseen_color`",
        }
    if geometry.tiling is not None:
        described["tiles"] = {
            **asdict(geometry.tiling),
            "meaning": "both sides are resized by `scale` (rounded, half to even); tiles of `tile` "
            "pixels are spread evenly so that neighbours share at least `overlap` of one, and each is "
            "resized to the input, without `crop`; an image smaller than a tile lies in its upper left, "
            "the rest is `unseen_color`",
        }
    if geometry.hides:
        described["unseen_color"] = list(UNSEEN_COLOR)
    return described


def preprocessing_hash(config: TrainConfig, pixels: PixelRule, roi: Roi | None = None) -> str:
    """Hash how an image file becomes the model's input."""
    described = describe_preprocessing(config, pixels, roi)
    return canonical_hash({key: value for key, value in described.items() if key not in _PROSE})
