"""The loop around every model, with a tiny trainer and images in memory."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from adray.config import TrainConfig
from adray.errors import InputError
from adray.settings import get_globals, use_settings
from adray.trainer import BaseTrainer, EarlyStopper
from adray.types import EIGHT_BITS, Batch, Prediction

SIZE = 8


class Images:
    """A loader of random images; every third one is labelled anomalous where `labels` is asked for."""

    def __init__(self, count=10, batch_size=4, shuffle=False, labels=False, seed=0):
        self.samples = list(range(count))
        self.has_mask = np.ones(count, dtype=bool)
        self.image = torch.randn(
            count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed)
        )
        self.label = (
            (torch.arange(count) % 3 == 2).long()
            if labels
            else torch.zeros(count, dtype=torch.int64)
        )
        self.batch_size, self.shuffle, self.epoch = batch_size, shuffle, 0

    def __len__(self):
        return -(-len(self.samples) // self.batch_size)

    def __iter__(self):
        order = torch.arange(len(self.samples))
        if self.shuffle:
            order = torch.from_numpy(
                np.random.default_rng([1, self.epoch]).permutation(len(self.samples))
            )
        for index in order.split(self.batch_size):
            yield Batch(self.image[index], self.label[index], None, index)

    def set_epoch(self, epoch):
        self.epoch = epoch


def loaders(train=None, valid=None):
    return SimpleNamespace(
        train=Images(shuffle=True) if train is None else train,
        valid=valid,
        test=None,
        pixels=EIGHT_BITS,
        roi=None,
    )


@dataclass(frozen=True)
class TinyConfig:
    lr: float = 0.1
    blow_up_at: int | None = None
    break_at: int | None = None


class TinyModel(nn.Module):
    """A frozen convolution that counts its images, then batch norm, dropout and a convolution that are learnt."""

    def __init__(self):
        super().__init__()
        self.frozen = nn.Conv2d(3, 4, 3, padding=1).requires_grad_(False)
        self.head = nn.Sequential(nn.BatchNorm2d(4), nn.Dropout(0.3), nn.Conv2d(4, 3, 1))
        self.seen = 0

    def features(self, image):
        self.seen += len(image)
        return (self.frozen(image),)

    def forward(self, image, features=None):
        (feature,) = self.features(image) if features is None else features
        anomaly_map = (self.head(feature) - image).square().mean(1, keepdim=True)
        return Prediction(anomaly_map.flatten(1).amax(1), anomaly_map)


class TinyTrainer(BaseTrainer):
    config_class = TinyConfig

    def build_model(self):
        return TinyModel()

    def configure_optimizer(self, total_steps):
        optimizer = torch.optim.SGD(self.model.head.parameters(), self.config.lr, momentum=0.9)
        return optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total_steps)

    def train_step(self, batch):
        loss = F.mse_loss(self.model.head(batch.features[0]), batch.image)
        if self.config.blow_up_at is not None and self.step + 1 >= self.config.blow_up_at:
            loss = loss * float("nan")
        self.optimize(loss)
        if self.step + 1 == self.config.break_at:
            with torch.no_grad():
                self.model.head[2].bias[1] = float("nan")
        return {"loss": loss.detach()}


def new_trainer(seed=1, config=None, **train):
    return TinyTrainer(
        config or TinyConfig(),
        TrainConfig(img_size=SIZE, **{"num_epochs": 4, **train}),
        "cpu",
        seed,
    )


def without_times(history):
    return [{key: value for key, value in row.items() if key != "seconds"} for row in history]


def same_state(a, b):
    a, b = a.model.state_dict(), b.model.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


# Early stop


def stops_after(stopper, values):
    """How many of `values` are taken until it stops; None where it never does."""
    return next((i + 1 for i, value in enumerate(values) if stopper(value)), None)


def test_the_stopper_waits_for_as_many_values_without_improvement_as_its_patience():
    assert stops_after(EarlyStopper("min", patience=2), [3, 2, 2.5, 1, 1, 1, 0]) == 6
    assert stops_after(EarlyStopper("max", patience=2), [1, 2, 3, 2, 2.5, 9]) == 5


def test_the_stopper_stops_once_the_target_is_reached():
    assert stops_after(EarlyStopper("max", target=0.9), [0.5, 0.8, 0.9, 1.0]) == 3
    assert stops_after(EarlyStopper("min", target=0.1), [0.5, 0.2, 0.05]) == 3


def test_the_stopper_takes_small_changes_and_nan_for_no_improvement():
    assert stops_after(EarlyStopper("min", patience=2, min_delta=0.1), [1.0, 0.95, 0.92]) == 3
    assert stops_after(EarlyStopper("min", patience=2), [float("nan")] * 3) == 2


def test_a_stopper_without_patience_and_target_never_stops():
    assert stops_after(EarlyStopper(), range(100)) is None


def test_the_stopper_goes_on_from_its_state():
    first, second = EarlyStopper("min", patience=3), EarlyStopper("min", patience=3)
    assert stops_after(first, [1, 2, 2]) is None
    second.load_state_dict(first.state_dict())
    assert stops_after(second, [1.5]) == 1


@pytest.mark.parametrize(
    ("arguments", "word"), [({"mode": "up"}, "mode"), ({"patience": 0}, "patience")]
)
def test_the_stopper_names_what_it_does_not_know(arguments, word):
    with pytest.raises(InputError, match=word):
        EarlyStopper(**arguments)


def test_fit_stops_when_the_validation_score_stays():
    trainer = new_trainer(config=TinyConfig(lr=0.0), num_epochs=50, patience=3)
    trainer.model.head[0].momentum = 0.0  # nothing moves, so no epoch after the first is better
    history = trainer.fit(loaders(valid=Images(4)))
    assert len(history) == 4


# The loop


def test_the_history_has_a_row_per_epoch_with_the_mean_loss_and_is_reported():
    trainer, reports = new_trainer(), []
    history = trainer.fit(loaders(), lambda step, row: reports.append((step, row)))
    assert [row["epoch"] for row in history] == [1, 2, 3, 4]
    assert [step for step, _ in reports] == [3, 6, 9, 12]
    assert [row for _, row in reports] == history
    assert history[-1]["loss"] < history[0]["loss"]


def test_max_steps_stops_in_the_middle_of_an_epoch_and_the_schedule_ends_there():
    trainer = new_trainer(max_steps=5, num_epochs=99)
    history = trainer.fit(loaders())
    assert trainer.step == 5
    assert len(history) == 2
    assert history[-1]["lr"] == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize(("step", "images"), [(3, 40), (50, 400), (51, 400), (77, 400)])
def test_a_loss_that_is_not_finite_names_its_step(step, images):
    trainer = new_trainer(config=TinyConfig(blow_up_at=step), num_epochs=1)
    with pytest.raises(FloatingPointError, match=rf"the loss is nan at step {step};"):
        trainer.fit(loaders(Images(images)))


def test_a_model_that_holds_nan_after_the_last_step_is_refused_and_not_saved(tmp_path):
    trainer = new_trainer(config=TinyConfig(break_at=12))
    with pytest.raises(
        FloatingPointError, match=r"NaN or infinity in head\.2\.bias after step 12;"
    ):
        trainer.fit(loaders(), weight_path=tmp_path / "model.pth")
    assert not (tmp_path / "model.pth").exists()


def test_no_progress_is_left_of_a_model_that_holds_nan(tmp_path):
    trainer = new_trainer(config=TinyConfig(break_at=3))
    trainer.progress_seconds = 0
    with pytest.raises(FloatingPointError, match=r"NaN or infinity in head\.2\.bias after step 3;"):
        trainer.fit(loaders(), progress_path=tmp_path / "progress.pth")
    assert not (tmp_path / "progress.pth").exists()


def test_a_loader_without_a_batch_is_refused():
    with pytest.raises(InputError, match="no batch"):
        new_trainer().fit(loaders(Images(0)))


def test_a_foreign_configuration_is_refused():
    with pytest.raises(InputError, match="takes a TinyConfig, not a TrainConfig"):
        TinyTrainer(TrainConfig(), TrainConfig())


def test_the_same_seed_trains_the_same_weights_and_another_seed_others():
    first, again, other = new_trainer(), new_trainer(), new_trainer(seed=2)
    for trainer in (first, again, other):
        trainer.fit(loaders())
    assert same_state(first, again)
    assert not same_state(first, other)


def test_validation_and_prediction_leave_every_buffer_alone():
    trainer = new_trainer()
    trainer.model.train()
    before = {name: buffer.clone() for name, buffer in trainer.model.named_buffers()}
    trainer.validation_epoch(Images(6))
    trainer.predict(Images(6))
    assert before
    assert all(torch.equal(before[name], buffer) for name, buffer in trainer.model.named_buffers())


def test_validation_in_between_does_not_change_what_is_learnt():
    watched, alone = new_trainer(), new_trainer()
    watched.fit(loaders(valid=Images(6, seed=5)))
    alone.fit(loaders())
    assert same_state(watched, alone)


def test_validation_gives_the_mean_score_and_figures_where_both_labels_occur():
    trainer = new_trainer()
    normals, mixed = (
        trainer.validation_epoch(Images(6)),
        trainer.validation_epoch(Images(6, labels=True)),
    )
    scores = trainer.predict(Images(6))
    assert set(normals) == {"valid_score"}
    assert {"valid_score", "image_auroc", "image_aupr"} <= set(mixed)
    assert normals["valid_score"] == pytest.approx(float(scores.pred_score.mean()))


def test_predictions_keep_the_loaders_order_whatever_the_batch_size():
    trainer = new_trainer()
    one, four = (trainer.predict(Images(10, batch_size=b, labels=True)) for b in (1, 4))
    np.testing.assert_allclose(one.pred_score, four.pred_score, rtol=1e-5)
    np.testing.assert_allclose(one.anomaly_map, four.anomaly_map, rtol=1e-5, atol=1e-6)
    assert one.anomaly_map.shape == (10, SIZE, SIZE)
    assert one.label.tolist() == [0, 0, 1, 0, 0, 1, 0, 0, 1, 0]


# Progress


def fit_and_die(progress, epoch):
    """A training that dies while it reports `epoch`, with progress saved after each epoch before."""
    trainer = new_trainer()
    trainer.progress_seconds = -1.0

    def report(_step, row):
        if row["epoch"] == epoch:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer.fit(loaders(valid=Images(6)), report, progress_path=progress)


def test_a_continued_training_ends_with_the_history_and_weights_of_an_uninterrupted_one(tmp_path):
    progress = tmp_path / "progress.pth"
    whole, continued = new_trainer(), new_trainer()
    whole.fit(loaders(valid=Images(6)))
    fit_and_die(progress, epoch=3)
    torch.manual_seed(99)
    np.random.seed(99)
    epochs = []
    continued.fit(
        loaders(valid=Images(6)),
        lambda _step, row: epochs.append(row["epoch"]),
        progress_path=progress,
    )
    assert epochs == [3, 4]
    assert same_state(whole, continued)
    assert without_times(continued.history) == without_times(whole.history)
    assert continued.step == whole.step


def test_a_damaged_progress_checkpoint_starts_from_the_first_epoch(tmp_path, caplog):
    progress = tmp_path / "progress.pth"
    fit_and_die(progress, epoch=3)
    progress.write_bytes(progress.read_bytes()[:100])
    whole, trainer = new_trainer(), new_trainer()
    whole.fit(loaders(valid=Images(6)))
    trainer.fit(loaders(valid=Images(6)), progress_path=progress)
    assert "damaged" in caplog.text
    assert same_state(whole, trainer)


# Checkpoints


def test_a_saved_model_scores_the_same_in_a_fresh_trainer(tmp_path):
    trainer, fresh = new_trainer(), new_trainer(seed=7)
    trainer.fit(loaders(), weight_path=tmp_path / "model.pth")
    fresh.load_model(tmp_path / "model.pth")
    images = Images(6, seed=3)
    np.testing.assert_array_equal(
        fresh.predict(images).pred_score, trainer.predict(images).pred_score
    )
    assert [path.name for path in tmp_path.iterdir()] == ["model.pth"]


def test_a_checkpoint_of_other_hyperparameters_is_refused(tmp_path):
    new_trainer().save_model(tmp_path / "model.pth")
    with pytest.raises(
        InputError, match=r"TinyTrainer with .*0\.1.*, not of test_trainer\.TinyTrainer with .*0\.2"
    ):
        new_trainer(config=TinyConfig(lr=0.2)).load_model(tmp_path / "model.pth")


def test_a_checkpoint_of_another_version_or_of_other_shapes_is_refused(tmp_path):
    path = tmp_path / "model.pth"
    new_trainer().save_model(path)
    stored = torch.load(path, weights_only=True)
    torch.save(stored | {"version": 7}, path)
    with pytest.raises(InputError, match=r"version 7 of TinyTrainer.*now of version 1.*again"):
        new_trainer().load_model(path)

    grown = {name: torch.zeros(*values.shape, 2) for name, values in stored["model"].items()}
    torch.save(stored | {"model": grown}, path)
    with pytest.raises(InputError, match=r"does not fit.*size mismatch"):
        new_trainer().load_model(path)


def test_a_checkpoint_with_nan_is_refused_by_the_name_of_its_tensor(tmp_path):
    path = tmp_path / "model.pth"
    new_trainer().save_model(path)
    stored = torch.load(path, weights_only=True)
    name = next(iter(stored["model"]))
    stored["model"][name].fill_(float("nan"))
    torch.save(stored, path)
    with pytest.raises(InputError, match=rf"holds \d+ values of {name} that are NaN"):
        new_trainer().load_model(path)


@pytest.mark.parametrize("key", ["trainer", "config", "model", "backbones"])
def test_a_checkpoint_that_lacks_a_part_is_refused(tmp_path, key):
    path = tmp_path / "model.pth"
    new_trainer().save_model(path)
    stored = torch.load(path, weights_only=True)
    del stored[key]
    torch.save(stored, path)
    with pytest.raises(InputError, match=f"lacks '{key}'"):
        new_trainer().load_model(path)


def test_a_checkpoint_is_not_read_into_a_trainer_that_prepares_images_otherwise(tmp_path):
    path = tmp_path / "model.pth"
    trainer = new_trainer()
    trainer.save_model(path)
    fresh = new_trainer()
    fresh.train_config = replace(fresh.train_config, normalize="minus1_1")
    with pytest.raises(
        InputError, match=r"trained with normalize \w+, but the trainer has minus1_1"
    ):
        fresh.load_model(path)


def test_a_class_of_the_same_name_in_another_module_is_another_trainer(tmp_path):
    path = tmp_path / "model.pth"
    new_trainer().save_model(path)
    stored = torch.load(path, weights_only=True)
    assert stored["trainer"] == "test_trainer.TinyTrainer"
    torch.save(stored | {"trainer": "elsewhere.TinyTrainer"}, path)
    with pytest.raises(InputError, match=r"is of elsewhere\.TinyTrainer"):
        new_trainer().load_model(path)
    torch.save(stored | {"trainer": "TinyTrainer"}, path)  # as version 0.1 wrote it
    new_trainer().load_model(path)


def test_other_code_of_a_plug_in_is_refused_with_both_hashes_unless_it_is_accepted(tmp_path):
    path = tmp_path / "model.pth"
    new_trainer().save_model(path)
    stored = torch.load(path, weights_only=True)
    torch.save(stored | {"source": "0" * 64}, path)
    with pytest.raises(InputError, match=rf"trained with 0{{64}}, here {stored['source']}"):
        new_trainer().load_model(path)
    (accepted,) = new_trainer().load_model(path, accept_other_weights=True)
    assert "code of test_trainer differs" in accepted


class Hostile:
    """Pickles to a call that writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_a_checkpoint_that_would_run_code_is_refused_and_runs_none(tmp_path):
    path, trace = tmp_path / "model.pth", tmp_path / "trace"
    torch.save({"format": 1, "model": Hostile(trace)}, path)
    with pytest.raises(InputError, match="holds more than tensors"):
        new_trainer().load_model(path)
    assert not trace.exists()
    torch.load(path, weights_only=False)
    assert trace.exists()  # it was hostile indeed


