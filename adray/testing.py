"""The contract that every configuration passes, for the user's own ones too.

    from adray.testing import check_configuration

    check_configuration("mine", train={"num_epochs": 3})

Each check states one property and raises an `AssertionError` where it does not hold. What a
configuration cannot pass by its nature stands in `exceptions` of its `ModelSpec`, with the reason.
"""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from adray.data.loaders import get_dataloaders
from adray.data.synthetic import write_synthetic
from adray.errors import InputError
from adray.language.sentence import Sentence
from adray.registry import ModelRegistry, Resolved
from adray.scores import Scores
from adray.settings import get_globals, use_settings
from adray.trainer import BaseTrainer
from adray.types import Batch, Sharing

if TYPE_CHECKING:
    from adray.data.loaders import Loaders

_SEED = 1
_BATCH_SIZE = 4
_IMG_SIZE = 64
_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Fitted:
    """A configuration that was trained once, for the checks that need no training of their own."""

    trainer: BaseTrainer
    """Trained."""
    loaders: Loaders
    """What it was trained on."""
    scores: Scores
    """Of the test images."""
    frozen: Mapping[str, Tensor]
    """Parameters and buffers of its frozen backbones before the training, by name."""


@dataclass
class Subject:
    """A configuration under test."""

    name: str
    """In the registry."""
    train: Mapping[str, Any] = field(default_factory=dict)
    """`TrainConfig` fields that make it small."""
    model: Mapping[str, Any] = field(default_factory=dict)
    """Hyperparameters that make it small."""
    dataset: str = "synthetic"
    """Data set below the settings' `dataset_dir`."""
    category: str = "all"
    """Of that data set."""
    weights: str = "pretrained"
    """``random`` where no weight file is there."""

    def trainer(self, seed: int = _SEED, device: str = "cpu", **train: Any) -> BaseTrainer:
        """Make a fresh trainer, with further changes of its `TrainConfig`."""
        small = {"img_size": _IMG_SIZE, "batch_size": _BATCH_SIZE, "holdout": 0.2}
        return ModelRegistry.get_trainer(
            self.name,
            train={**small, **self.train, **train},
            model=self.model,
            weights=self.weights,
            device=device,
            seed=seed,
        )

    def loaders(self, trainer: BaseTrainer, eval_batch_size: int = _BATCH_SIZE) -> Loaders:
        """Make the loaders that a trainer wants."""
        config = trainer.train_config
        return get_dataloaders(
            self.dataset,
            self.category,
            img_size=config.img_size,
            crop_size=config.crop_size,
            fit=config.fit,
            aspect=config.aspect,
            batch_size=config.batch_size,
            eval_batch_size=eval_batch_size,
            normalize=config.normalize,
            holdout=config.holdout,
            seed=_SEED,
            device=str(trainer.device),
            split_mode=config.split_mode,
            train_defects=config.train_defects,
            supervised=trainer.supervised,
        )

    @cached_property
    def fitted(self) -> Fitted:
        """Train the configuration, once for all checks."""
        trainer = self.trainer()
        loaders = self.loaders(trainer)
        frozen = frozen_state(trainer)
        trainer.fit(loaders)
        return Fitted(trainer, loaders, trainer.predict(loaders.test), frozen)

    @property
    def has_backbone(self) -> bool:
        """Tell whether it needs a weight file."""
        return bool(self.resolved.weight_files)

    @cached_property
    def resolved(self) -> Resolved:
        """Give the configuration with every hyperparameter decided."""
        return ModelRegistry.resolve(
            self.name, train=self.train, model=self.model, weights=self.weights
        )


def check_configuration(
    name: str,
    *,
    train: Mapping[str, Any] | None = None,
    model: Mapping[str, Any] | None = None,
    data: tuple[str, str] | None = None,
    weights: str = "pretrained",
) -> list[str]:
    """Check that a configuration keeps the contract, on small images.

    Args:
        name: in the registry, a plug-in's too.
        train: `TrainConfig` fields that make it small, such as a few epochs.
        model: hyperparameters that make it small.
        data: data set and category below the settings' `dataset_dir`; generated images where None.
        weights: ``random`` leaves backbones untrained, so that no file is needed.

    Returns:
        Names of the checks that it passed.

    Raises:
        AssertionError: at the first property that does not hold, named by the check.
        InputError: for an unknown name, values out of range, and a supervised configuration without
            `data`.
    """
    if data is None and ModelRegistry.method(name).supervised:
        raise InputError(Sentence.of("testing labelled", name=name))

    with _place(data) as (dataset, category):
        subject = Subject(name, train or {}, model or {}, dataset, category, weights)
        passed = []
        for check in checks_of(name):
            check(subject)
            passed.append(check_name(check))
    return passed


