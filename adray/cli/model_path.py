"""The path of a trained model on the command line, looked at before torch takes seconds to load."""

from __future__ import annotations

from pathlib import Path

from adray.ensembles.team import member_folder, read_ensemble
from adray.errors import InputError
from adray.language.sentence import Sentence
from adray.results.trial_files import checkpoint_of

_BUNDLE = ".adray"
"""Ending of a bundle's name."""


def check_model_path(path: str | Path) -> None:
    """Refuse what is no trained model: the checks of `adray.predict.load_predictor` that are quick.

    Raises:
        InputError: for a folder without a checkpoint, a file that does not exist, a bundle, and the
            damaged file of an ensemble.
    """
    path = Path(path)
    if path.suffix == _BUNDLE and path.is_file():
        raise InputError(Sentence.of("path bundle", path=str(path)))
    if path.suffix != ".json" or path.is_dir():
        checkpoint_of(path)
        return
    for member in read_ensemble(path).members:
        member_folder(path, member)
