"""The folder of features that trials share. Importing this loads no torch."""

from __future__ import annotations

from pathlib import Path

from adray.cache_folder import CacheFolder
from adray.settings import Settings


def feature_folder(settings: Settings) -> CacheFolder:
    """Give the folder of shared features."""
    folder = Path(settings.cache_dir).expanduser() / "features"
    return CacheFolder(folder, ".rows", ".json", int(settings.shared_feature_gb * 1e9))