@contextmanager
def _place(data: tuple[str, str] | None) -> Iterator[tuple[str, str]]:
    """Give data set and category, generated into a folder that is thrown away where None."""
    if data is not None:
        yield data
        return

    before = get_globals()
    with tempfile.TemporaryDirectory() as folder:
        write_synthetic(Path(folder) / "synthetic", train=10, good=4, defects=6, size=_IMG_SIZE)
        use_settings(replace(before, dataset_dir=folder, cache_dir=f"{folder}/cache"))
        try:
            yield "synthetic", "all"
        finally:
            use_settings(before)


Check = Callable[[Subject], None]


def checks_of(name: str) -> list[Check]:
    """List the checks that a configuration has to pass: all but its exceptions."""
    exceptions = ModelRegistry.get(name).exceptions
    known = {check_name(check) for check in CHECKS}
    for exception in exceptions:
        assert exception in known, f"{name}: no check is called {exception!r}"
    return [check for check in CHECKS if check_name(check) not in exceptions]


def check_name(check: Check) -> str:
    """Give the name by which `ModelSpec.exceptions` means a check."""
    return check.__name__.removeprefix("check_")


def frozen_state(trainer: BaseTrainer) -> dict[str, Tensor]:
    """Copy the parameters and buffers of a trainer's frozen backbones, by name."""
    found = {}
    for name, module in trainer.model.named_modules():
        if hasattr(module, "weight_file"):
            for key, value in module.state_dict().items():
                found[f"{name}.{key}"] = value.clone()
    return found


def close(first: np.ndarray, second: np.ndarray) -> bool:
    """Tell whether two sets of scores are the same but for the last digits of float32."""
    largest = max(float(np.abs(second).max()), 1e-12)
    return np.allclose(first, second, rtol=_TOLERANCE, atol=_TOLERANCE * largest)


def reorder(batch: Batch, order: Tensor) -> Batch:
    """Take images of a batch in another order, or several times."""
    mask = None if batch.mask is None else batch.mask[order]
    return Batch(batch.image[order], batch.label[order], mask, batch.index[order])


# The checks


def check_shapes_types_and_finite_values(subject: Subject) -> None:
    """Check what a batch's prediction looks like."""
    fitted = subject.fitted
    batch = next(iter(fitted.loaders.test))
    with torch.no_grad():
        prediction = fitted.trainer.validation_step(batch)

    count = len(batch.label)
    assert prediction.pred_score.shape == (count,)
    assert prediction.pred_score.dtype == torch.float32
    assert torch.isfinite(prediction.pred_score).all()
    if prediction.anomaly_map is not None:
        shape = fitted.trainer.train_config.input_shape
        assert prediction.anomaly_map.shape == (count, 1, *shape)
        assert prediction.anomaly_map.dtype == torch.float32
        assert torch.isfinite(prediction.anomaly_map).all()


def check_an_obvious_defect_scores_higher(subject: Subject) -> None:
    """Check the sign of the score."""
    scores = subject.fitted.scores
    anomalous = scores.pred_score[scores.label == 1]
    normal = scores.pred_score[scores.label == 0]
    assert anomalous.mean() > normal.mean()


def check_every_image_has_a_score_of_its_own(subject: Subject) -> None:
    """Check that the model looks at the images."""
    pred_score = subject.fitted.scores.pred_score
    assert len(np.unique(pred_score)) > len(pred_score) // 2


