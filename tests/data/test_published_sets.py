"""Each published set, on a tree of the published form: names, endings and, where known, counts."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest
from fake_datasets import numbered, write_tree
from pyarrow import parquet

from adray.data.base import Sample
from adray.data.readers import list_categories, list_samples, resolve_dataset
from adray.data.splits import holdout
from adray.errors import InputError
from adray.settings import DataOptions, Settings


def read(root: Path, category: str = "all", layout: str = "", **options) -> list[Sample]:
    data = {root.name: DataOptions(**options)} if options else {}
    settings = Settings(dataset_dir=str(root.parent), cache_dir=str(root.parent / "c"), data=data)
    found = resolve_dataset(root.name, settings)
    if layout:
        assert found.layout == layout
    samples = list_samples(root.name, category, settings)
    if found.reader.fixed_split:
        assert list_samples(root.name, category, settings, seed=43) == samples
    return samples


def categories(root: Path) -> list[str]:
    return list_categories(root.name, Settings(dataset_dir=str(root.parent)))


def counts(samples: list[Sample]) -> dict[tuple[str, str], int]:
    return dict(Counter((s.split, s.defect_type) for s in samples))


def test_mvtec_loco_has_a_folder_of_masks_per_image_and_validation_images(tmp_path):
    names = [
        *numbered("breakfast_box/train/good/{:03}.png", 351),
        *numbered("breakfast_box/validation/good/{:03}.png", 62),
        *numbered("breakfast_box/test/good/{:03}.png", 102),
        *numbered("breakfast_box/test/logical_anomalies/{:03}.png", 83),
        *numbered("breakfast_box/test/structural_anomalies/{:03}.png", 90),
    ]
    masks = [
        *numbered("breakfast_box/ground_truth/logical_anomalies/{:03}/000.png", 83),
        *numbered("breakfast_box/ground_truth/logical_anomalies/{:03}/001.png", 40),
        *numbered("breakfast_box/ground_truth/structural_anomalies/{:03}/000.png", 90),
    ]
    root = write_tree(tmp_path / "loco", names, marked=masks)
    (root / "breakfast_box" / "defects_config.json").write_text("[]")

    samples = read(root, layout="mvtec")
    assert counts(samples) == {
        ("train", "good"): 351,
        ("validation", "good"): 62,
        ("test", "good"): 102,
        ("test", "logical_anomalies"): 83,
        ("test", "structural_anomalies"): 90,
    }
    assert sorted(str(p.relative_to(root)) for s in samples for p in s.mask_paths) == sorted(masks)
    first = next(s for s in samples if s.defect_type == "logical_anomalies")
    assert [p.name for p in first.mask_paths] == ["000.png", "001.png"]

    train, held_out = holdout(samples, 0.1, 0)
    assert (len(train), {s.split for s in held_out}, len(held_out)) == (351, {"validation"}, 62)


def test_mvtec_ad_2_tests_on_its_public_images_and_leaves_the_private_ones_out(tmp_path):
    names = [
        *numbered("vial/train/good/{:03}_regular.png", 20),
        *numbered("vial/validation/good/{:03}_regular.png", 5),
        *numbered("vial/test_public/good/{:03}_regular.png", 6),
        *numbered("vial/test_public/bad/{:03}_underexposed.png", 7),
        *numbered("vial/test_private/{:03}_regular.png", 276),
        *numbered("vial/test_private_mixed/{:03}_mixed.png", 276),
    ]
    masks = numbered("vial/test_public/ground_truth/bad/{:03}_underexposed_mask.png", 7)
    root = write_tree(tmp_path / "mvtec_ad_2", names, marked=masks)

    samples = read(root, layout="mvtec")
    assert counts(samples) == {
        ("train", "good"): 20,
        ("validation", "good"): 5,
        ("test", "good"): 6,
        ("test", "bad"): 7,
    }
    assert all(len(s.mask_paths) == s.label for s in samples)
    found = resolve_dataset("mvtec_ad_2", Settings(dataset_dir=str(tmp_path)))
    assert len(found.reader.metadata(root, "vial")) == 2 * 276


@pytest.mark.parametrize(
    ("name", "category", "train", "good", "kinds", "image", "mask"),
    [
        ("mpdd", "bracket_black", 289, 32, {"hole": 12, "scratches": 35}, "png", "{}_mask.png"),
        ("dtd_synthetic", "Woven_001", 20, 5, {"bad": 7}, "png", "{}_mask.png"),
        ("goodsad", "cigarette_box", 20, 5, {"opened": 7, "surface_damage": 3}, "jpg", "{}.png"),
        ("rsdd", "rail", 20, 5, {"bad": 7}, "bmp", "{}.png"),
        ("autovi", "engine_wiring", 20, 5, {"unclipped": 7}, "png", "{}/0000.png"),
        ("visa_1cls", "candle", 20, 5, {"bad": 7}, "JPG", "{}.png"),
    ],
)
def test_followers_of_mvtec_ad_are_read_as_it_is(
    tmp_path, name, category, train, good, kinds, image, mask
):
    names = numbered(f"{category}/train/good/{{:03}}.{image}", train)
    names += numbered(f"{category}/test/good/{{:03}}.{image}", good)
    masks = []
    for kind, count in kinds.items():
        names += numbered(f"{category}/test/{kind}/{{:03}}.{image}", count)
        masks += numbered(f"{category}/ground_truth/{kind}/{mask.format('{:03}')}", count)
    root = write_tree(tmp_path / name, names, marked=masks)

    samples = read(root, layout="mvtec")
    expected = {("train", "good"): train, ("test", "good"): good}
    assert counts(samples) == expected | {("test", kind): n for kind, n in kinds.items()}
    assert sorted(str(p.relative_to(root)) for s in samples for p in s.mask_paths) == sorted(masks)


def test_btad_has_its_published_counts(tmp_path):
    names = [
        *numbered("01/train/ok/{:04}.bmp", 400),
        *numbered("01/test/ok/{:04}.bmp", 21),
        *numbered("01/test/ko/{:04}.bmp", 49),
        *numbered("03/train/ok/{:04}.bmp", 10),
        *numbered("03/test/ko/{:04}.bmp", 2),
    ]
    masks = numbered("01/ground_truth/ko/{:04}.png", 49)
    masks += numbered("03/ground_truth/ko/{:04}.bmp", 2)
    root = write_tree(tmp_path / "btad", names, marked=masks)
    samples = read(root, "01", layout="btad")
    assert counts(samples) == {("train", "good"): 400, ("test", "good"): 21, ("test", "ko"): 49}
    assert all(len(s.mask_paths) == s.label for s in read(root))


def test_vad_has_defects_in_training_that_only_supervised_models_see(tmp_path):
    names = [
        *numbered("vad/train/good/{:04}.png", 2000),
        *numbered("vad/train/bad/{:04}.png", 1000),
        *numbered("vad/test/good/{:04}.png", 1000),
        *numbered("vad/test/bad/{:04}.png", 835),
        *numbered("vad/test/bad_unseen_defects/{:04}.png", 165),
    ]
    root = write_tree(tmp_path / "VAD", names)
    samples = read(root, layout="mvtec")
    assert categories(root) == ["vad"]
    assert counts(samples) == {
        ("train", "good"): 2000,
        ("train", "bad"): 1000,
        ("test", "good"): 1000,
        ("test", "bad"): 835,
        ("test", "bad_unseen_defects"): 165,
    }


def test_aebad_s_groups_by_the_shift_of_the_scene(tmp_path):
    shifts = ("background", "illumination", "view")
    names, masks = [], []
    for shift in shifts:
        names += numbered(f"AeBAD_S/train/good/{shift}/{{:03}}.png", 4)
    for shift in ("same", *shifts):
        names += numbered(f"AeBAD_S/test/good/{shift}/{{:03}}.png", 2)
        names += numbered(f"AeBAD_S/test/fracture/{shift}/{{:03}}.png", 3)
        masks += numbered(f"AeBAD_S/ground_truth/fracture/{shift}/{{:03}}.png", 3)
    root = write_tree(tmp_path / "AeBAD", names, marked=masks)

    samples = read(root, layout="mvtec")
    assert counts(samples) == {("train", "good"): 12, ("test", "good"): 8, ("test", "fracture"): 12}
    assert all(s.group == s.path.parent.name for s in samples)
    for s in samples:
        expected = root / "AeBAD_S/ground_truth/fracture" / s.group / s.path.name
        assert s.mask_paths == ((expected,) if s.label else ())
    _, held_out = holdout(samples, 0.1, 0)
    assert len({s.group for s in held_out}) == 1


def test_bmad_has_images_and_labels_in_folders_of_their_own(tmp_path):
    names = numbered("Brain/train/good/img/{:05}_60.png", 9)
    for split in ("valid", "test"):
        names += numbered(f"Brain/{split}/good/img/{{:05}}_96.png", 4)
        names += numbered(f"Brain/{split}/Ungood/img/{{:05}}_70.png", 3)
    masks = numbered("Brain/test/Ungood/label/{:05}_70.png", 3)
    masks += numbered("Brain/valid/Ungood/label/{:05}_70.png", 3)
    names += numbered("Histopathology/train/good/{}.png", 5, first=1000)
    names += numbered("Histopathology/test/Ungood/{}.png", 5, first=100)
    root = write_tree(tmp_path / "BMAD", names, marked=masks)

    samples = read(root, "Brain", layout="mvtec")
    assert counts(samples) == {
        ("train", "good"): 9,
        ("validation", "good"): 4,
        ("validation", "Ungood"): 3,
        ("test", "good"): 4,
        ("test", "Ungood"): 3,
    }
    assert all(len(s.mask_paths) == s.label for s in samples)
    assert not any(s.group for s in samples)
    assert counts(read(root, "Histopathology")) == {("train", "good"): 5, ("test", "Ungood"): 5}


@pytest.mark.parametrize(
    ("maize", "nut"),
    [
        ("agriculture/maize", "mechanics/nut"),
        ("MANTA_TINY_256_cropped/maize", "MANTA_TINY_256_cropped/nut"),
        ("MANTA_TINY_256_cropped/agriculture/maize", "MANTA_TINY_256_cropped/mechanics/nut"),
    ],
)
def test_manta_has_its_categories_in_folders(tmp_path, maize, nut):
    """Beside them lie lists for supervised training, which are not read."""
    names = numbered(f"{maize}/train/good/{{:03}}.png", 5)
    names += numbered(f"{maize}/test/broken/{{:03}}.png", 2)
    names += numbered(f"{nut}/train/good/{{:03}}.png", 4)
    names += numbered(f"{nut}/test/good/{{:03}}.png", 2)
    masks = numbered(f"{maize}/ground_truth/broken/{{:03}}_mask.png", 2)
    root = write_tree(tmp_path / "manta", names, marked=masks)
    (root / "sup_cropped").mkdir()
    (root / "sup_cropped" / "maize.json").write_text('{"train": [], "test": []}')
    assert categories(root) == ["maize", "nut"]
    samples = read(root, "maize", layout="nested")
    assert counts(samples) == {("train", "good"): 5, ("test", "broken"): 2}
    assert all(len(s.mask_paths) == s.label for s in samples)


def real_iad(root: Path, size: str = "realiad_1024", lists: str = "realiad_jsons") -> Path:
    """Objects of five views: three normal ones in training, one each of OK and NG in the test."""
    home = root / size / "audiojack"
    content = {"meta": {"normal_class": "OK", "prefix": "audiojack/"}, "train": [], "test": []}
    names, masks = [], []
    for number, kind in ((1, "OK"), (2, "OK"), (3, "OK"), (4, "OK"), (5, "NG/BX")):
        word = kind.partition("/")[2] or "OK"
        for view in range(1, 6):
            name = f"{kind}/S{number:04}/audiojack_{number:04}_{word}_C{view}_2023.jpg"
            names.append(name)
            mask = name.replace(".jpg", ".png") if word != "OK" else None
            if mask:
                masks.append(mask)
            entry = {"category": "audiojack", "anomaly_class": word}
            entry |= {"image_path": name, "mask_path": mask}
            content["train" if number <= 3 else "test"].append(entry)
    write_tree(home, names, marked=masks)
    folder = root / "realiad_jsons" / lists
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "audiojack.json").write_text(json.dumps(content))
    return root


def test_real_iad_keeps_the_views_of_an_object_together(tmp_path):
    samples = read(real_iad(tmp_path / "realiad"), layout="json")
    assert counts(samples) == {("train", "good"): 15, ("test", "good"): 5, ("test", "BX"): 5}
    assert all(len(s.mask_paths) == s.label for s in samples)
    assert Counter(s.part for s in samples) == {
        **{f"OK/S{number:04}": 5 for number in (1, 2, 3, 4)},
        "NG/BX/S0005": 5,
    }
    _, held_out = holdout(samples, 0.1, 0)
    assert len(held_out) == 5
    assert len({s.part for s in held_out}) == 1


def test_real_iad_has_a_list_per_variant(tmp_path):
    root = real_iad(tmp_path / "realiad")
    real_iad(root, lists="realiad_jsons_sv")
    path = root / "realiad_jsons" / "realiad_jsons_sv" / "audiojack.json"
    content = json.loads(path.read_text())
    content["train"] = [entry for entry in content["train"] if "_C1_" in entry["image_path"]]
    path.write_text(json.dumps(content))
    assert len(read(root)) == 25
    assert len(read(root, variant="sv")) == 13
    with pytest.raises(InputError, match=r"data.realiad.variant: 'svv' .* did you mean 'sv'"):
        read(root, variant="svv")


def test_defects_that_fuiad_put_into_training_count_as_normal(tmp_path):
    root = real_iad(tmp_path / "realiad", lists="realiad_jsons_fuiad_0.1")
    path = root / "realiad_jsons" / "realiad_jsons_fuiad_0.1" / "audiojack.json"
    content = json.loads(path.read_text())
    content["train"].append(content["test"].pop())
    path.write_text(json.dumps(content))
    samples = read(root, variant="fuiad_0.1")
    assert counts(samples) == {("train", "good"): 16, ("test", "good"): 5, ("test", "BX"): 4}


def test_several_lists_of_one_set_stand_beside_each_other_by_links(tmp_path):
    root = real_iad(tmp_path / "realiad")
    real_iad(root, lists="realiad_jsons_fuiad_0.1")
    path = root / "realiad_jsons" / "realiad_jsons_fuiad_0.1" / "audiojack.json"
    content = json.loads(path.read_text())
    content["train"].append(content["test"].pop())
    path.write_text(json.dumps(content))
    (tmp_path / "realiad_dirty").symlink_to(root)

    assert counts(read(root))["train", "good"] == 15
    dirty = read(tmp_path / "realiad_dirty", variant="fuiad_0.1")
    assert counts(dirty)["train", "good"] == 16
    assert {sample.dataset for sample in dirty} == {"realiad_dirty"}


def test_real_iad_of_two_sizes_wants_one_named(tmp_path):
    root = real_iad(real_iad(tmp_path / "realiad"), size="realiad_256")
    with pytest.raises(InputError, match=r"several folders \(realiad_256, realiad_1024\)"):
        read(root)
    paths = {s.path.parts[-5] for s in read(root, variant="realiad_256") if s.label == 0}
    assert paths == {"realiad_256"}


@pytest.mark.parametrize(
    ("lists", "images"), [("realiad_d3_jsons", "realiad_d3_raw/"), ("splits", "")]
)
def test_real_iad_d3_and_variety_have_the_same_shape(tmp_path, lists, images):
    root = tmp_path / "d3"
    entries = [{"image_path": f"OK/{i}.png", "mask_path": None} for i in range(5)]
    bad = [{"image_path": "NG/0.png", "mask_path": "NG/0_mask.png"}]
    names = [f"{images}plug/OK/{i}.png" for i in range(5)] + [f"{images}plug/NG/0.png"]
    write_tree(root, names, marked=[f"{images}plug/NG/0_mask.png"])
    (root / lists).mkdir()
    content = {"train": entries[:4], "test": entries[4:] + bad}
    (root / lists / "plug.json").write_text(json.dumps(content))
    samples = read(root, "plug", layout="json")
    assert [(s.split, s.label) for s in samples] == [("train", 0)] * 4 + [("test", 0), ("test", 1)]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "not a list in JSON"),
        ("[]", "needs 'train' and 'test'"),
        ('{"train": [{}]}', "image 1 of 'train' names no image"),
        ('{"train": [{"image_path": "gone.jpg"}]}', "'gone.jpg' is in no folder"),
        ('{"other": []}', "empty or missing"),
    ],
)
def test_a_list_in_json_of_another_form_is_named(tmp_path, text, sentence):
    root = real_iad(tmp_path / "realiad")
    (root / "realiad_jsons" / "realiad_jsons" / "audiojack.json").write_text(text)
    with pytest.raises(InputError, match=sentence):
        read(root)


def test_kolektorsdd_is_anomalous_where_its_mask_marks_something(tmp_path):
    names, masks = [], []
    for item in range(1, 11):
        for part in range(8):
            names.append(f"kos{item:02}/Part{part}.jpg")
            mask = f"kos{item:02}/Part{part}_label.bmp"
            (masks if part == 5 and item <= 2 else names).append(mask)
    root = write_tree(tmp_path / "kolektorsdd", names, marked=masks)
    samples = read(root, layout="pairs")
    assert counts(samples)["test", "defect"] == 2
    assert Counter(s.label for s in samples) == {0: 78, 1: 2}
    sides = {(s.group, s.split) for s in samples if s.label == 0}
    assert len(sides) == 10, "the parts of an item stay together"


@pytest.mark.parametrize("part", [10, pytest.param(1, marks=pytest.mark.slow)])
def test_kolektorsdd2_has_a_split_and_defects_in_training(tmp_path, part):
    """A tenth of its images, and all of them with `-m slow`."""
    published = {"train": (2085 // part, 246 // part), "test": (894 // part, 110 // part)}
    names, masks = [], []
    for split, (good, bad) in published.items():
        for i in range(good + bad):
            names.append(f"{split}/{10000 + i}.png")
            (masks if i >= good else names).append(f"{split}/{10000 + i}_GT.png")
    root = write_tree(tmp_path / "kolektorsdd2", names, marked=masks)
    samples = read(root, layout="pairs")
    expected = {}
    for split, (good, bad) in published.items():
        expected |= {(split, "good"): good, (split, "defect"): bad}
    assert counts(samples) == expected
    assert all(len(s.mask_paths) == s.label for s in samples)
    (root / "train" / "10000_GT.png").unlink()
    with pytest.raises(InputError, match=rf"10000.png: 1 of {len(samples)} images have no mask"):
        read(root)


def test_dagm_is_defective_where_there_is_a_label(tmp_path):
    names = numbered("Class1/Train/{:04}.PNG", 575, first=576)
    names += numbered("Class1/Test/{:04}.PNG", 575, first=1)
    masks = numbered("Class1/Train/Label/{:04}_label.PNG", 79, first=576)
    masks += numbered("Class1/Test/Label/{:04}_label.PNG", 71, first=1)
    root = write_tree(tmp_path / "dagm", names, marked=masks)
    (root / "Class1" / "Train" / "Label" / "Labels.txt").write_text("x")
    samples = read(root, "Class1", layout="classes")
    assert counts(samples) == {
        ("train", "good"): 496,
        ("train", "defect"): 79,
        ("test", "good"): 504,
        ("test", "defect"): 71,
    }
    assert sorted(str(p.relative_to(root)) for s in samples for p in s.mask_paths) == sorted(masks)


def test_m2ad_splits_by_object_and_shares_a_mask_among_lights(tmp_path):
    names, masks = [], []
    for number in range(10):
        for view in (0, 1):
            names += numbered(f"Bird/Good/{number:03}/V{view:03}_L{{:02}}.png", 3)
    for view in (0, 1):
        names += numbered(f"Bird/NG/100/V{view:03}_L{{:02}}.png", 3)
        masks.append(f"Bird/GT/100/V{view:03}_mask.png")
    root = write_tree(tmp_path / "m2ad", names, marked=masks)
    samples = read(root, layout="m2ad")
    assert counts(samples) == {("train", "good"): 36, ("test", "good"): 24, ("test", "NG"): 6}
    assert all(len(s.mask_paths) == s.label for s in samples)
    assert len({p for s in samples for p in s.mask_paths}) == 2
    assert len({(s.part, s.split) for s in samples}) == 11
    assert dict(samples[0].columns).keys() == {"view", "light"}


@pytest.mark.parametrize("described", [True, False])
def test_robustad_groups_by_the_domain_of_the_test(tmp_path, described):
    root = tmp_path / "robustad"
    for folder, good, bad in (("train", 6, 1), ("test0", 2, 2), ("test5", 2, 2)):
        place = f"PCB/pcb_data_dir_{folder}"
        if not described:
            names = numbered(f"{place}/good/{{}}.png", good) + numbered(
                f"{place}/bad/{{}}.png", bad
            )
            write_tree(root, names, marked=numbered(f"{place}/masks/bad/{{}}.png", bad))
            continue
        write_tree(root, numbered(f"{place}/{{}}.png", good + bad))
        write_tree(root, [], marked=numbered(f"{place}/masks/{{}}.png", bad, first=good))
        rows = []
        for i in range(good + bad):
            mask = f"masks/{i}.png" if i >= good else None
            rows.append(
                json.dumps({"file_name": f"{i}.png", "label": int(i >= good), "mask": mask})
            )
        (root / place / "metadata.jsonl").write_text("\n".join(rows))

    samples = read(root, layout="robustad")
    assert Counter((s.split, s.group, s.label) for s in samples) == {
        ("train", "", 0): 6,
        ("train", "", 1): 1,
        ("test", "test0", 0): 2,
        ("test", "test0", 1): 2,
        ("test", "test5", 0): 2,
        ("test", "test5", 1): 2,
    }
    assert all(len(s.mask_paths) == s.label for s in samples)


def test_kaputt_is_read_from_its_tables(tmp_path):
    root = tmp_path / "kaputt"
    for split, defects in (("train", [0, 0, 0, 1]), ("validation", [0]), ("test", [0, 1])):
        rows = []
        for i, defect in enumerate(defects):
            folder = f"data/{split}/query-data"
            row = {"capture_id": f"{split}{i}", "item_identifier": f"item{i}"}
            row |= {"defect": bool(defect), "major_defect": False, "item_material": "paper"}
            row |= {"defect_types": "spillage,penetration" if defect else ""}
            for kind in ("image", "crop", "mask"):
                name = f"{folder}/{kind}/{split}{i}.{'png' if kind == 'mask' else 'jpg'}"
                row[f"query_{kind}"] = name
                write_tree(root / f"query-{kind}", [name])
            rows.append(row)
        (root / "datasets").mkdir(exist_ok=True)
        parquet.write_table(pa.Table.from_pylist(rows), root / f"datasets/query-{split}.parquet")

    samples = read(root, layout="kaputt")
    assert counts(samples) == {
        ("train", "good"): 3,
        ("train", "spillage,penetration"): 1,
        ("validation", "good"): 1,
        ("test", "good"): 1,
        ("test", "spillage,penetration"): 1,
    }
    assert not any(s.mask_paths for s in samples), "its masks show the parcel"
    assert {s.path.parent.name for s in samples} == {"crop"}
    assert {s.path.parent.name for s in read(root, variant="image")} == {"image"}
    assert (samples[0].group, dict(samples[0].columns)["item_material"]) == ("item0", "paper")


def test_eyecandies_is_read_under_one_light(tmp_path):
    names, masks = [], []
    for split, count in (("train", 10), ("val", 2), ("test_public", 4), ("test_private", 3)):
        for i in range(count):
            for light in range(6):
                names.append(f"CandyCane/{split}/data/{i:03}_image_{light}.png")
            names.append(f"CandyCane/{split}/data/{i:03}_depth.png")
            if split == "test_public":
                mask = f"CandyCane/{split}/data/{i:03}_mask.png"
                (masks if i % 2 else names).append(mask)
    root = write_tree(tmp_path / "eyecandies", names, marked=masks)
    samples = read(root, layout="eyecandies")
    assert counts(samples) == {
        ("train", "good"): 10,
        ("validation", "good"): 2,
        ("test", "good"): 2,
        ("test", "defect"): 2,
    }
    assert all(s.path.stem.endswith("_image_0") for s in samples)
    assert all(s.path.stem.endswith("_image_4") for s in read(root, variant="4"))
