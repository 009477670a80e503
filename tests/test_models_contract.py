"""One contract for every registered configuration; what makes each small is in tiny.py, exceptions are data here."""

from __future__ import annotations

import json
import os
import socket
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import IMG_SIZE, TINY, write_site

from adray.data.loaders import get_dataloaders
from adray.errors import InputError
from adray.job import CORE_VERSION
from adray.registry import MODEL_SPECS, ModelRegistry
from adray.settings import use_settings
from adray.types import Batch, Sharing

NAMES = [spec.name for spec in MODEL_SPECS]

NO_LOSS = {
    name: "one pass, no loss"
    for name in NAMES
    if name.startswith(("padim", "patchcore", "dfkde", "dfm", "winclip", "vlm-ad"))
}
NO_BACKBONE = {
    "autoencoder": "trained from scratch",
    "draem": "trained from scratch",
    "ganomaly": "trained from scratch",
    "unet-autoencoder": "trained from scratch",
    "unet-vae": "trained from scratch",
    "vae": "trained from scratch",
}
AUGMENTED: dict[str, str] = {
    name: "the autoencoder's target is the teacher's map of the augmented image"
    for name in NAMES
    if name.startswith("efficientad")
} | {
    "dsr": "codes of turned, disturbed and painted images; it has no `features` that could be cached",
    "supersimplenet-supervised": "images are mirrored",
    "winclip": "nothing is trained, so that only the references go through it; it has no `features` either",
    "vlm-ad": "nothing is trained; a chat model has no `features` apart from its answer",
}
"""Configurations whose frozen stage must see augmented images, with the reason: it runs in every epoch."""
RANDOM_LOSS: dict[str, str] = {
    name: "photographs, augmentation and dropout are drawn anew"
    for name in NAMES
    if name.startswith("efficientad")
} | {
    "draem": "synthetic anomalies are drawn anew",
    "dsr": "synthetic anomalies are drawn anew",
    "supersimplenet": "synthetic anomalies are drawn anew",
    "supersimplenet-supervised": "synthetic anomalies are drawn anew",
    "unet-autoencoder": "the damage to be mended is drawn anew",
    "unet-vae": "the damage to be mended is drawn anew",
    "vae": "the latent map is drawn anew",
    **{
        name: "the bottleneck's dropout is drawn anew"
        for name in NAMES
        if name.startswith("dinomaly")
    },
}
"""Configurations whose loss draws random numbers, with the reason; its parts are tested beside the model."""
UNTRAINED: dict[str, str] = {
    "vlm-ad": "a chat model's answer is as random as its weights; its own tests train one"
}
"""Configurations that find no defect with untrained weights, with the reason."""
GOLDEN = Path(__file__).with_name("golden_scores.json")


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """A small data set and random weights under the real file names, shared by all configurations."""
    return write_site(tmp_path_factory.mktemp("contract"))


@pytest.fixture(autouse=True)
def settings(site, own_settings):
    use_settings(site)
    threads = torch.get_num_threads()
    torch.set_num_threads(
        1
    )  # sums in another order, and training makes other scores of it than those recorded
    yield
    torch.set_num_threads(threads)


def new_trainer(name, seed=1, **changes):
    tiny = TINY.get(name, {})
    train = {
        "img_size": IMG_SIZE,
        "batch_size": 4,
        "holdout": 0.2,
        **tiny.get("train", {}),
        **changes,
    }
    return ModelRegistry.get_trainer(name, train=train, model=tiny.get("model"), seed=seed)


def loaders_for(trainer, eval_batch_size=4):
    config = trainer.train_config
    data = ("visa", "candle") if trainer.supervised else ("mvtec", "bottle")
    return get_dataloaders(
        *data, img_size=config.img_size, crop_size=config.crop_size, batch_size=config.batch_size,
        eval_batch_size=eval_batch_size, normalize=config.normalize, holdout=config.holdout, seed=1,
        split_mode=config.split_mode, supervised=trainer.supervised,
    )  # fmt: skip


_fitted: dict[str, tuple] = {}


@pytest.fixture(params=NAMES)
def fitted(request, settings):
    """What `fit_once` gives, of every configuration."""
    return fit_once(request.param)


def fit_once(name):
    """Name, fitted trainer, loaders, scores and what was frozen before; each configuration is fitted once."""
    if name not in _fitted:
        trainer = new_trainer(name)
        loaders = loaders_for(trainer)
        before = frozen_state(trainer)
        trainer.fit(loaders)
        _fitted[name] = (name, trainer, loaders, trainer.predict(loaders.test), before)
    return _fitted[name]


