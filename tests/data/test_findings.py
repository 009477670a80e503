from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fake_datasets import draw, save, write_btad, write_folder, write_mvtec, write_visa
from PIL import Image

from adray.data.accounting import account_dataset
from adray.data.examine import examine
from adray.data.findings import STOPS, Finding
from adray.data.inspect_files import inspect_samples
from adray.data.readers import list_samples
from adray.errors import InputError
from adray.settings import DataOptions, FolderLayout, Settings, get_globals


def findings(settings: Settings | None = None, category: str = "all") -> list[Finding]:
    """What is found in the data set `parts`."""
    settings = settings or get_globals()
    samples = list_samples("parts", category, settings)
    facts = inspect_samples(samples, settings.cache_dir, settings.data)
    return examine(samples, {"parts": account_dataset("parts", settings)}, settings, facts)


def stops(settings: Settings | None = None, category: str = "all") -> dict[str, str]:
    """Kind to sentence of what stops."""
    return {f.kind: f.sentence for f in findings(settings, category) if f.stops}


def remarks() -> str:
    """All remarks as one text."""
    return "\n".join(f.sentence for f in findings() if not f.stops)


@pytest.fixture
def disc(tmp_path) -> Path:
    """The one category of a data set of MVTec AD's shape."""
    root = write_mvtec(
        tmp_path / "datasets" / "parts", categories=("disc",), train=12, good=6, defects=8
    )
    return root / "disc"


# ---- what is in order ----


@pytest.mark.parametrize("write", [write_mvtec, write_btad, write_visa])
def test_data_in_order_stop_nothing_and_leave_nothing_out(tmp_path, write):
    write(tmp_path / "datasets" / "parts", train=12)
    assert findings() == []


def test_a_plain_folder_in_order_stops_nothing(tmp_path):
    write_folder(tmp_path / "datasets" / "parts", normal=20)
    layout = FolderLayout("parts", ("ok",), ("ng",), "masks")
    assert findings(replace(get_globals(), folders={"parts": layout})) == []


@pytest.mark.parametrize(("dataset", "category"), [("mvtec", "all")])
def test_real_images_stop_nothing(shared, tmp_path, dataset, category):
    settings = replace(get_globals(), dataset_dir=str(shared / "datasets"))
    samples = list_samples(dataset, category, settings)
    facts = inspect_samples(samples, settings.cache_dir, settings.data)
    accounts = {dataset: account_dataset(dataset, settings)}
    found = examine(samples, accounts, settings, facts)
    assert [finding for finding in found if finding.stops] == []


def test_a_product_may_be_called_like_a_defect(tmp_path):
    write_mvtec(tmp_path / "datasets" / "parts", categories=("crack", "mask"), train=12)
    assert findings() == []


# ---- pictures ----


@pytest.mark.parametrize(
    ("source", "copy"),
    [
        ("train/good/000.png", "test/good/copy.png"),
        ("test/hole/000.png", "train/good/copy.png"),
        ("test/hole/000.png", "test/good/copy.png"),
    ],
)
def test_the_same_bytes_in_training_and_test_or_under_two_labels_stop(disc, source, copy):
    shutil.copy(disc / source, disc / copy)
    sentence = stops()["identical_pictures"]
    assert f"disc/{source}" in sentence
    assert f"disc/{copy}" in sentence
    assert "settings.data.parts.accept: [identical_pictures]" in sentence


def test_the_same_pixels_in_another_file_format_stop(disc):
    with Image.open(disc / "train/good/000.png") as image:
        image.save(disc / "test/good/copy.bmp")
    assert "disc/test/good/copy.bmp" in stops()["identical_pictures"]


def test_bright_deep_images_are_not_taken_for_the_same(tmp_path):
    home = tmp_path / "datasets" / "parts" / "disc"
    for number, name in enumerate(("train/good/0.png", "train/good/1.png", "test/good/0.png")):
        path = home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        levels = np.full((16, 16), 30000 + number, np.uint16)
        Image.fromarray(levels).save(path)
    assert "identical_pictures" not in stops()


