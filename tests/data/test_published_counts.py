"""Whole published sets, on trees with the folders, names, endings and counts that were published.

The pictures are a few pixels each. What is read must be every one of them, category by category, and
add up to the size that `python -m adray data NAME` states.
"""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adray.data.accounting import account_dataset
from adray.data.published import PUBLISHED
from adray.data.readers import list_categories, list_samples, resolve_dataset
from adray.settings import Settings
from adray.submit import PRIVATE_IMAGES

# Of each category: training normals, test normals, defects of each type or of all.
MVTEC = {
    "bottle": (209, 20, {"broken_large": 20, "broken_small": 22, "contamination": 21}),
    "cable": (224, 58, {"defects": 92}),
    "capsule": (219, 23, {"defects": 109}),
    "carpet": (
        280,
        28,
        {"color": 19, "cut": 17, "hole": 17, "metal_contamination": 17, "thread": 19},
    ),
    "grid": (
        264,
        21,
        {"bent": 12, "broken": 12, "glue": 11, "metal_contamination": 11, "thread": 11},
    ),
    "hazelnut": (391, 40, {"crack": 18, "cut": 17, "hole": 18, "print": 17}),
    "leather": (245, 32, {"defects": 92}),
    "metal_nut": (220, 22, {"defects": 93}),
    "pill": (267, 26, {"defects": 141}),
    "screw": (320, 41, {"defects": 119}),
    "tile": (230, 33, {"defects": 84}),
    "toothbrush": (60, 12, {"defective": 30}),
    "transistor": (213, 60, {"bent_lead": 10, "cut_lead": 10, "damaged_case": 10, "misplaced": 10}),
    "wood": (247, 19, {"defects": 60}),
    "zipper": (240, 32, {"defects": 119}),
}
LOCO = {
    "breakfast_box": (351, 62, 102, 83, 90),
    "juice_bottle": (335, 54, 94, 142, 94),
    "pushpins": (372, 69, 138, 91, 81),
    "screw_bag": (360, 60, 122, 137, 82),
    "splicing_connectors": (360, 60, 119, 108, 85),
}
BTAD = {"01": (400, 21, 49), "02": (399, 30, 200), "03": (1000, 400, 41)}
MPDD = {
    "bracket_black": (289, 32, {"hole": 12, "scratches": 35}),
    "bracket_brown": (185, 26, {"bend_and_parts_mismatch": 17, "parts_mismatch": 34}),
    "bracket_white": (110, 30, {"defective_painting": 13, "scratches": 17}),
    "connector": (128, 30, {"parts_mismatch": 14}),
    "metal_plate": (54, 26, {"major_rust": 14, "scratches": 34, "total_rust": 23}),
    "tubes": (122, 32, {"anomalous": 69}),
}
VISA = {
    **{"candle": 1000, "capsules": 602, "cashew": 500, "chewinggum": 503, "fryum": 500},
    **{"macaroni1": 1000, "macaroni2": 1000, "pcb1": 1004, "pcb2": 1001, "pcb3": 1006},
    **{"pcb4": 1005, "pipe_fryum": 500},
}
"""Normal images; there are 100 defective ones of each."""
DAGM = {**dict.fromkeys(range(1, 7), 575), **dict.fromkeys(range(7, 11), 1150)}
"""Images of a class in each split. A seventh of those that train and an eighth of those that test
are made defective here."""


