"""English names of products by category folder, for models that read text."""

from __future__ import annotations

from collections.abc import Mapping

CLASS_NAMES = {
    # MVTec AD
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
    # VisA
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
    # BTAD, whose authors do not say what the products are
    "01": "object",
    "02": "object",
    "03": "object",
}
"""Category folder to the words that stand for its product in a sentence."""


def class_name(category: str, given: Mapping[str, str]) -> str:
    """Give the words for a category.

    The user's come first, then the table's, then the folder's name with spaces.

    Args:
        category: name of the category's folder.
        given: the user's own words by folder.
    """
    if given.get(category):
        return given[category]
    if category in CLASS_NAMES:
        return CLASS_NAMES[category]
    return " ".join(category.replace("_", " ").split())
