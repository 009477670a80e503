"""Names of files and folders: which sort first, are alike, and tell what is in them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path


def _words(text: str) -> frozenset[str]:
    """Make a set of the words in a text."""
    return frozenset(text.split())


METADATA_SUFFIXES = _words(
    ".csv .tsv .xlsx .xls .parquet .json .jsonl .yaml .yml .xml .txt .md .rst .pdf .html"
)
"""File endings of tables and texts, in lower case."""

NORMAL_WORDS = _words("good ok okay normal normals 정상 양품 합격 良品 正常 合格 gut")
"""Names of folders of normal images, in lower case."""

IMAGE_FOLDER_WORDS = _words("img imgs image images rgb data")
"""Names of folders that say no more than that images are in them, in lower case."""

MASK_WORDS = _words(
    "mask masks ground_truth groundtruth ground-truth gt label labels annotation annotations "
    "annotated segmentation segmentations 마스크 라벨 정답 掩码 マスク"
)
"""Names of folders of masks, in lower case."""

DEFECT_WORDS = _words(
    "bad ng nok ungood ko nio defect defects defective anomaly anomalies anomalous abnormal "
    "abnormality abnormalities reject rejects rejected fail fails failed failure faulty fault "
    "faults broken break crack cracks cracked scratch scratches scratched dent dents dented hole "
    "holes stain stains stained damage damaged contamination contaminated burr rust rusty "
    "corrosion corroded bent missing deformed deformation flaw flaws torn leak leaks mask masks "
    "gt fehler defekt ausschuss kratzer riss"
)
"""Words in the names of folders of defects, in lower case."""

_DEFECT_SIGNS = _words(
    "불량 결함 이상 비정상 불합격 부적합 파손 스크래치 찍힘 긁힘 흠집 오염 크랙 균열 이물 변색 깨짐 들뜸 "
    "기포 미성형 얼룩 변형 不良 欠陥 異常 异常 缺陷 不合格 异物 異物 划痕 裂纹 キズ 汚れ"
)
_NORMAL_SIGNS = _words("양품 정상 합격 良品 正常 合格")
_NEGATIONS = _words("no non not free without ohne")
_NEGATION_SIGNS = _words("없음 이상무 무결함 무불량 無し なし 無欠陥 無不良 无缺陷 无异常")
_PASSED_WORDS = _words("pass passed io")
_SYSTEM_NAMES = frozenset(
    {
        "#recycle",
        "#snapshot",
        "$recycle.bin",
        "recycler",
        "recycled",
        "~snapshot",
        "_gsdata_",
        "__pycache__",
        "lost+found",
        "found.000",
        "system volume information",
        "network trash folder",
        "temporary items",
        "thumbs.db",
        "ehthumbs.db",
        "ehthumbs_vista.db",
        "desktop.ini",
        "icon\r",
    }
)
_SYSTEM_STARTS = (".", "__macosx", "@", "~$")
_TEXT_NAMES = _words("license licence readme copying")


def natural_key(name: str) -> tuple[list[str | int], str]:
    """Make a sort key under which ``img2`` comes before ``img10``.

    Composed and decomposed accents sort alike.
    """
    composed = unicodedata.normalize("NFC", name)

    # A split at a captured group gives text and digits in turn: odd places hold the digits.
    parts: list[str | int] = list(re.split("([0-9]+)", composed.casefold()))
    parts[1::2] = map(int, parts[1::2])
    return parts, composed


def same_name(name: str) -> str:
    """Write a name as all its spellings share it, whatever its capitals and accents are made of."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def is_normal_name(name: str) -> bool:
    """Tell whether a folder or label of this name holds normal images."""
    return same_name(name).strip() in NORMAL_WORDS


def is_mask_name(name: str) -> bool:
    """Tell whether a folder of this name holds masks."""
    return same_name(name).strip() in MASK_WORDS


def looks_defective(name: str, known_defects: Iterable[str] = ()) -> bool:
    """Tell whether a folder of this name sounds like one of defects or masks.

    Args:
        name: of the folder.
        known_defects: names of folders of the same data set that hold defects.
    """
    plain = same_name(name)
    if is_mask_name(plain) or plain in map(same_name, known_defects):
        return True

    words = _words_in(plain)
    says_normal = not words.isdisjoint(NORMAL_WORDS)
    says_defect = _says_defect(plain, words)

    # "defect_free" and "이상없음" are normal, "not_ok" is not.
    if _is_negated(plain, words):
        return says_normal and not says_defect
    return says_defect


def sounds_normal(name: str) -> bool:
    """Tell whether a folder of this name sounds like one of normal images, such as ``01_OK``."""
    plain = same_name(name)
    if looks_defective(plain):
        return False
    words = _words_in(plain)
    if _is_negated(plain, words):
        return _says_defect(plain, words)
    says_passed = not words.isdisjoint(NORMAL_WORDS | _PASSED_WORDS)
    return says_passed or any(sign in plain for sign in _NORMAL_SIGNS)


def _words_in(plain: str) -> set[str]:
    """Take the words of a name apart. A change of script ends one, as in ``ok품``."""
    # Letters of Korean, Chinese and Japanese, or all others: no digits, no underscore.
    return set(re.findall(r"[가-힣一-鿿ぁ-ヿ]+|[^\W\d_가-힣一-鿿ぁ-ヿ]+", plain))


def _says_defect(plain: str, words: set[str]) -> bool:
    """Tell whether a name has a word or a sign for a defect."""
    return not words.isdisjoint(DEFECT_WORDS) or any(sign in plain for sign in _DEFECT_SIGNS)


def _is_negated(plain: str, words: set[str]) -> bool:
    """Tell whether a name says that something is not so."""
    return not words.isdisjoint(_NEGATIONS) or any(sign in plain for sign in _NEGATION_SIGNS)


def is_system_name(name: str) -> bool:
    """Tell whether an operating system, a file server or an archive left this file or folder."""
    plain = name.casefold()
    return plain.startswith(_SYSTEM_STARTS) or plain in _SYSTEM_NAMES


def is_metadata_name(name: str) -> bool:
    """Tell whether a file name is that of a table, a text or a licence."""
    path = Path(name)
    described = path.suffix.lower() in METADATA_SUFFIXES or path.stem.casefold() in _TEXT_NAMES
    return described and not is_system_name(name)
