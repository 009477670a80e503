"""Where things lie on this machine: the settings of a process, and `set_globals`.

A sweep's workers never see the driver's settings: these travel inside each trial and are set there
anew.
"""

from __future__ import annotations

import math
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from adray.errors import InputError
from adray.language.sentence import Sentence, nearest_of

PIXEL_RANGES = ("auto", "dtype")
CHANNELS = ("rgb", "gray")
MASK_FITS = ("refuse", "resize")
FITS = ("squeeze", "pad", "crop")


@dataclass(frozen=True)
class FolderLayout:
    """A plain folder of images: which directories hold what, all relative to `path`."""

    path: str
    """Folder of the data set; a relative one counts from `dataset_dir`."""
    normal: tuple[str, ...] = ("normal",)
    """Directories with normal images; without `normal_test` they are split 80/20 by seed."""
    abnormal: tuple[str, ...] = ()
    """Directories with defective images; the directory's name becomes the defect type."""
    mask: str | None = None
    """Directory with one mask per defective image, same stem, in a sub-directory per defect type or
    flat."""
    normal_test: tuple[str, ...] = ()
    """Directories with normal images for the test, when the split is made already."""


@dataclass(frozen=True)
class DataOptions:
    """What is said of one data set, where the program shall not find it out by itself."""

    layout: str = ""
    """Row of `adray.data.readers.DATASETS`; empty for the one that the folder's shape tells."""
    list: str = ""
    """Table of the images, counted from the data set's folder; empty where folders say what they
    are."""
    variant: str = ""
    """Which of a published set's own lists, such as ``sv`` or ``fuiad_0.1`` of Real-IAD; empty for
    the usual one."""
    range: str | tuple[float, ...] = "auto"
    """``auto``, ``dtype``, or [low, high]: the values of deep images that become black and white.
    ``auto`` takes what the files declare, else what the training normals hold."""
    channels: str | tuple[int, int, int] = "rgb"
    """``rgb``, ``gray``, or three positions [0, 2, 1] of an image's channels that become red, green
    and blue."""
    mask_threshold: float | None = None
    """Mask values above it are a defect; None to tell by each mask's grey levels."""
    mask_fit: Literal["refuse", "resize"] = "refuse"
    """What happens to a mask of another size than its image."""
    roi: Any = None
    """The part of images that counts: [left, top, right, bottom], a list of corners [x, y], in pixels
    or in parts of the sides from 0 to 1, or a picture that is black where nothing counts, counted
    from `dataset_dir`. ``auto`` takes where training normals show the product before an even
    background. A mapping says it by category."""
    drop: str | tuple[str, ...] = ()
    """Normal images that are left out: their paths from the data set's folder, or a table or text
    file of them, counted from there; `python -m adray outliers` lists candidates. A name that fits no
    image is refused."""
    group: str = ""
    """Regular expression whose first bracket, found in an image's path, is its group; empty for the
    layout's own."""
    accept: tuple[str, ...] = ()
    """Kinds of findings that shall not stop a sweep, as `python -m adray data` names them."""

    def __post_init__(self) -> None:
        """Check what is said of pixels and masks."""
        _check_pixel_range(self.range)
        _check_channels(self.channels)
        _check_mask_options(self.mask_threshold, self.mask_fit)
        _check_roi(self.roi)
        _check_drop(self.drop)


def _check_pixel_range(value: object) -> None:
    """Refuse what is no range of pixels.

    Raises:
        InputError: for anything but ``auto``, ``dtype`` and two finite numbers that rise.
    """
    if isinstance(value, str):
        if value not in PIXEL_RANGES:
            remedy = nearest_of(value, PIXEL_RANGES)
            raise InputError(Sentence.of("settings range word", value=repr(value), remedy=remedy))
        return

    numbers = tuple(value) if isinstance(value, tuple | list) else ()
    is_finite = all(_is_number(number) and math.isfinite(number) for number in numbers)
    if len(numbers) != 2 or not is_finite or numbers[0] >= numbers[1]:
        raise InputError(Sentence.of("settings range", value=repr(value)))


def _check_channels(value: object) -> None:
    """Refuse what chooses no channels.

    Raises:
        InputError: for anything but ``rgb``, ``gray`` and three positions.
    """
    if isinstance(value, str):
        if value not in CHANNELS:
            remedy = nearest_of(value, CHANNELS)
            raise InputError(
                Sentence.of("settings channels word", value=repr(value), remedy=remedy)
            )
        return

    positions = tuple(value) if isinstance(value, tuple | list) else ()
    are_whole = all(type(place) is int and place >= 0 for place in positions)
    if len(positions) != 3 or not are_whole:
        raise InputError(Sentence.of("settings channels", value=repr(value)))