class Tree:
    """Writes pictures of a few pixels, each ending encoded once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._contents: dict[tuple[str, bool], bytes] = {}

    def write(self, pattern: str, count: int, first: int = 0, marked: bool = False) -> None:
        """Write `count` files, `marked` ones with a bright square."""
        ending = Path(pattern).suffix.lower().removeprefix(".")
        key = (ending, marked)
        if key not in self._contents:
            pixels = np.zeros((8, 8), np.uint8)
            pixels[2:4, 2:4] = 255 * marked
            kind = {"jpg": "JPEG"}.get(ending, ending.upper())
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, kind)
            self._contents[key] = buffer.getvalue()
        for number in range(first, first + count):
            path = self.root / pattern.format(number)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self._contents[key])


def write_mvtec_like(tree: Tree, categories: dict) -> Iterator[tuple[str, Counter]]:
    for name, (train, good, kinds) in categories.items():
        tree.write(f"{name}/train/good/{{:03}}.png", train)
        tree.write(f"{name}/test/good/{{:03}}.png", good)
        expected = Counter({("train", "good"): train, ("test", "good"): good})
        for kind, count in kinds.items():
            tree.write(f"{name}/test/{kind}/{{:03}}.png", count)
            tree.write(f"{name}/ground_truth/{kind}/{{:03}}_mask.png", count, marked=True)
            expected["test", kind] = count
        yield name, expected


def write_mvtec(tree: Tree) -> Iterator[tuple[str, Counter]]:
    (tree.root / "license.txt").write_text("x")
    yield from write_mvtec_like(tree, MVTEC)


def write_mpdd(tree: Tree) -> Iterator[tuple[str, Counter]]:
    yield from write_mvtec_like(tree, MPDD)


def write_mvtec_loco(tree: Tree) -> Iterator[tuple[str, Counter]]:
    for name, (train, validation, good, logical, structural) in LOCO.items():
        tree.write(f"{name}/train/good/{{:03}}.png", train)
        tree.write(f"{name}/validation/good/{{:03}}.png", validation)
        tree.write(f"{name}/test/good/{{:03}}.png", good)
        for kind, count in (("logical_anomalies", logical), ("structural_anomalies", structural)):
            tree.write(f"{name}/test/{kind}/{{:03}}.png", count)
            tree.write(f"{name}/ground_truth/{kind}/{{:03}}/000.png", count, marked=True)
        (tree.root / name / "defects_config.json").write_text("[]")
        yield (
            name,
            Counter(
                {
                    ("train", "good"): train,
                    ("validation", "good"): validation,
                    ("test", "good"): good,
                    ("test", "logical_anomalies"): logical,
                    ("test", "structural_anomalies"): structural,
                }
            ),
        )


def write_btad(tree: Tree) -> Iterator[tuple[str, Counter]]:
    for name, (train, good, bad) in BTAD.items():
        ending = {"02": "png"}.get(name, "bmp")
        tree.write(f"{name}/train/ok/{{:04}}.{ending}", train)
        tree.write(f"{name}/test/ok/{{:04}}.{ending}", good)
        tree.write(f"{name}/test/ko/{{:04}}.{ending}", bad)
        mask = "bmp" if name == "03" else "png"
        tree.write(f"{name}/ground_truth/ko/{{:04}}.{mask}", bad, marked=True)
        yield name, Counter({("train", "good"): train, ("test", "good"): good, ("test", "ko"): bad})


def write_mvtec_ad_2(tree: Tree) -> Iterator[tuple[str, Counter]]:
    """Of a category only the number of its private images is published here: the rest is spread evenly."""
    spread = {"train": 2528 // 8, "validation": 302 // 8, "good": 60, "bad": 1084 // 8 - 60}
    last = "walnuts"
    for name, private in PRIVATE_IMAGES.items():
        more = {"train": 2528 % 8, "validation": 302 % 8, "bad": 1084 % 8} if name == last else {}
        number = {key: count + more.get(key, 0) for key, count in spread.items()}
        tree.write(f"{name}/train/good/{{:03}}_regular.png", number["train"])
        tree.write(f"{name}/validation/good/{{:03}}_regular.png", number["validation"])
        tree.write(f"{name}/test_public/good/{{:03}}_overexposed.png", number["good"])
        tree.write(f"{name}/test_public/bad/{{:03}}_shift_1.png", number["bad"])
        mask = f"{name}/test_public/ground_truth/bad/{{:03}}_shift_1_mask.png"
        tree.write(mask, number["bad"], marked=True)
        tree.write(f"{name}/test_private/{{:03}}_regular.png", private)
        tree.write(f"{name}/test_private_mixed/{{:03}}_mixed.png", private)
        yield (
            name,
            Counter(
                {
                    ("train", "good"): number["train"],
                    ("validation", "good"): number["validation"],
                    ("test", "good"): number["good"],
                    ("test", "bad"): number["bad"],
                }
            ),
        )


def write_visa(tree: Tree) -> Iterator[tuple[str, Counter]]:
    rows = ["object,split,label,image,mask"]
    for name, normals in VISA.items():
        home = f"{name}/Data"
        tree.write(f"{home}/Images/Normal/{{:04}}.JPG", normals)
        tree.write(f"{home}/Images/Anomaly/{{:03}}.JPG", 100)
        tree.write(f"{home}/Masks/Anomaly/{{:03}}.png", 100, marked=True)
        # A tenth of the normal images tests, rounded as published: 962 of 9621.
        tested = round(normals / 10)
        for i in range(normals):
            split = "test" if i < tested else "train"
            rows.append(f"{name},{split},normal,{home}/Images/Normal/{i:04}.JPG,")
        for i in range(100):
            masks = f"{home}/Masks/Anomaly/{i:03}.png"
            rows.append(f"{name},test,anomaly,{home}/Images/Anomaly/{i:03}.JPG,{masks}")
        anno = ["image,label,mask"]
        anno += [
            f"{home}/Images/Anomaly/{i:03}.JPG,dent,{home}/Masks/Anomaly/{i:03}.png"
            for i in range(100)
        ]
        (tree.root / name / "image_anno.csv").write_text("\n".join(anno))
        yield (
            name,
            Counter(
                {
                    ("train", "good"): normals - tested,
                    ("test", "good"): tested,
                    ("test", "dent"): 100,
                }
            ),
        )
    (tree.root / "split_csv").mkdir()
    (tree.root / "split_csv" / "1cls.csv").write_text("\n".join(rows))


def write_dagm(tree: Tree) -> Iterator[tuple[str, Counter]]:
    for number, images in DAGM.items():
        name = f"Class{number}"
        expected = Counter()
        for split, first, defects in (("Train", images + 1, images // 7), ("Test", 1, images // 8)):
            tree.write(f"{name}/{split}/{{:04}}.PNG", images, first)
            tree.write(f"{name}/{split}/Label/{{:04}}_label.PNG", defects, first, marked=True)
            (tree.root / name / split / "Label" / "Labels.txt").write_text("1")
            expected[split.lower(), "defect"] = defects
            expected[split.lower(), "good"] = images - defects
        yield name, expected


def write_vad(tree: Tree) -> Iterator[tuple[str, Counter]]:
    counts = {
        ("train", "good"): 2000,
        ("train", "bad"): 1000,
        ("test", "good"): 1000,
        ("test", "bad"): 835,
        ("test", "bad_unseen_defects"): 165,
    }
    for (split, kind), count in counts.items():
        tree.write(f"vad/{split}/{kind}/{{:04}}.png", count)
    yield "vad", Counter(counts)


def write_kolektorsdd2(tree: Tree) -> Iterator[tuple[str, Counter]]:
    expected = Counter()
    for split, good, bad, first in (("train", 2085, 246, 10000), ("test", 894, 110, 20000)):
        tree.write(f"{split}/{{}}.png", good + bad, first)
        tree.write(f"{split}/{{}}_GT.png", good, first)
        tree.write(f"{split}/{{}}_GT.png", bad, first + good, marked=True)
        expected[split, "good"] = good
        expected[split, "defect"] = bad
    yield "kolektorsdd2", expected


SETS = {
    "mvtec": write_mvtec,
    "mvtec_loco": write_mvtec_loco,
    "mvtec_ad_2": write_mvtec_ad_2,
    "btad": write_btad,
    "mpdd": write_mpdd,
    "visa": write_visa,
    "dagm": write_dagm,
    "vad": write_vad,
    "kolektorsdd2": write_kolektorsdd2,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SETS)
def test_a_whole_published_set_is_read_file_by_file(tmp_path, name):
    root = tmp_path / name
    root.mkdir()
    expected = dict(SETS[name](Tree(root)))

    settings = Settings(dataset_dir=str(tmp_path), cache_dir=str(tmp_path / "cache"))
    assert resolve_dataset(name, settings).layout == PUBLISHED[name].reader
    assert set(list_categories(name, settings)) == set(expected)
    total = 0
    for category, counts in expected.items():
        samples = list_samples(name, category, settings)
        assert Counter((s.split, s.defect_type) for s in samples) == counts, category
        bare = [s for s in samples if s.label and not s.mask_paths]
        assert not bare or name == "vad", category
        total += len(samples)

    # Nothing is left over, and the sum is the published one.
    accounts = account_dataset(name, settings)
    assert accounts.left_out == () or name == "kolektorsdd2"
    private = 2 * sum(PRIVATE_IMAGES.values()) if name == "mvtec_ad_2" else 0
    stated = int(re.match(r"\d+", PUBLISHED[name].size)[0])
    assert total + private == stated
