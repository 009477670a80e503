"""Tiny data sets on disk, one writer per layout: grey noise with a bright square as the defect, masks that fit."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image


def draw(seed: int, size: int = 64, defect: bool = False) -> tuple[Image.Image, Image.Image]:
    """A noisy image with smooth shading, other for each seed, and its mask."""
    rng = np.random.default_rng(seed)
    shade = 90 + 30 * np.sin(np.arange(size) / 7.0)
    pixels = shade[:, None, None] + rng.normal(0, 6, (size, size, 3))
    mask = np.zeros((size, size), np.uint8)
    if defect:
        side = size // 4
        top, left = rng.integers(0, size - side, 2)
        mask[top : top + side, left : left + side] = 255
        pixels[mask > 0] += 110
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), Image.fromarray(mask)


def save(
    path: Path, seed: int, size: int = 64, defect: bool = False, mask_path: Path | None = None
) -> None:
    """Write an image, and its mask where a path for it is given."""
    image, mask = draw(seed, size, defect)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    if mask_path is not None:
        mask_path.parent.mkdir(parents=True, exist_ok=True)
        mask.save(mask_path)


def write_mvtec(
    root: Path,
    categories: Sequence[str] = ("bottle", "wood"),
    train: int = 6,
    good: int = 3,
    defects: int = 4,
    size: int = 64,
    masks: bool = True,
) -> Path:
    """MVTec AD; the defects alternate between `scratch` and `hole`."""
    for c, category in enumerate(categories):
        home, seed = root / category, 1000 * c
        for i in range(train):
            save(home / "train" / "good" / f"{i:03d}.png", seed + i, size)
        for i in range(good):
            save(home / "test" / "good" / f"{i:03d}.png", seed + 300 + i, size)
        for i in range(defects):
            kind = ("scratch", "hole")[i % 2]
            mask = home / "ground_truth" / kind / f"{i // 2:03d}_mask.png" if masks else None
            save(
                home / "test" / kind / f"{i // 2:03d}.png",
                seed + 600 + i,
                size,
                defect=True,
                mask_path=mask,
            )
    return root


def write_btad(
    root: Path,
    categories: Sequence[str] = ("01", "02"),
    train: int = 6,
    good: int = 3,
    defects: int = 4,
    size: int = 64,
) -> Path:
    """BTAD; the second category has `.bmp` images, and each has masks of the other ending."""
    for c, category in enumerate(categories):
        home, seed = root / category, 1000 * c
        image_end, mask_end = ("png", "bmp") if c % 2 == 0 else ("bmp", "png")
        for i in range(train):
            save(home / "train" / "ok" / f"{i:04d}.{image_end}", seed + i, size)
        for i in range(good):
            save(home / "test" / "ok" / f"{i:04d}.{image_end}", seed + 300 + i, size)
        for i in range(defects):
            mask = home / "ground_truth" / "ko" / f"{i:04d}.{mask_end}"
            save(
                home / "test" / "ko" / f"{i:04d}.{image_end}",
                seed + 600 + i,
                size,
                defect=True,
                mask_path=mask,
            )
    return root


def write_visa(
    root: Path,
    categories: Sequence[str] = ("candle", "pcb1"),
    train: int = 6,
    good: int = 3,
    defects: int = 4,
    size: int = 64,
    split: str | None = "root",
) -> Path:
    """VisA with `1cls.csv` and `2cls_highshot.csv` at the root or per category (`split`), or without any CSV (None).

    In 2cls_highshot the first half of the defects trains.
    """
    for c, category in enumerate(categories):
        rows, data = [], root / category / "Data"
        for i in range(train + good):
            save(data / "Images" / "Normal" / f"{i:04d}.JPG", 1000 * c + i, size)
            part = "train" if i < train else "test"
            rows.append(
                (category, part, part, "normal", f"{category}/Data/Images/Normal/{i:04d}.JPG", "")
            )
        for i in range(defects):
            image, mask = (
                data / "Images" / "Anomaly" / f"{i:03d}.JPG",
                data / "Masks" / "Anomaly" / f"{i:03d}.png",
            )
            save(image, 1000 * c + 600 + i, size, defect=True, mask_path=mask)
            part = "train" if i < defects // 2 else "test"
            names = (
                f"{category}/Data/Images/Anomaly/{i:03d}.JPG",
                f"{category}/Data/Masks/Anomaly/{i:03d}.png",
            )
            rows.append((category, "test", part, "anomaly", *names))
        if split:
            _write_visa_tables(root, category, rows, per_category=split == "category")
    return root


def _write_visa_tables(
    root: Path, category: str, rows: list[tuple[str, ...]], per_category: bool
) -> None:
    folder = (root / category if per_category else root) / "split_csv"
    folder.mkdir(exist_ok=True)
    for column, name in ((1, "1cls"), (2, "2cls_highshot")):
        path = folder / f"{name}.csv"
        lines = [(row[0], row[column], *row[3:]) for row in rows]
        header = [] if path.exists() else [("object", "split", "label", "image", "mask")]
        with path.open("a", newline="") as file:
            csv.writer(file).writerows(header + lines)
    kinds = {row[4]: "burnt,bent" if row[3] == "anomaly" else "normal" for row in rows}
    lines = [("image", "label", "mask"), *((row[4], kinds[row[4]], row[5]) for row in rows)]
    with (root / category / "image_anno.csv").open("w", newline="") as file:
        csv.writer(file).writerows(lines)


def write_custom(
    root: Path,
    categories: Sequence[str] = ("pattern1", "pattern2"),
    normal: int = 10,
    defects: int = 4,
    size: int = 64,
    repeats: int = 2,
) -> Path:
    """The custom layout; `normal` and `defects` count motifs, each shot `repeats` times (`_v2`, ...)."""
    for c, category in enumerate(categories):
        for i in range(normal + defects):
            folder = "normal" if i < normal else ("scratch", "crack")[i % 2]
            for r in range(repeats):
                extra = f"_v{r + 1}" if r else ""
                name = f"{category} {60 + 10 * i} {100 + i}{extra}.png"
                save(
                    root / "data_rgb" / folder / name,
                    1000 * c + 10 * i + r,
                    size,
                    defect=i >= normal,
                )
    return root


def write_folder(
    root: Path, normal: int = 10, defects: int = 4, size: int = 64, normal_test: int = 0
) -> Path:
    """A plain folder: `ok`, `ng/{dent,stain}`, `masks/{dent,stain}`, and `ok_test` where asked."""
    for i in range(normal):
        save(root / "ok" / f"part {i}.png", i, size)
    for i in range(normal_test):
        save(root / "ok_test" / f"test {i}.png", 300 + i, size)
    for i in range(defects):
        kind = ("dent", "stain")[i % 2]
        save(
            root / "ng" / kind / f"{i}.png",
            600 + i,
            size,
            defect=True,
            mask_path=root / "masks" / kind / f"{i}.png",
        )
    return root


def _encoded(pixels: np.ndarray, ending: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format={"jpg": "JPEG"}.get(ending, ending))
    return buffer.getvalue()


def write_tree(root: Path, names: Sequence[str], marked: Sequence[str] = ()) -> Path:
    """Files of these names with the same few grey pixels in each; those `marked` are masks that mark something."""
    blank, dots = np.zeros((8, 8), np.uint8), np.zeros((8, 8), np.uint8)
    dots[2:4, 2:4] = 255
    contents: dict[tuple[str, bool], bytes] = {}
    for name in (*names, *marked):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        ending = path.suffix.lower().removeprefix(".")
        key = (ending, name in marked)
        if key not in contents:
            contents[key] = _encoded(dots if key[1] else blank, ending)
        path.write_bytes(contents[key])
    return root


def numbered(pattern: str, count: int, first: int = 0) -> list[str]:
    """`count` names from a pattern with one place for a number."""
    return [pattern.format(i) for i in range(first, first + count)]
