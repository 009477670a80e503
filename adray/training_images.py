"""The images of a trial's training split, as its data set has them now."""

from __future__ import annotations

from adray.changed_data import settings_of
from adray.data.base import Sample
from adray.data.readers import list_samples
from adray.errors import InputError
from adray.results.current import Images
from adray.results.store import TrialRecord


def training_samples(record: TrialRecord) -> list[Sample] | None:
    """List the images of a trial that are not of its test split, those that it held out among them.

    Args:
        record: of the trial.

    Returns:
        The images that are there, None where the data set is out of reach.
    """
    settings = settings_of(record)
    if settings is None:
        return None
    images = Images.of(record)
    try:
        samples = list_samples(
            images.datasets,
            images.categories,
            settings,
            seed=int(record.identity["seed"]),
            split_mode=images.split_mode,
            train_defects=images.train_defects,
        )
    except (InputError, OSError):
        return None
    return [sample for sample in samples if sample.split != "test" and sample.path.is_file()]