def frozen_state(trainer):
    return {
        f"{name}.{key}": value.clone()
        for name, module in trainer.model.named_modules()
        if hasattr(module, "weight_file")
        for key, value in module.state_dict().items()
    }


def close(a, b):
    return np.allclose(a, b, rtol=1e-5, atol=1e-5 * max(float(np.abs(b).max()), 1e-12))


def test_every_configuration_has_its_tiny_overrides():
    assert set(TINY) == set(NAMES)


def test_shapes_types_and_finite_values(fitted):
    _, trainer, loaders, _, _ = fitted
    batch = next(iter(loaders.test))
    with torch.no_grad():
        prediction = trainer.validation_step(batch)
    size, count = trainer.train_config.input_size, len(batch.label)
    assert prediction.pred_score.shape == (count,)
    assert prediction.pred_score.dtype == torch.float32
    assert torch.isfinite(prediction.pred_score).all()
    if prediction.anomaly_map is not None:
        assert prediction.anomaly_map.shape == (count, 1, size, size)
        assert prediction.anomaly_map.dtype == torch.float32
        assert torch.isfinite(prediction.anomaly_map).all()


def test_an_obvious_defect_scores_higher(fitted):
    name, _, _, scores, _ = fitted
    if name in UNTRAINED:
        assert len(np.unique(scores.pred_score)) == len(
            scores.pred_score
        )  # it sees the images, at least
        return
    assert scores.pred_score[scores.label == 1].mean() > scores.pred_score[scores.label == 0].mean()