def check_scores_do_not_depend_on_the_batch_or_the_order(subject: Subject) -> None:
    """Check that an image has the same score whatever images come with it."""
    trainer = subject.fitted.trainer
    scores = subject.fitted.scores
    one = trainer.predict(subject.loaders(trainer, eval_batch_size=1).test)
    eight = trainer.predict(subject.loaders(trainer, eval_batch_size=8).test)
    assert close(one.pred_score, scores.pred_score)
    assert close(eight.pred_score, scores.pred_score)
    if scores.anomaly_map is not None:
        assert one.anomaly_map is not None
        assert close(one.anomaly_map, scores.anomaly_map)

    whole = next(iter(subject.loaders(trainer, eval_batch_size=8).test))
    order = torch.randperm(len(whole.label), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        shuffled = trainer.validation_step(reorder(whole, order)).pred_score
    assert close(shuffled.numpy(), eight.pred_score[: len(order)][order.numpy()])


def check_frozen_parts_are_unchanged_by_fit_and_evaluation(subject: Subject) -> None:
    """Check that a backbone stays as it was, and that evaluation changes nothing at all."""
    trainer = subject.fitted.trainer
    before = subject.fitted.frozen
    if subject.has_backbone:
        assert before

    after = frozen_state(trainer)
    for key, value in before.items():
        assert torch.equal(value, after[key]), key

    state = {key: value.clone() for key, value in trainer.model.state_dict().items()}
    trainer.predict(subject.fitted.loaders.test)
    for key, value in trainer.model.state_dict().items():
        assert torch.equal(state[key], value), key


def check_the_same_seed_gives_the_same_scores(subject: Subject) -> None:
    """Check that all that is random follows the seed."""
    again = subject.trainer()
    loaders = subject.loaders(again)
    again.fit(loaders)
    assert close(again.predict(loaders.test).pred_score, subject.fitted.scores.pred_score)


def check_a_saved_model_scores_the_same_in_a_fresh_trainer(subject: Subject) -> None:
    """Check both kinds of checkpoint, and that they hold tensors and plain values only."""
    fitted = subject.fitted
    with tempfile.TemporaryDirectory() as folder:
        for ending in ("pth", "safetensors"):
            path = Path(folder) / f"model.{ending}"
            fitted.trainer.save_model(path)
            if ending == "pth":
                torch.load(path, weights_only=True)
            fresh = subject.trainer(seed=_SEED + 1)
            fresh.load_model(path)
            scores = fresh.predict(fitted.loaders.test)
            assert close(scores.pred_score, fitted.scores.pred_score), ending


def check_a_checkpoint_names_frozen_backbones_instead_of_storing_them(subject: Subject) -> None:
    """Check that weights which lie in a file of their own are not copied into each checkpoint."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.pth"
        subject.fitted.trainer.save_model(path)
        stored = torch.load(path, weights_only=True)
    if subject.has_backbone:
        assert not set(subject.fitted.frozen) & set(stored["model"])
        assert stored["backbones"]


def check_an_unknown_hyperparameter_is_named(subject: Subject) -> None:
    """Check that a misspelt key is refused with its path."""
    said = _refusal(lambda: ModelRegistry.resolve(subject.name, model={"learning_speed": 1}))
    assert f"unknown key '{subject.name}.model.learning_speed'" in said


def check_missing_weights_are_named(subject: Subject) -> None:
    """Check that a missing weight file is refused with what to copy where."""
    if not subject.has_backbone:
        return
    before = get_globals()
    with tempfile.TemporaryDirectory() as empty:
        use_settings(replace(before, backbone_dir=empty))
        try:
            said = _refusal(subject.trainer)
        finally:
            use_settings(before)
    assert said.startswith("missing weights of ")
    assert empty in said


def _refusal(call: Callable[[], object]) -> str:
    """Give what a call says that should be refused. Empty where it is not."""
    try:
        call()
    except InputError as error:
        return str(error)
    return ""


def check_duplicating_the_batch_leaves_the_loss_unchanged(subject: Subject) -> None:
    """Check that a loss is a mean over images, so that a batch size does not change the step."""
    if ModelRegistry.method(subject.name).single_pass:
        return  # no loss
    trainer = subject.trainer()
    batch = next(iter(subject.loaders(trainer).test))
    order = torch.arange(len(batch.label)).repeat(2)
    once = _first_loss(subject, batch)
    twice = _first_loss(subject, reorder(batch, order))
    assert abs(once - twice) <= _TOLERANCE * abs(once)


def _first_loss(subject: Subject, batch: Batch) -> float:
    """Give the loss of a fresh model's first step on a batch."""
    trainer = subject.trainer()
    configured = trainer.configure_optimizer(10)
    assert configured is not None
    trainer.optimizer, trainer.scheduler = configured
    trainer.model.train()
    return float(trainer.train_step(trainer.with_features(batch))["loss"])


def check_no_backbone_runs_from_the_second_epoch_on(subject: Subject) -> None:
    """Check that features of a frozen stage are kept."""
    if not subject.has_backbone or ModelRegistry.method(subject.name).single_pass:
        return
    trainer = subject.trainer(num_epochs=3, holdout=0.0)
    loaders = subject.loaders(trainer)
    images: list[int] = []
    for module in trainer.model.modules():
        if hasattr(module, "weight_file"):
            module.register_forward_hook(lambda _module, args, _out: images.append(len(args[0])))

    after_epochs: list[int] = []
    trainer.fit(loaders, lambda _step, _row: after_epochs.append(sum(images)))
    # More than the images where there are two backbones or several sizes.
    assert after_epochs[0] >= len(loaders.train.samples)
    assert after_epochs == [after_epochs[0]] * 3


def check_given_features_predict_like_the_image_itself(subject: Subject) -> None:
    """Check that features which were kept stand for the image."""
    trainer = subject.fitted.trainer
    features = getattr(trainer.model, "features", None)
    if features is None:
        return  # no frozen stage

    batch = next(iter(subject.fitted.loaders.test))
    with torch.no_grad():
        direct = trainer.validation_step(batch).pred_score
        kept = replace(batch, features=features(batch.image))
        given = trainer.validation_step(kept).pred_score
    assert close(given.numpy(), direct.numpy())


def check_shared_features_give_the_scores_of_the_backbone_itself(subject: Subject) -> None:
    """Check that features which another trial made give the same scores, without a backbone."""
    if not ModelRegistry.method(subject.name).shares_features:
        return
    direct = subject.fitted.scores
    before = get_globals()
    images = []
    with tempfile.TemporaryDirectory() as cache:
        use_settings(replace(before, cache_dir=cache))
        try:
            for _ in ("the one that builds", "the one that reads"):
                trainer = subject.trainer()
                trainer.sharing = Sharing(subject.resolved.config.layers)
                seen = _count_images(trainer)
                loaders = subject.loaders(trainer)
                trainer.fit(loaders)
                shared = trainer.predict(loaders.test)
                images.append(sum(seen))
                assert close(shared.pred_score, direct.pred_score)
        finally:
            use_settings(before)
    assert images == [sum(loaders.train.part_sizes), 0]


def _count_images(trainer: BaseTrainer) -> list[int]:
    """Have the extractor of a model note how many images it sees."""
    seen: list[int] = []
    extractor: Any = trainer.model.extractor
    extractor.register_forward_hook(lambda _module, args, _out: seen.append(len(args[0])))
    return seen


def check_nothing_opens_a_socket(subject: Subject) -> None:
    """Check that neither training nor prediction reaches for the network."""
    is_single_pass = ModelRegistry.method(subject.name).single_pass
    with (
        mock.patch.object(socket, "socket", _refuse),
        mock.patch.object(socket, "create_connection", _refuse),
    ):
        trainer = subject.trainer() if is_single_pass else subject.trainer(num_epochs=1)
        loaders = subject.loaders(trainer)
        trainer.fit(loaders)
        assert np.isfinite(trainer.predict(loaders.test).pred_score).all()


def _refuse(*_args: Any, **_kwargs: Any) -> None:
    raise AssertionError("a socket was opened")


CHECKS: tuple[Check, ...] = (
    check_shapes_types_and_finite_values,
    check_an_obvious_defect_scores_higher,
    check_every_image_has_a_score_of_its_own,
    check_scores_do_not_depend_on_the_batch_or_the_order,
    check_frozen_parts_are_unchanged_by_fit_and_evaluation,
    check_the_same_seed_gives_the_same_scores,
    check_a_saved_model_scores_the_same_in_a_fresh_trainer,
    check_a_checkpoint_names_frozen_backbones_instead_of_storing_them,
    check_an_unknown_hyperparameter_is_named,
    check_missing_weights_are_named,
    check_duplicating_the_batch_leaves_the_loss_unchanged,
    check_no_backbone_runs_from_the_second_epoch_on,
    check_given_features_predict_like_the_image_itself,
    check_shared_features_give_the_scores_of_the_backbone_itself,
    check_nothing_opens_a_socket,
)
"""All properties, in the order in which they are checked."""
