"""`get_dataloaders`: the right images in the right order, however they are kept."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_datasets import write_custom, write_folder, write_mvtec, write_visa
from PIL import Image
from torchvision.transforms.v2.functional import normalize as torchvision_normalize

from adray.data.decode import decode_image, decode_pair
from adray.data.geometry import Geometry
from adray.data.loaders import get_dataloaders
from adray.data.normalization import NORMALIZATIONS, normalize_images
from adray.errors import InputError
from adray.settings import FolderLayout, get_globals


@pytest.fixture
def settings():
    settings = get_globals()
    write_mvtec(Path(settings.dataset_dir) / "mvtec", train=11)
    return settings


def batches(loader):
    return list(loader)


def same(first, second):
    """Whether two lists of batches are equal bit by bit."""
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        for name in ("image", "label", "index"):
            assert torch.equal(getattr(a, name), getattr(b, name)), name
        assert (a.mask is None) == (b.mask is None)
        assert a.mask is None or torch.equal(a.mask, b.mask)
    return True


def test_batches_hold_what_the_samples_say(settings):
    loaders = get_dataloaders(
        "mvtec", "bottle", img_size=32, crop_size=24, batch_size=4, normalize="none"
    )
    assert loaders.valid is not None
    for loader in (loaders.train, loaders.valid, loaders.test):
        assert len(batches(loader)) == len(loader)
        for batch in loader:
            assert batch.image.dtype == torch.float32
            assert batch.label.dtype == batch.index.dtype == torch.int64
            assert batch.features is None
            for row, i in enumerate(batch.index.tolist()):
                sample = loader.samples[i]
                pair = decode_pair(sample.path, sample.mask_paths, Geometry(32, 24))
                pixels = pair.image
                mask = pair.defect
                assert np.allclose(batch.image[row].numpy(), pixels / np.float32(255), atol=1e-6)
                assert (loader.images(i) == pixels).all()
                assert batch.label[row] == sample.label
                if mask is not None:
                    assert (batch.mask[row, 0].numpy() == mask).all()
                elif batch.mask is not None:
                    assert not batch.mask[row].any()


def test_train_held_out_and_test_images_are_disjoint_and_complete(settings):
    loaders = get_dataloaders("mvtec", "bottle", img_size=32, holdout=0.3)
    parts = [
        {s.path for s in loader.samples} for loader in (loaders.train, loaders.valid, loaders.test)
    ]
    assert [len(part) for part in parts] == [8, 3, 7]
    assert len(set.union(*parts)) == 18
    assert all(s.label == 0 for s in loaders.valid.samples)
    assert get_dataloaders("mvtec", "bottle", img_size=32, holdout=0).valid is None


def test_the_order_of_training_depends_on_seed_and_epoch_alone(settings):
    first = get_dataloaders("mvtec", "bottle", img_size=32, batch_size=3, holdout=0, seed=1).train
    second = get_dataloaders("mvtec", "bottle", img_size=32, batch_size=3, holdout=0, seed=1).train
    other = get_dataloaders("mvtec", "bottle", img_size=32, batch_size=3, holdout=0, seed=2).train
    batches(second)
    second.set_epoch(7)
    batches(second)
    torch.manual_seed(99)
    np.random.seed(99)
    orders = []
    for epoch in (0, 1, 2):
        for loader in (first, second, other):
            loader.set_epoch(epoch)
        assert same(batches(first), batches(second))
        orders += [torch.cat([b.index for b in loader]).tolist() for loader in (first, other)]
    assert len({tuple(order) for order in orders}) == 6
    assert all(sorted(order) == list(range(11)) for order in orders)


def test_evaluation_keeps_the_order_of_the_samples(settings):
    test = get_dataloaders("mvtec", "bottle", img_size=32, batch_size=4, eval_batch_size=3).test
    test.set_epoch(5)
    assert torch.cat([b.index for b in test]).tolist() == list(range(7))
    assert [len(b.label) for b in test] == [3, 3, 1]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("category", ["bottle", "all"])
@pytest.mark.filterwarnings("error::UserWarning")
def test_streamed_and_resident_loaders_yield_equal_batches(settings, workers, category):
    streaming = replace(settings, resident_gb=0.0, num_workers=workers)
    kwargs = {"img_size": 32, "batch_size": 4, "seed": 3}
    resident = get_dataloaders("mvtec", category, settings=settings, **kwargs)
    streamed = get_dataloaders("mvtec", category, settings=streaming, **kwargs)
    for epoch in range(3):
        for a, b in ((resident.train, streamed.train), (resident.test, streamed.test)):
            a.set_epoch(epoch)
            b.set_epoch(epoch)
            assert same(batches(a), batches(b))


def test_neither_loader_moves_the_random_numbers_of_training(settings):
    for chosen in (settings, replace(settings, resident_gb=0.0, num_workers=1)):
        loader = get_dataloaders("mvtec", "bottle", img_size=32, settings=chosen).train
        torch.manual_seed(5)
        before = torch.get_rng_state()
        batches(loader)
        assert torch.equal(torch.get_rng_state(), before)


def test_a_pass_that_stops_early_leaves_the_next_one_whole(settings):
    streaming = replace(settings, resident_gb=0.0, num_workers=1)
    loader = get_dataloaders("mvtec", "bottle", img_size=32, batch_size=2, settings=streaming).train
    whole = batches(loader)
    next(iter(loader))
    assert same(batches(loader), whole)


def test_streaming_survives_a_cache_that_is_deleted_before_the_workers_start(settings):
    streaming = replace(settings, resident_gb=0.0, num_workers=1)
    resident = get_dataloaders("mvtec", "bottle", img_size=32).train
    loader = get_dataloaders("mvtec", "bottle", img_size=32, settings=streaming).train
    shutil.rmtree(settings.cache_dir)
    assert same(batches(loader), batches(resident))


@pytest.mark.gpu
def test_a_gpu_holds_the_same_batches(settings):
    kwargs = {"img_size": 32, "batch_size": 4}
    for chosen in (settings, replace(settings, resident_gb=0.0, num_workers=1)):
        for a, b in zip(
            get_dataloaders("mvtec", "all", **kwargs).test,
            get_dataloaders("mvtec", "all", device="cuda", settings=chosen, **kwargs).test,
            strict=True,
        ):
            assert b.image.is_cuda
            assert torch.allclose(a.image, b.image.cpu(), rtol=1e-6, atol=1e-6)
            assert torch.equal(a.mask, b.mask.cpu())


@pytest.mark.parametrize("how", sorted(NORMALIZATIONS))
def test_normalisation_equals_torchvisions(how):
    images = torch.randint(0, 256, (2, 3, 9, 9), dtype=torch.uint8)
    expected = torchvision_normalize(images.float() / 255, *map(list, NORMALIZATIONS[how]))
    assert torch.allclose(normalize_images(images, how), expected, atol=1e-6)
    assert normalize_images(images, "minus1_1").abs().max() <= 1 + 1e-6


def test_true_and_false_mean_imagenet_and_none(settings):
    for value, name in ((True, "imagenet"), (False, "none")):
        a = get_dataloaders("mvtec", "bottle", img_size=32, normalize=value).test
        assert same(
            batches(a),
            batches(get_dataloaders("mvtec", "bottle", img_size=32, normalize=name).test),
        )


def test_categories_merge_into_one_set_and_share_their_cache_files(settings):
    for category in ("bottle", "wood"):
        get_dataloaders("mvtec", category, img_size=32)
    made = sorted(Path(settings.cache_dir).glob("decoded/*.arrow"))
    merged = get_dataloaders("mvtec", "all", img_size=32, normalize="none", seed=7, holdout=0.2)
    assert sorted(Path(settings.cache_dir).glob("decoded/*.arrow")) == made
    assert len(made) == 2
    assert {s.category for s in merged.train.samples} == {"bottle", "wood"}
    for batch in merged.train:
        for row, i in enumerate(batch.index.tolist()):
            assert (merged.train.images(i) == decode_image(merged.train.samples[i].path, 32)).all()
            assert np.allclose(batch.image[row] * 255, merged.train.images(i), atol=1e-3)


def test_a_category_without_masks_beside_one_with_masks_reads_as_zero_and_untrusted(settings):
    write_mvtec(Path(settings.dataset_dir) / "bare", ("nut",), masks=False)
    loaders = get_dataloaders(["mvtec", "bare"], "all", img_size=32, eval_batch_size=4)
    trusted = [s.label == 0 or s.dataset == "mvtec" for s in loaders.test.samples]
    assert loaders.test.has_mask.tolist() == trusted
    mask = torch.cat([b.mask for b in loaders.test])
    assert (
        mask.flatten(1).any(1).numpy() == [bool(s.mask_paths) for s in loaders.test.samples]
    ).all()
    alone = get_dataloaders("bare", "nut", img_size=32).test
    assert not alone.any_mask
    assert all(b.mask is None for b in alone)


def test_other_layouts_load_too(settings):
    home = Path(settings.dataset_dir)
    write_visa(home / "visa", ("candle",))
    write_custom(home / "custom" / "own")
    write_folder(home / "parts")
    folders = {"parts": FolderLayout("parts", ("ok",), ("ng/dent", "ng/stain"), "masks")}
    chosen = replace(settings, folders=folders)
    for name in ("visa", "own", "parts"):
        loaders = get_dataloaders(name, "all", img_size=32, settings=chosen)
        assert all(len(b.image) for b in loaders.train)
        assert {s.label for s in loaders.test.samples} == {0, 1}


@pytest.fixture
def labelled(settings):
    """Arguments for data whose training split holds 10 normal images and 3 defects with masks."""
    write_visa(Path(settings.dataset_dir) / "visa", ("candle",), train=12, defects=6)
    return {"dataset_type": "visa", "category": "candle", "img_size": 32, "batch_size": 4, "holdout": 0.2,
            "split_mode": "2cls_highshot"}  # fmt: skip


def test_labelled_defects_train_with_their_masks_in_supervised_training_only(labelled):
    plain, supervised = get_dataloaders(**labelled), get_dataloaders(**labelled, supervised=True)
    assert not any(sample.label for sample in plain.train.samples)
    defects = [sample for sample in supervised.train.samples if sample.label]
    assert len(defects) == 3
    assert [s for s in supervised.train.samples if not s.label] == plain.train.samples
    assert supervised.valid.samples == plain.valid.samples
    assert not any(sample.label for sample in plain.valid.samples)
    assert supervised.test.samples == plain.test.samples
    assert not set(defects) & set(plain.test.samples)
    assert supervised.fingerprint == plain.fingerprint
    for batch in supervised.train:
        assert torch.equal(batch.mask.flatten(1).any(1), batch.label == 1)


@pytest.mark.parametrize("resident_gb", [0.0, 8.0])
def test_an_epoch_holds_each_normal_image_once_and_as_many_defects(labelled, settings, resident_gb):
    chosen = replace(settings, resident_gb=resident_gb, num_workers=0)
    train = get_dataloaders(**labelled, supervised=True, settings=chosen).train
    extra = np.zeros(len(train.samples), dtype=int)
    for epoch in range(30):
        train.set_epoch(epoch)
        epoch_batches = batches(train)
        assert len(epoch_batches) == len(train) == 5  # 20 images
        counts = np.bincount(
            torch.cat([b.index for b in epoch_batches]), minlength=len(train.samples)
        )
        label = np.array([sample.label for sample in train.samples])
        assert (counts[label == 0] == 1).all()
        assert sorted(counts[label == 1]) == [3, 3, 4]
        extra += counts == 4
    assert (extra[label == 1] > 3).all()  # each defect has its turn


def test_more_defects_than_normal_images_are_each_seen_once(settings):
    write_folder(Path(settings.dataset_dir) / "parts", normal=4, defects=40)
    folders = {"parts": FolderLayout("parts", ("ok",), ("ng/dent", "ng/stain"), "masks")}
    chosen = replace(settings, folders=folders)
    train = get_dataloaders(
        "parts", "all", img_size=32, train_defects=0.5, supervised=True, holdout=0, settings=chosen
    ).train
    assert sorted(torch.cat([b.index for b in train]).tolist()) == list(range(3 + 20))


def test_supervised_training_refuses_data_without_labelled_defects_or_without_masks(settings):
    write_custom(Path(settings.dataset_dir) / "custom" / "own", ("a",))
    with pytest.raises(
        InputError, match="mvtec/bottle: the training split has no labelled defects"
    ):
        get_dataloaders("mvtec", "bottle", img_size=32, supervised=True)
    with pytest.raises(InputError, match="own/a: 4 of 4 labelled training defects have no mask"):
        get_dataloaders("own", "a", img_size=32, train_defects=0.5, supervised=True)


def test_the_fingerprint_changes_with_the_data_and_not_with_the_loader(settings):
    first = get_dataloaders("mvtec", "bottle", img_size=32).fingerprint
    assert get_dataloaders("mvtec", "bottle", img_size=40, batch_size=2).fingerprint == first
    path = get_dataloaders("mvtec", "bottle", img_size=32).test.samples[0].path
    Image.new("RGB", (64, 64)).save(path)
    assert get_dataloaders("mvtec", "bottle", img_size=32).fingerprint != first


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"img_size": 4}, "img_size is 4"),
        ({"img_size": 32, "crop_size": 40}, "crop_size 40 exceeds img_size 32"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"eval_batch_size": -1}, "eval_batch_size is -1"),
        ({"normalize": "imagnet"}, "did you mean 'imagenet'"),
        ({"holdout": 1.0}, "holdout"),
    ],
)
def test_values_that_cannot_be_are_refused(settings, wrong, words):
    with pytest.raises(InputError, match=words):
        get_dataloaders("mvtec", "bottle", **wrong)


def test_a_category_without_normal_training_images_is_refused(settings):
    for path in (Path(settings.dataset_dir) / "mvtec" / "wood" / "train" / "good").iterdir():
        path.unlink()
    with pytest.raises(InputError, match="wood"):
        get_dataloaders("mvtec", "all", img_size=32)


def test_one_training_image_is_enough_and_none_is_held_out(settings, caplog):
    write_mvtec(Path(settings.dataset_dir) / "tiny", ("one",), train=1)
    loaders = get_dataloaders("tiny", "one", img_size=32)
    assert len(loaders.train.samples) == 1
    assert loaders.valid is None
    assert "too few" in caplog.text


def test_real_images_load(shared):
    chosen = replace(get_globals(), dataset_dir=str(shared / "datasets"))
    loaders = get_dataloaders("mvtec", "hazelnut", img_size=64, settings=chosen)
    assert len(loaders.train.samples) + len(loaders.valid.samples) == 28
    assert sum(int(b.label.sum()) for b in loaders.test) == 17