def test_the_same_bytes_twice_in_one_split_are_a_remark(disc):
    shutil.copy(disc / "train/good/000.png", disc / "train/good/copy.png")
    assert not stops()
    assert "disc/train/good/copy.png" in remarks()


def test_copies_across_merged_categories_stop_and_within_each_of_them_do_not(tmp_path):
    root = write_mvtec(tmp_path / "datasets" / "parts", train=12)
    shutil.copy(root / "bottle/train/good/000.png", root / "wood/test/good/copy.png")
    assert "identical_pictures" in stops()
    assert not stops(category="wood")


def test_a_mask_of_two_images_stops(disc):
    image, _ = draw(99, defect=True)
    image.save(disc / "test/hole/000.jpg")
    sentence = stops()["shared_mask"]
    assert "000_mask.png" in sentence
    assert "disc/test/hole/000.jpg" in sentence


# ---- folders ----


@pytest.mark.parametrize("name", ["scratch", "NG", "masks", "불량"])
def test_a_folder_of_defects_inside_that_of_the_normals_stops(disc, name):
    save(disc / "train/good" / name / "000.png", 1)
    assert f"disc/train/good/{name}" in stops()["defects_below_normals"]


@pytest.mark.parametrize("name", ["good2", "OK_line3", "defect_free", "양품 2차"])
def test_a_kind_of_defect_that_sounds_like_normal_images_stops(disc, name):
    save(disc / "test" / name / "000.png", 1)
    assert f"disc/test/{name}/000.png" in stops()["normals_below_defects"]


def test_masks_beside_the_normal_images_stop(disc):
    Image.new("L", (64, 64)).save(disc / "train/good/000_mask.png")
    assert "000_mask.png" in stops()["defects_below_normals"]


def test_an_unnamed_folder_of_defects_below_the_normals_at_the_top_stops(tmp_path):
    root = tmp_path / "datasets" / "parts"
    for number in range(12):
        save(root / f"{number}.png", number)
    save(root / "scratch" / "0.png", 99, defect=True)
    settings = replace(get_globals(), folders={"parts": FolderLayout("parts", (".",))})
    assert "scratch" in stops(settings)["defects_below_normals"]


def test_folders_that_differ_in_capitals_stop(disc):
    save(disc / "test/Hole/000.png", 50, defect=True)
    assert "Hole, hole" in stops()["names_differ_in_case"]


@pytest.mark.parametrize("twin", ["Disc", "DISC"])
def test_categories_that_differ_in_spelling_only_stop_each_of_them(disc, twin):
    """One of them alone may be half of the product."""
    shutil.copytree(disc, disc.with_name(twin))
    for category in ("disc", twin, "all"):
        assert "disc" in stops(category=category)["names_differ_in_case"]
    only = replace(get_globals(), data={"parts": DataOptions(accept=("names_differ_in_case",))})
    assert "names_differ_in_case" not in stops(only, "disc")


def test_a_second_folder_of_masks_in_other_capitals_stops(disc):
    """Nothing of it is read: a file of the same place is there already."""
    shutil.copytree(disc / "ground_truth", disc / "Ground_Truth")
    assert "Ground_Truth, ground_truth" in stops()["names_differ_in_case"]


def test_both_spellings_of_good_stop(disc):
    save(disc / "test/Good/100.png", 50)
    assert "names_differ_in_case" in stops()


def test_pictures_beside_the_folder_of_training_normals_stop(disc):
    save(disc / "train/extra/000.png", 50)
    assert "disc/train/extra" in stops()["unread_folders"]


@pytest.mark.parametrize("split", ["train", "test"])
def test_pictures_that_lie_loose_in_a_split_stop(disc, split):
    save(disc / split / "000.png", 50)
    assert f"1 in disc/{split};" in stops()["unread_folders"]


