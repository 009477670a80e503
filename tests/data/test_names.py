from __future__ import annotations

import unicodedata

import pytest

from adray.data.names import (
    is_normal_name,
    is_system_name,
    looks_defective,
    natural_key,
    same_name,
    sounds_normal,
)


def test_numbers_in_names_sort_by_value():
    names = ["img10.png", "img2.png", "Img1.png", "a", "10", "9", "img02.png"]
    ordered = sorted(names, key=natural_key)
    assert ordered == ["9", "10", "a", "Img1.png", "img02.png", "img2.png", "img10.png"]


@pytest.mark.parametrize(
    "name", ["good", "Good", "OK", "정상", unicodedata.normalize("NFD", "양품")]
)
def test_words_for_good_are_known_in_every_spelling(name):
    assert is_normal_name(name)
    assert not looks_defective(name)


@pytest.mark.parametrize(
    "name",
    ["NG", "bad", "ng_2", "no good", "not_ok", "Scratches", "broken-large", "불량품", "표면결함", "不良",
     "欠陥", "mask", "ground_truth", "GT", "label", "abnormal", "rejects 2024", "Ungood",
     "NG품", "비정상", "불합격", "찍힘", "이물_2", "不合格",
     unicodedata.normalize("NFD", "불량")],
)  # fmt: skip
def test_names_of_defects_and_masks_sound_so(name):
    assert looks_defective(name)


@pytest.mark.parametrize(
    "name", ["batch1", "morning", "monday", "cam_2", "line 3", "no_defect", "defect_free", "이상없음",
             "background", "2024-08-01", "good_2", "normal", "kobold", "angle", "OK품", "無欠陥",
             "Prüfung", "Kühlung"],
)  # fmt: skip
def test_names_of_lots_days_and_good_images_do_not(name):
    assert not looks_defective(name)


@pytest.mark.parametrize(
    "name",
    ["01_OK", "OK품", "good_parts", "양품 이미지", "defect_free", "無欠陥", "이상없음", "pass"],
)
def test_names_that_sites_give_to_good_images_sound_so(name):
    assert sounds_normal(name)


@pytest.mark.parametrize(
    "name", ["NG품", "비정상", "불합격", "not_ok", "mask", "ok_mask", "lot 3", "fail"]
)
def test_other_names_do_not_sound_good(name):
    assert not sounds_normal(name)


def test_names_of_the_set_s_own_defects_sound_bad():
    assert looks_defective("Groove", ["groove"])


@pytest.mark.parametrize(
    "name",
    ["@eaDir", "#recycle", "$RECYCLE.BIN", "lost+found", ".DS_Store", "Thumbs.db", "._x.png",
     "__MACOSX", "__macosx", "System Volume Information", "desktop.ini", "#snapshot", "~snapshot",
     "__pycache__", "found.000", "~$list.xlsx"],
)  # fmt: skip
def test_what_systems_leave_is_known(name):
    assert is_system_name(name)


def test_spellings_of_a_name_are_one():
    assert same_name("Prüfling") == same_name(unicodedata.normalize("NFD", "PRÜFLING"))