@pytest.mark.parametrize(
    "content", [b"", b"no checkpoint", pickle.dumps({"format": 2}, 2), pickle.dumps([1], 2)]
)
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path, content):
    (tmp_path / "model.pth").write_bytes(content)
    with pytest.raises(InputError, match=r"model\.pth"):
        new_trainer().load_model(tmp_path / "model.pth")


def test_a_truncated_and_a_missing_checkpoint_are_refused(tmp_path):
    path = tmp_path / "model.pth"
    new_trainer().save_model(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match="damaged"):
        new_trainer().load_model(path)
    with pytest.raises(InputError, match="does not exist"):
        new_trainer().load_model(tmp_path / "absent.pth")


# Frozen features


def test_the_frozen_stage_sees_each_training_image_once():
    trainer = new_trainer(num_epochs=5)
    trainer.fit(loaders(Images(10, shuffle=True)))
    assert trainer.model.seen == 10


class AugmentingTrainer(TinyTrainer):
    def augment(self, batch):
        return replace(batch, image=batch.image + torch.rand(()))


def test_images_that_are_augmented_pass_the_frozen_stage_in_every_epoch():
    trainer = AugmentingTrainer(TinyConfig(), TrainConfig(img_size=SIZE, num_epochs=5))
    trainer.fit(loaders(Images(10, shuffle=True)))
    assert trainer.model.seen == 50


def test_a_budget_of_less_than_an_epoch_runs_the_frozen_stage_for_its_steps_only():
    trainer = new_trainer(max_steps=2)
    trainer.fit(loaders(Images(10)))
    assert trainer.model.seen == 8


def fit_within(feature_gb):
    use_settings(replace(get_globals(), feature_gb=feature_gb))
    trainer = new_trainer()
    trainer.fit(loaders())
    return trainer


def test_features_on_disk_train_the_same_model_as_in_memory_and_leave_no_file():
    in_memory, on_disk = fit_within(8.0), fit_within(0.0)
    assert same_state(in_memory, on_disk)
    assert on_disk.model.seen == in_memory.model.seen == 10
    assert list(Path(get_globals().cache_dir).iterdir()) == []