def test_normals_that_are_called_as_defects_stop_unless_most_are(disc):
    for number in range(4):
        path = disc / f"train/good/{number:03d}.png"
        path.rename(path.with_name(f"NG_{number}.png"))
    assert "NG_0.png" in stops()["defects_below_normals"]
    for path in [*disc.glob("train/good/*"), *disc.glob("test/good/*")]:
        path.rename(path.with_name(f"crack_{path.name}"))
    assert not stops()


def test_what_a_file_server_leaves_in_any_capitals_is_no_picture(disc):
    for name in ("__MACOSX", "#snapshot", "~snapshot", "__pycache__", "Found.000"):
        save(disc / "train/good" / name / "000.png", 50)
        save(disc / "test" / name / "000.png", 51)
    assert not stops()
    assert "left by a file server or desktop" in remarks()


def test_another_folder_of_the_category_is_a_remark(disc):
    save(disc / "overview/000.png", 50)
    assert not stops()
    assert "disc/overview/000.png" in remarks()


def test_what_lies_in_another_category_concerns_only_that(tmp_path):
    root = write_mvtec(tmp_path / "datasets" / "parts", train=12)
    save(root / "wood/train/good/scratch/000.png", 1)
    assert not stops(category="bottle")
    assert "defects_below_normals" in stops(category="wood")


# ---- masks ----


@pytest.mark.parametrize("name", ["mask_{}.png", "{}_overlay.png"])
def test_masks_of_which_none_fits_stop(disc, name):
    for path in (disc / "ground_truth/hole").iterdir():
        path.rename(path.with_name(name.format(path.stem.removesuffix("_mask"))))
    assert "disc/ground_truth/hole" in stops()["masks_do_not_match"]


def test_a_mask_too_many_is_a_remark(disc):
    Image.new("L", (64, 64), 255).save(disc / "ground_truth/hole/999_mask.png")
    assert not stops()
    assert "999_mask.png" in remarks()


def test_masks_that_a_described_folder_does_not_name_stop_nothing(tmp_path):
    write_folder(tmp_path / "datasets" / "parts", normal=20)
    layout = FolderLayout("parts", ("ok",), ("ng",))
    assert not stops(replace(get_globals(), folders={"parts": layout}))


def test_inverted_masks_stop_and_one_of_several_is_a_remark(disc):
    masks = sorted((disc / "ground_truth").rglob("*.png"))
    invert(masks[0])
    assert not stops()
    assert "1 of 8 masks" in remarks()
    for path in masks[1:]:
        invert(path)
    assert "all 8, with 9" in stops()["masks_cover_most"]


def invert(path: Path) -> None:
    """Turn black into white and white into black."""
    with Image.open(path) as mask:
        Image.fromarray(255 - np.asarray(mask)).save(path)


# ---- what the files tell ----


def save_as(path: Path, ending: str, **options) -> None:
    """Write an image in another way, in the place of the first."""
    with Image.open(path) as image:
        image.load()
    path.unlink()
    image.save(path.with_suffix(ending), **options)


def test_normals_as_jpeg_and_defects_as_png_stop(disc):
    for path in [*disc.glob("train/good/*"), *disc.glob("test/good/*")]:
        save_as(path, ".jpg")
    sentence = stops()["file_tells_label"]
    assert "format" in sentence
    assert "JPEG" in sentence


def test_defects_of_another_compression_stop(disc):
    for path in disc.glob("t*/*/*"):
        save_as(path, ".jpg", quality=95 if "good" in path.parts else 30)
    assert "compression" in stops()["file_tells_label"]


def test_defects_of_lossy_files_among_lossless_ones_stop(disc):
    for path in disc.glob("t*/*/*"):
        good = "good" in path.parts
        save_as(path, ".webp", lossless=good, quality=60)
    assert "compression" in stops()["file_tells_label"]


