"""What products are called in words, for models that read text: one table from category folders to English names."""

from __future__ import annotations

from collections.abc import Mapping

_MVTEC = {
    "bottle": "bottle",
    "cable": "cable",
    "capsule": "capsule",
    "carpet": "carpet",
    "grid": "grid",
    "hazelnut": "hazelnut",
    "leather": "leather",
    "metal_nut": "metal nut",
    "pill": "pill",
    "screw": "screw",
    "tile": "tile",
    "toothbrush": "toothbrush",
    "transistor": "transistor",
    "wood": "wood",
    "zipper": "zipper",
}
_VISA = {
    "candle": "candle",
    "capsules": "capsules",
    "cashew": "cashew",
    "chewinggum": "chewing gum",
    "fryum": "fryum",
    "macaroni1": "macaroni",
    "macaroni2": "macaroni",
    "pcb1": "printed circuit board",
    "pcb2": "printed circuit board",
    "pcb3": "printed circuit board",
    "pcb4": "printed circuit board",
    "pipe_fryum": "pipe fryum",
}
_BTAD = {
    "01": "object",
    "02": "object",
    "03": "object",
}  # its authors do not say what the products are

CLASS_NAMES: dict[str, str] = {**_MVTEC, **_VISA, **_BTAD}
"""Category folder to the words that stand for its product in a sentence."""


def class_name(category: str, given: Mapping[str, str]) -> str:
    """The words for a category: those of `given`, else of `CLASS_NAMES`, else the folder's name with spaces.

    Args:
        category: name of the category's folder.
        given: the user's own words by folder, which win.
    """
    return (
        given.get(category)
        or CLASS_NAMES.get(category)
        or " ".join(category.replace("_", " ").split())
    )