def _check_mask_options(threshold: object, fit: object) -> None:
    """Refuse what says nothing of masks.

    Raises:
        InputError: for a threshold that is no finite number from 0 on, and an unknown fit.
    """
    is_threshold = _is_number(threshold) and math.isfinite(threshold) and threshold >= 0  # type: ignore[arg-type, operator]
    if threshold is not None and not is_threshold:
        raise InputError(Sentence.of("settings mask_threshold", threshold=repr(threshold)))
    if fit not in MASK_FITS:
        raise InputError(
            Sentence.of("settings mask_fit", fit=repr(fit), nearest=nearest_of(fit, MASK_FITS))
        )


def _check_drop(value: object) -> None:
    """Refuse what names no images.

    Raises:
        InputError: for anything but a file's name and a list of names.
    """
    is_list = isinstance(value, tuple | list) and all(isinstance(name, str) for name in value)
    if not isinstance(value, str) and not is_list:
        raise InputError(Sentence.of("settings drop", value=repr(value)))


def roi_of_category(said: Any, category: str) -> Any:
    """Give what is said of the region of one category, None where nothing is."""
    return said.get(category) if isinstance(said, Mapping) else said


def _check_roi(value: object) -> None:
    """Refuse what says no region of interest.

    Raises:
        InputError: for anything but a picture, four numbers, three corners or more, and a mapping
            of categories to these.
    """
    if value is None:
        return
    if isinstance(value, Mapping):
        for name, said in value.items():
            if not isinstance(name, str):
                raise InputError(Sentence.of("settings roi category", name=repr(name)))
            if isinstance(said, Mapping):
                raise InputError(Sentence.of("settings roi one", name=repr(name), said=repr(said)))
            _check_roi(said)
        return
    if isinstance(value, str) and value:
        return

    items = value if isinstance(value, list | tuple) else ()
    is_rectangle = len(items) == 4 and all(map(_is_place, items))
    are_corners = [isinstance(item, list | tuple) and len(item) == 2 for item in items]
    is_polygon = len(items) >= 3 and all(are_corners)
    if is_polygon:
        is_polygon = all(_is_place(place) for corner in items for place in corner)
    if is_rectangle and not (items[0] < items[2] and items[1] < items[3]):
        is_rectangle = False
    if not (is_rectangle or is_polygon):
        raise InputError(Sentence.of("settings roi", value=repr(value)))


def _is_place(value: object) -> bool:
    """Tell whether a value can be a place on an image."""
    return _is_number(value) and math.isfinite(value) and value >= 0  # type: ignore[arg-type, operator]


def _is_number(value: object) -> bool:
    """Tell whether a value is a number, which true and false are not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


DEFAULT_OPTIONS = DataOptions()


def default_cache_dir() -> str:
    """Give the user's cache folder: ``$XDG_CACHE_HOME/adray`` or ``~/.cache/adray``.

    A user without a home, as in a container, has one in the folder for temporary files.
    """
    given = os.environ.get("XDG_CACHE_HOME")
    if given:
        return str(Path(given) / "adray")
    try:
        return str(Path("~/.cache/adray").expanduser())
    except RuntimeError:
        return str(Path(tempfile.gettempdir()) / f"adray-cache-{os.getuid()}")


@dataclass(frozen=True)
class Settings:
    """Paths and limits of this process."""

    dataset_dir: str = "datasets"
    """Folder that holds the data sets (`mvtec/`, `visa/`, `btad/`, `custom/<name>/`, ...)."""
    backbone_dir: str = "backbones"
    """Folder that holds the pretrained weights."""
    output_dir: str = "outputs"
    """Folder of results; on a cluster one that every node reaches."""
    cache_dir: str = field(default_factory=default_cache_dir)
    """Node-local folder of decoded images, and of features that trials share; safe to delete."""
    cache_gb: float = 50.0
    """Size limit of the decoded images in `cache_dir` in GB; the least recently used files go
    first."""
    shared_feature_gb: float = 20.0
    """Size limit of the features and coresets in `cache_dir` that trials share, in GB; 0 shares
    none."""
    seed: int = 42
    """Seed of `train()` and of splits; a sweep names its own."""
    num_workers: int = 4
    """Loader processes, used only when a data set is too large to keep on the device."""
    pin_memory: bool = True
    """Page-lock streamed batches for faster copies to a GPU."""
    persistent_workers: bool = True
    """Keep loader processes between epochs."""
    resident_gb: float = 4.0
    """Up to this size a data set's uint8 images stay on the device; above it they are streamed."""
    feature_gb: float = 8.0
    """Up to this size one training keeps its frozen stage's features in memory; above it in a file
    of its own."""
    plugins: tuple[str, ...] = ()
    """Modules that register models of the user's own; imported before the registry is asked."""
    folders: Mapping[str, FolderLayout] = field(default_factory=dict)
    """Data sets that are plain folders, by name."""
    data: Mapping[str, DataOptions] = field(default_factory=dict)
    """What is said of data sets, by name."""

    def options_of(self, dataset: str) -> DataOptions:
        """Give what is said of a data set, the defaults where nothing is."""
        return self.data.get(dataset, DEFAULT_OPTIONS)


