"""What a folder is taken for that nobody has described."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from fake_datasets import save, write_btad, write_mvtec

from adray.data.readers import list_samples
from adray.data.recognise import recognise
from adray.errors import InputError
from adray.settings import DEFAULT_OPTIONS, get_globals


def look(path):
    return recognise(str(path), get_globals(), DEFAULT_OPTIONS)


def fill(folder, count=6, seed=0, **more):
    for i in range(count):
        save(folder / f"{i}.png", seed + i, 32, **more)


def read(found):
    """The samples of the first data set, read as a sweep would with what was recognised."""
    dataset = found.datasets[0]
    folders = {} if dataset.folder is None else {dataset.name: dataset.folder}
    settings = replace(get_globals(), dataset_dir=str(found.dataset_dir), folders=folders)
    return list_samples(dataset.name, "all", settings)


@pytest.mark.parametrize(("write", "layout"), [(write_mvtec, "mvtec"), (write_btad, "btad")])
def test_a_known_layout_is_recognised_under_any_name(write, layout, tmp_path):
    found = look(write(tmp_path / "anything"))
    assert found.why == "layout"
    assert [dataset.layout for dataset in found.datasets] == [layout]


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        *(("OK", "NG"), ("good", "dent"), ("양품", "불량"), ("정상", "결함"), ("pass", "fail")),
        *(("01_OK", "02_NG"), ("OK품", "NG품"), ("defect_free", "defect"), ("合格", "不合格")),
    ],
)
def test_folders_are_told_by_the_names_that_sites_give_them(good, bad, tmp_path):
    fill(tmp_path / "line" / good)
    fill(tmp_path / "line" / bad, seed=50)
    found = look(tmp_path / "line")
    (dataset,) = found.datasets
    assert found.why == "names"
    assert (dataset.folder.normal, dataset.folder.abnormal) == ((good,), (bad,))
    labels = {sample.path.parent.name: sample.label for sample in read(found)}
    assert labels == {good: 0, bad: 1}


@pytest.mark.parametrize("masks", ["masks", "Annotated"])
def test_a_folder_of_masks_is_no_defect(tmp_path, masks):
    fill(tmp_path / "line" / "ok")
    for i in range(3):
        mask = tmp_path / "line" / masks / f"{i}.png"
        save(tmp_path / "line" / "ng" / f"{i}.png", i, 32, defect=True, mask_path=mask)
    found = look(tmp_path / "line")
    assert found.datasets[0].folder.mask == masks
    assert found.datasets[0].folder.abnormal == ("ng",)
    assert sum(sample.has_mask for sample in read(found)) == 3


def test_each_folder_of_good_and_bad_is_a_part(tmp_path):
    for part in ("front", "back"):
        fill(tmp_path / "line" / part / "OK")
        fill(tmp_path / "line" / part / "NG", 2, seed=50)
    found = look(tmp_path / "line")
    assert found.why == "parts"
    assert {dataset.name for dataset in found.datasets} == {"front", "back"}
    assert len(read(found)) == 8


def test_images_without_folders_are_normals(tmp_path):
    fill(tmp_path / "line")
    found = look(tmp_path / "line")
    assert found.why == "flat"
    assert {sample.label for sample in read(found)} == {0}


@pytest.mark.parametrize(
    ("folders", "sentence"),
    [
        (["left", "right"], "no folder in it is called good, ok, normal or 양품"),
        ([], "holds no images; copy normal images there"),
        (["NG", "fail"], r"has defective images alone \(fail, NG\)"),
        (["bad_2", "left"], r"normal: \[left\]"),
    ],
)
def test_what_cannot_be_told_is_refused_with_a_sentence(folders, sentence, tmp_path):
    (tmp_path / "line").mkdir()
    for folder in folders:
        fill(tmp_path / "line" / folder)
    with pytest.raises(InputError, match=sentence):
        look(tmp_path / "line")


def test_a_folder_that_is_not_there_and_a_file_are_refused(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        look(tmp_path / "none")
    (tmp_path / "file.png").write_bytes(b"")
    with pytest.raises(InputError, match="is a file"):
        look(tmp_path / "file.png")


def test_a_name_means_the_data_set_in_dataset_dir():
    root = write_mvtec(Path(get_globals().dataset_dir) / "parts")
    assert look("parts").root == root.resolve()