def test_scores_do_not_depend_on_the_batch_or_the_order(fitted):
    _, trainer, _, scores, _ = fitted
    one = trainer.predict(loaders_for(trainer, eval_batch_size=1).test)
    eight = trainer.predict(loaders_for(trainer, eval_batch_size=8).test)
    assert close(one.pred_score, scores.pred_score)
    assert close(eight.pred_score, scores.pred_score)
    if scores.anomaly_map is not None:
        assert close(one.anomaly_map, scores.anomaly_map)
    whole = next(iter(loaders_for(trainer, eval_batch_size=8).test))
    order = torch.randperm(len(whole.label), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        shuffled = trainer.validation_step(reorder(whole, order)).pred_score
    assert close(shuffled.numpy(), eight.pred_score[: len(order)][order.numpy()])


def reorder(batch, order):
    mask = None if batch.mask is None else batch.mask[order]
    return Batch(batch.image[order], batch.label[order], mask, batch.index[order])


def test_frozen_parts_are_unchanged_by_fit_and_evaluation(fitted):
    name, trainer, loaders, _, before = fitted
    if name in NO_BACKBONE:
        assert not before
        return
    assert before
    state = {key: value.clone() for key, value in trainer.model.state_dict().items()}
    after = frozen_state(trainer)
    assert all(torch.equal(before[key], after[key]) for key in before)
    trainer.predict(loaders.test)
    assert all(torch.equal(state[key], value) for key, value in trainer.model.state_dict().items())


def test_the_same_seed_gives_the_same_scores(fitted):
    name, _, _, scores, _ = fitted
    again = new_trainer(name)
    loaders = loaders_for(again)
    again.fit(loaders)
    assert close(again.predict(loaders.test).pred_score, scores.pred_score)


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_a_saved_model_scores_the_same_in_a_fresh_trainer_and_holds_tensors_only(
    fitted, tmp_path, ending
):
    name, trainer, loaders, scores, _ = fitted
    path = tmp_path / f"model.{ending}"
    trainer.save_model(path)
    if ending == "pth":
        torch.load(path, weights_only=True)
    fresh = new_trainer(name, seed=2)
    fresh.load_model(path)
    assert close(fresh.predict(loaders.test).pred_score, scores.pred_score)


def test_a_checkpoint_names_frozen_backbones_instead_of_storing_them(fitted, tmp_path):
    name, trainer, _, _, before = fitted
    trainer.save_model(tmp_path / "model.pth")
    stored = torch.load(tmp_path / "model.pth", weights_only=True)
    assert not set(before) & set(stored["model"])
    assert bool(stored["backbones"]) == (name not in NO_BACKBONE)


def test_scores_are_those_recorded_unless_a_version_was_raised(fitted):
    """Stored results count by these versions: `ModelSpec.version` for one model, `CORE_VERSION` for all."""
    name, _, _, scores, _ = fitted
    versions = [ModelRegistry.get(name).version, CORE_VERSION]
    recorded = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    if os.environ.get("ADRAY_WRITE_GOLDEN"):
        recorded[name] = {
            "versions": versions,
            "scores": [float(f"{score:.6g}") for score in scores.pred_score],
        }
        GOLDEN.write_text(json.dumps(recorded, indent=1, sort_keys=True) + "\n")
    assert recorded[name]["versions"] == versions, (
        "record them anew: ADRAY_WRITE_GOLDEN=1 pytest -k recorded"
    )
    spread = float(np.ptp(recorded[name]["scores"]))
    assert np.allclose(scores.pred_score, recorded[name]["scores"], rtol=0, atol=0.02 * spread), (
        f"the scores of {name} moved: raise ModelSpec.version (or CORE_VERSION), then ADRAY_WRITE_GOLDEN=1 pytest"
    )


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_hyperparameter_is_named(name):
    with pytest.raises(InputError, match=f"unknown key '{name}.model.learning_speed'"):
        ModelRegistry.resolve(name, model={"learning_speed": 1})


@pytest.mark.parametrize("name", [n for n in NAMES if n not in NO_BACKBONE])
def test_missing_weights_are_named(name, site, tmp_path):
    use_settings(replace(site, backbone_dir=str(tmp_path)))
    with pytest.raises(InputError, match=r"missing weights of .* MB.* to "):
        new_trainer(name)


@pytest.mark.parametrize("name", [n for n in NAMES if n not in NO_LOSS | RANDOM_LOSS])
def test_duplicating_the_batch_leaves_the_loss_unchanged(name):
    single = new_trainer(name)
    batch = next(iter(loaders_for(single).test))
    order = torch.arange(len(batch.label)).repeat(2)
    twice = reorder(batch, order)
    losses = []
    for b in (batch, twice):
        trainer = new_trainer(name)
        trainer.optimizer, trainer.scheduler = trainer.configure_optimizer(10)
        trainer.model.train()
        losses.append(float(trainer.train_step(trainer.with_features(b))["loss"]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize("name", [n for n in NAMES if n not in NO_BACKBONE | NO_LOSS | AUGMENTED])
def test_no_backbone_runs_from_the_second_epoch_on(name):
    trainer = new_trainer(name, num_epochs=3, holdout=0.0)
    loaders = loaders_for(trainer)
    images = []
    for module in trainer.model.modules():
        if hasattr(module, "weight_file"):
            module.register_forward_hook(lambda _module, args, _out: images.append(len(args[0])))
    after_epochs = []
    trainer.fit(loaders, lambda _step, _row: after_epochs.append(sum(images)))
    assert after_epochs[0] >= len(
        loaders.train.samples
    )  # more where there are two backbones or several sizes
    assert after_epochs == [after_epochs[0]] * 3


@pytest.mark.parametrize("name", [n for n in NAMES if n not in NO_BACKBONE])
def test_given_features_predict_like_the_image_itself(name):
    _, trainer, loaders, _, _ = fit_once(name)
    if not hasattr(trainer.model, "features"):
        pytest.skip(AUGMENTED[name])
    batch = next(iter(loaders.test))
    with torch.no_grad():
        direct = trainer.validation_step(batch).pred_score
        features = trainer.model.features(batch.image)
        given = trainer.validation_step(replace(batch, features=features)).pred_score
    assert close(given.numpy(), direct.numpy())


SHARING = [name for name in NAMES if ModelRegistry.trainer_class(name).shares_features]


@pytest.mark.parametrize("name", SHARING)
def test_shared_features_give_the_scores_of_the_backbone_itself(name, site, tmp_path):
    direct = fit_once(name)[3]
    use_settings(replace(site, cache_dir=str(tmp_path)))
    images = []
    for _ in ("the one that builds", "the one that reads"):
        trainer, seen = new_trainer(name), []
        trainer.sharing = Sharing(trainer.config.layers)
        trainer.model.extractor.register_forward_hook(
            lambda _module, args, _out, seen=seen: seen.append(len(args[0]))
        )
        loaders = loaders_for(trainer)
        trainer.fit(loaders)
        shared = trainer.predict(loaders.test)
        images.append(sum(seen))
        assert close(shared.pred_score, direct.pred_score)
        if direct.anomaly_map is not None:
            assert close(shared.anomaly_map, direct.anomaly_map)
    assert images == [sum(loaders.train.part_sizes), 0]


@pytest.mark.parametrize("name", NAMES)
def test_nothing_opens_a_socket(name, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    trainer = new_trainer(name, **({} if name in NO_LOSS else {"num_epochs": 1}))
    loaders = loaders_for(trainer)
    trainer.fit(loaders)
    assert np.isfinite(trainer.predict(loaders.test).pred_score).all()
