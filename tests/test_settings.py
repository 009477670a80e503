from __future__ import annotations

import os
from pathlib import Path

import pytest

from adray.components.backbone import get_backbone_dir, get_backbone_path, set_backbone_dir
from adray.errors import InputError
from adray.settings import (
    DataOptions,
    Settings,
    absolute_settings,
    default_cache_dir,
    expand_path,
    get_globals,
    set_globals,
)


def test_set_globals_changes_what_is_named_and_keeps_the_rest(capsys):
    before = get_globals()
    set_globals(
        dataset_dir="/a", backbone_dir="/b", output_dir="/c", seed=1, num_workers=8, pin_memory=True,
        persistent_workers=True, show_globals=True,
    )  # fmt: skip
    now = get_globals()
    assert (now.dataset_dir, now.seed, now.num_workers) == ("/a", 1, 8)
    assert now.cache_dir == before.cache_dir
    assert "dataset_dir          /a" in capsys.readouterr().out


def test_an_unknown_setting_suggests_the_nearest():
    with pytest.raises(
        InputError, match=r"unknown setting 'datasets_dir'; did you mean 'dataset_dir'\?"
    ):
        set_globals(datasets_dir="x")


def test_the_backbone_folder_is_a_setting_and_a_missing_file_is_a_shopping_list(tmp_path):
    set_backbone_dir(tmp_path)
    assert get_backbone_dir() == str(tmp_path)
    with pytest.raises(InputError) as caught:
        get_backbone_path("resnet18")
    message = str(caught.value)
    for part in (
        "resnet18-f37072fd.pth",
        "45 MB",
        "sha256 f37072fd",
        str(tmp_path / "resnet18.pth"),
    ):
        assert part in message
    Path(tmp_path / "resnet18.pth").write_bytes(b"x")
    assert get_backbone_path("resnet18") == tmp_path / "resnet18.pth"


def test_a_path_is_written_with_variables_and_the_home_folder(monkeypatch):
    monkeypatch.setenv("STORE", "/data/line3")
    monkeypatch.setenv("HOME", "/home/kim")
    found = absolute_settings(Settings(output_dir="$STORE/out", dataset_dir="~/parts"))
    assert found.output_dir == "/data/line3/out"
    assert found.dataset_dir == "/home/kim/parts"
    assert set_globals(output_dir="${STORE}/x").output_dir == "/data/line3/x"


@pytest.mark.parametrize(
    "path",
    [
        "$NOT_SET_HERE/x",
        "a/${NOT_SET_HERE}",
        "~nobody_of_this_name/x",
        "$EMPTY/x",
        "${EMPTY}",
        "${NOT_SET_HERE:-/data}/x",
        "${NOT_CLOSED/x",
        "$(pwd)/x",
        "`pwd`/x",
    ],
)
def test_a_path_that_cannot_be_filled_in_is_refused(path, monkeypatch):
    monkeypatch.setenv("EMPTY", "")
    with pytest.raises(InputError, match="output_dir"):
        absolute_settings(Settings(output_dir=path))


def test_a_dollar_that_names_nothing_is_a_letter_as_in_the_name_of_a_share():
    assert expand_path("output_dir", "/mnt/share$/x") == "/mnt/share$/x"
    assert expand_path("output_dir", "/mnt/share$") == "/mnt/share$"


def test_a_user_without_a_home_has_a_cache_all_the_same(monkeypatch):
    """As in a container whose user has a number and no name."""

    def no_home(path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "expanduser", no_home)
    folder = Path(default_cache_dir())
    assert folder.is_absolute()
    assert folder.name == f"adray-cache-{os.getuid()}"


@pytest.mark.parametrize("name", ["data", "folders"])
@pytest.mark.parametrize("value", [{"parts": {"accept": ["x"]}}, ["parts"]])
def test_what_is_said_of_a_data_set_in_another_form_is_refused_where_it_enters(name, value):
    with pytest.raises(InputError, match=rf"set_globals: {name} is .*'parts'.* must map names"):
        set_globals(**{name: value})


def test_what_is_said_of_a_data_set_counts():
    set_globals(data={"parts": DataOptions(accept=("identical_pictures",))})
    assert get_globals().options_of("parts").accept == ("identical_pictures",)