PATHS = ("dataset_dir", "backbone_dir", "output_dir", "cache_dir")
"""The settings that are folders."""
_BY_DATASET = {"data": DataOptions, "folders": FolderLayout}
"""The settings that say something of data sets, with the form of it."""

_VARIABLE = re.compile(r"\$\{?(\w+)\}?")
_OF_A_SHELL = re.compile(r"\$(\w+|\{[^}]*\}?|\([^)]*\)?)|`[^`]*`")
"""What a shell would fill in, also with more than the value of a variable: ``${X:-y}``, ``$(pwd)``."""

_settings = Settings()


def get_globals() -> Settings:
    """Give the settings of this process."""
    return _settings


def use_settings(settings: Settings) -> None:
    """Make `settings` the settings of this process."""
    global _settings
    _settings = settings


def absolute_settings(settings: Settings) -> Settings:
    """Make paths absolute, with ``~`` and variables filled in, so that they hold in every process.

    Raises:
        InputError: for a variable that is not set.
    """
    folders = {}
    for name, folder in settings.folders.items():
        folders[name] = replace(
            folder, path=expand_path(f"settings.folders.{name}.path", folder.path)
        )
    return replace(
        settings,
        dataset_dir=_absolute("dataset_dir", settings.dataset_dir),
        backbone_dir=_absolute("backbone_dir", settings.backbone_dir),
        output_dir=_absolute("output_dir", settings.output_dir),
        cache_dir=_absolute("cache_dir", settings.cache_dir),
        folders=folders,
    )


def _absolute(name: str, path: str) -> str:
    return str(Path(expand_path(f"settings.{name}", path)).absolute())


def expand_path(name: str, path: str) -> str:
    """Fill in ``~`` and variables.

    Args:
        name: of the setting, option or argument, for errors.
        path: as the user wrote it.

    Raises:
        InputError: for a variable or a user that is not there.
    """
    # An empty one would lead to another folder, such as `/outputs` for `$STORE/outputs`.
    empty = [found[0] for found in _VARIABLE.finditer(path) if os.environ.get(found[1]) == ""]
    expanded = os.path.expanduser(os.path.expandvars(path))  # noqa: PTH111  Path has no variables
    left = [found[0] for found in _OF_A_SHELL.finditer(expanded)]
    unknown = [*empty, *left]
    if unknown:
        raise InputError(
            Sentence.of("settings variable", name=name, path=repr(path), variable=unknown[0])
        )
    if expanded.startswith("~"):
        raise InputError(Sentence.of("settings user", name=name, path=repr(path)))
    return expanded


def set_globals(*, show_globals: bool = False, **changes: Any) -> Settings:
    """Change some settings of this process and keep the others.

    Args:
        show_globals: print the settings afterwards.
        **changes: fields of `Settings` by name; a path may be given as such.

    Returns:
        The new settings.

    Raises:
        InputError: for a name that is not a setting, and for what is said of a data set in another
            form than the setting's dataclass.
    """
    known = [f.name for f in fields(Settings)]
    plain: dict[str, Any] = {}
    for name, value in changes.items():
        if name not in known:
            raise InputError(
                Sentence.of(
                    "settings globals unknown", name=repr(name), nearest=nearest_of(name, known)
                )
            )
        given = os.fspath(value) if isinstance(value, os.PathLike) else value
        if name in _BY_DATASET:
            _check_by_dataset(name, given)
        plain[name] = expand_path(f"settings.{name}", given) if name in PATHS else given

    use_settings(replace(_settings, **plain))
    if show_globals:
        print_globals()
    return _settings


def _check_by_dataset(name: str, value: Any) -> None:
    """Refuse what is said of data sets in another form than the setting's dataclass.

    Raises:
        InputError: with the name and an example of the form.
    """
    kind = _BY_DATASET[name]
    is_right = isinstance(value, Mapping)
    if not is_right or not all(isinstance(one, kind) for one in value.values()):
        raise InputError(
            Sentence.of(
                "settings globals mapping", name=name, value=repr(value), kind=kind.__name__
            )
        )


def print_globals() -> None:
    """Print the settings, one a line."""
    for name, value in asdict(_settings).items():
        print(f"{name:20} {value}")
