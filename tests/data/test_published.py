from __future__ import annotations

import re

import pytest

from adray.data.published import PUBLISHED, describe_published
from adray.data.readers import DATASETS
from adray.errors import InputError
from adray.language.catalogue import load_catalogue


@pytest.mark.parametrize("name", PUBLISHED)
def test_each_set_is_read_by_a_row(name):
    assert PUBLISHED[name].reader in DATASETS


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_description_says_where_how_large_and_how_it_looks(name):
    text = describe_published(name, load_catalogue("en"))
    about = PUBLISHED[name]
    for fact in (about.title, about.source, about.licence, about.size, about.metrics):
        assert fact in text
    assert all(f"    {line}" in text for line in about.tree.splitlines())


def test_an_unknown_name_gives_the_nearest():
    with pytest.raises(
        InputError, match="'mvtec_ad2' is not a published one; did you mean 'mvtec_ad_2'"
    ):
        describe_published("mvtec_ad2", load_catalogue("en"))


def test_a_description_is_in_korean_but_for_names():
    say = load_catalogue("ko")
    for name in PUBLISHED:
        text = describe_published(name, say)
        described = text.partition("\n")[2].partition("dataset_dir/")[0]
        for line in described.splitlines():
            assert not re.search(r"\b(the|of|are|is|images|with|and)\b", line), line