def test_defects_of_another_mode_stop(disc):
    shutil.rmtree(disc / "ground_truth")
    for path in [*disc.glob("test/hole/*"), *disc.glob("test/scratch/*")]:
        with Image.open(path) as image:
            image.convert("L").save(path)
    assert "mode" in stops()["file_tells_label"]


def test_defects_of_another_size_stop(disc):
    shutil.rmtree(disc / "ground_truth")
    resize_defects(disc, lambda number: 48)
    assert "48x48" in stops()["file_tells_label"]


def test_defects_that_are_all_smaller_stop_though_each_has_its_own_size(disc):
    shutil.rmtree(disc / "ground_truth")
    resize_defects(disc, lambda number: 40 + number)
    assert "size" in stops()["file_tells_label"]


def test_sizes_of_which_each_is_seen_once_on_both_sides_tell_nothing(disc):
    shutil.rmtree(disc / "ground_truth")
    resize_defects(disc, lambda number: 50 + 4 * number)
    for number, path in enumerate(sorted(disc.glob("test/good/*"))):
        with Image.open(path) as image:
            image.resize((52 + 4 * number,) * 2).save(path)
    assert "file_tells_label" not in stops()


def resize_defects(disc: Path, side) -> None:
    """Give each defective test image its own size."""
    paths = sorted([*disc.glob("test/hole/*"), *disc.glob("test/scratch/*")])
    for number, path in enumerate(paths):
        with Image.open(path) as image:
            image.resize((side(number),) * 2).save(path)


def test_a_format_that_all_test_images_share_tells_nothing_but_is_said(disc):
    for path in disc.glob("train/good/*"):
        save_as(path, ".jpg")
    assert not stops()
    assert "training images have another format (JPEG)" in remarks()


# ---- accepting, counting ----


def test_what_is_accepted_is_said_and_does_not_stop(disc):
    shutil.copy(disc / "train/good/000.png", disc / "test/good/copy.png")
    options = DataOptions(accept=("identical_pictures",))
    found = findings(replace(get_globals(), data={"parts": options}))
    assert [finding.kind for finding in found] == ["identical_pictures"]
    assert not found[0].stops
    assert "accepted" in found[0].sentence


def test_a_kind_that_does_not_exist_is_refused_with_the_nearest(disc):
    options = DataOptions(accept=("identical_picture",))
    with pytest.raises(InputError, match="identical_pictures"):
        findings(replace(get_globals(), data={"parts": options}))


def test_what_a_reader_asks_to_accept_may_be_accepted(disc):
    options = DataOptions(accept=("missing_masks",))
    assert findings(replace(get_globals(), data={"parts": options})) == findings(get_globals())


def test_files_that_are_left_out_are_counted_by_reason_with_an_example(disc):
    for name in ("a.heic", "b.heic", "Thumbs.db", "c.zip"):
        (disc / "train/good" / name).write_bytes(b"x")
    assert not stops()
    text = remarks()
    assert "files left out: 4" in text
    assert (
        "2 an image by an ending that is not read (.heic), such as disc/train/good/a.heic" in text
    )


def test_a_name_that_is_not_utf_8_can_be_printed(disc):
    (disc / "train/good" / "teil_\udce4.zip").write_bytes(b"x")
    assert "teil_" in remarks()
    remarks().encode("utf-8")


def test_few_normals_and_missing_masks_are_said(tmp_path):
    write_mvtec(
        tmp_path / "datasets" / "parts", categories=("disc",), train=4, defects=4, masks=False
    )
    assert "normal training images: 4, so few" in remarks()
    assert "4 of 4 defective test images have no mask" in remarks()


def test_defects_alone_are_said(disc):
    shutil.rmtree(disc / "test/good")
    assert not stops()
    assert "no normal test images: AUROC" in remarks()


def test_every_kind_that_stops_has_a_meaning():
    assert all(STOPS.values())
