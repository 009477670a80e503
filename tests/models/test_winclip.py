"""WinCLIP against slow loops, open_clip's own encoders and anomalib; CLIP itself is the narrow one of tiny.py."""

from __future__ import annotations

import importlib.metadata
import json
import logging
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import open_clip
import pytest
import tiny  # noqa: F401  makes the architecture small in this process
import torch
from fake_datasets import write_mvtec
from scipy.spatial.distance import cdist
from scipy.special import softmax
from scipy.stats import hmean
from torch import nn

from adray.components.backbone import BACKBONE_WEIGHT_FILES
from adray.components.class_names import CLASS_NAMES, class_name
from adray.config import TrainConfig
from adray.data.loaders import get_dataloaders
from adray.data.normalization import NORMALIZATIONS
from adray.errors import InputError
from adray.methods.winclip import INPUT_SIZE
from adray.models import winclip
from adray.models.winclip import (
    ANOMALOUS_STATES,
    ARCHITECTURE,
    BACKBONE,
    GRID,
    NORMAL_STATES,
    TEMPLATES,
    WinclipConfig,
    WinclipModel,
    WinclipTrainer,
    association,
    build_clip,
    choose_references,
    harmonic_map,
    load_clip,
    prompts,
    text_embeddings,
    window_patches,
)
from adray.settings import get_globals

TRAIN = TrainConfig(img_size=INPUT_SIZE, normalize="clip", batch_size=4, holdout=0.0)
PUBLIC = {
    "mvtec": "bottle cable capsule carpet grid hazelnut leather metal_nut pill screw tile toothbrush transistor wood "
    "zipper",
    "visa": "candle capsules cashew chewinggum fryum macaroni1 macaroni2 pcb1 pcb2 pcb3 pcb4 pipe_fryum",
    "btad": "01 02 03",
}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def clip():
    torch.manual_seed(1)
    return load_clip(None)


def images(count, seed=0):
    return torch.randn(
        count, 3, INPUT_SIZE, INPUT_SIZE, generator=torch.Generator().manual_seed(seed)
    )


def covered(scale):
    """The patches of each window, row by row, written as a loop."""
    places = range(GRID - scale + 1)
    return [
        [
            row * GRID + column
            for row in range(top, top + scale)
            for column in range(left, left + scale)
        ]
        for top in places
        for left in places
    ]


def slow_harmonic(scores, scale):
    """(B, W) to (B, P) by scipy, one patch after the other."""
    windows = covered(scale)
    return np.stack(
        [
            hmean(scores[:, [w for w, window in enumerate(windows) if patch in window]], axis=1)
            for patch in range(GRID * GRID)
        ],
        axis=1,
    )


def new_model(references=0, scales=(2, 3)):
    model = WinclipModel(WinclipConfig(scales=scales, weights="random")).eval()
    model.text = nn.functional.normalize(torch.randn(2, 32), dim=1)
    if references:
        model.remember([model.tower(images(references, 7))])
    return model


# Sentences and names


def test_there_are_147_normal_and_84_anomalous_sentences_all_different():
    normal, anomalous = prompts(NORMAL_STATES, "metal nut"), prompts(ANOMALOUS_STATES, "metal nut")
    assert (len(TEMPLATES), len(normal), len(anomalous)) == (21, 7 * 21, 4 * 21)
    assert len({*normal, *anomalous}) == 231
    assert "a photo of a metal nut." in normal
    assert "a close-up photo of the metal nut without flaw." in normal
    assert "a dark photo of the damaged metal nut." in anomalous
    assert "a photo of a metal nut with defect for visual inspection." in anomalous
    assert not any("{" in sentence for sentence in normal + anomalous)


def test_every_public_category_has_a_name_in_plain_words():
    assert set(CLASS_NAMES) == {category for names in PUBLIC.values() for category in names.split()}
    assert all(name.replace(" ", "").isalpha() and name.islower() for name in CLASS_NAMES.values())
    assert CLASS_NAMES["metal_nut"] == "metal nut"
    assert CLASS_NAMES["pcb1"] == "printed circuit board"


def test_a_users_name_wins_and_an_unknown_folder_is_read_as_words():
    assert class_name("01", {"01": "wheel"}) == "wheel"
    assert class_name("left_door_handle", {}) == "left door handle"


def test_an_empty_name_is_refused():
    with pytest.raises(InputError, match=r"class_names\.lid is empty"):
        WinclipConfig(class_names={"lid": " "})


@torch.no_grad()
def test_the_text_vectors_are_the_mean_over_sentences_encoded_one_by_one(clip):
    tokenizer = open_clip.SimpleTokenizer()
    slow = []
    for states in (NORMAL_STATES, ANOMALOUS_STATES):
        vectors = [
            clip.encode_text(tokenizer(sentence)).numpy()[0]
            for name in ("pill", "metal nut")
            for sentence in prompts(states, name)
        ]
        mean = np.mean(vectors, axis=0)
        slow.append(mean / np.linalg.norm(mean))
    merged = text_embeddings(clip, ["pill", "metal nut"], torch.device("cpu")).numpy()
    np.testing.assert_allclose(merged, slow, atol=1e-5)


# Windows


@pytest.mark.parametrize(("scale", "count"), [(1, 225), (2, 196), (3, 169), (15, 1)])
def test_windows_cover_the_patches_a_loop_gives(scale, count):
    windows = window_patches(GRID, scale)
    assert windows.shape == (count, scale * scale)
    assert windows.tolist() == covered(scale)


@pytest.mark.parametrize("scale", [2, 3])
def test_each_patch_gets_the_harmonic_mean_of_its_windows(scale):
    model = new_model()
    scores = torch.rand(3, len(window_patches(GRID, scale))) + 1e-3
    fast = harmonic_map(scores, model.get_buffer(f"covers_{scale}"))
    np.testing.assert_allclose(
        fast.numpy(), slow_harmonic(scores.double().numpy(), scale), rtol=1e-5
    )


def test_a_window_score_of_zero_makes_its_patches_zero_and_not_infinite():
    model = new_model()
    scores = torch.full((1, 196), 0.5)
    scores[0, 0] = 0.0
    patches = harmonic_map(scores, model.get_buffer("covers_2"))[0]
    inside = torch.isin(torch.arange(225), torch.tensor(covered(2)[0]))
    assert patches[inside].max() < 1e-9
    assert torch.allclose(patches[~inside], torch.tensor(0.5))


# CLIP's image tower


def test_the_architecture_that_open_clip_ships_has_the_size_and_grid_that_are_built_in():
    shipped = Path(open_clip.__file__).parent / "model_configs" / f"{ARCHITECTURE}.json"
    vision = json.loads(shipped.read_text())["vision_cfg"]
    assert vision["image_size"] == INPUT_SIZE
    assert vision["image_size"] // vision["patch_size"] == GRID


def test_the_loader_normalises_as_clip_does():
    assert NORMALIZATIONS["clip"] == (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)


@torch.no_grad()
def test_image_and_patches_are_those_of_open_clips_own_encoder():
    tower = new_model().tower
    seen = tower(images(9))  # one more than go through at once
    assert torch.allclose(seen.image, tower.net(images(9)), atol=1e-5)
    tower.net.output_tokens = True
    assert torch.allclose(seen.patches, tower.net(images(9))[1], atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("which", [0, 1])
def test_windows_are_encoded_as_by_a_slow_loop_that_hides_all_other_patches(which):
    tower = new_model().tower
    net, image = tower.net, images(2)
    patches = net.conv1(image).flatten(2).transpose(1, 2)
    for w, window in list(enumerate(covered(tower.scales[which])))[::20]:
        for b in range(len(image)):
            tokens = [net.class_embedding + net.positional_embedding[0]]
            tokens += [patches[b, p] + net.positional_embedding[p + 1] for p in window]
            alone = (
                net.ln_post(net.transformer(net.ln_pre(torch.stack(tokens)[None])))[0, 0] @ net.proj
            )
            assert torch.allclose(tower(image).windows[which][b, w], alone, atol=1e-5)


# Scores


def test_unlikeness_is_half_the_least_cosine_distance():
    queries, references = torch.randn(2, 5, 8), torch.randn(7, 8)
    slow = (
        cdist(queries.flatten(0, 1).double().numpy(), references.double().numpy(), "cosine").min(1)
        / 2
    )
    fast = association(queries, nn.functional.normalize(references, dim=1))
    np.testing.assert_allclose(fast.flatten().numpy(), slow, atol=1e-6)


def test_many_queries_are_compared_part_by_part(monkeypatch):
    queries, references = torch.randn(2, 50, 8), nn.functional.normalize(torch.randn(7, 8), dim=1)
    whole = association(queries, references)
    monkeypatch.setattr(winclip, "_CHUNK_BYTES", 4 * 7 * 9)
    assert torch.allclose(association(queries, references), whole, atol=1e-6)


def slow_text(embedding, model):
    unit = embedding / np.linalg.norm(embedding, axis=-1, keepdims=True)
    return softmax(unit @ model.text.double().numpy().T / model.temperature, axis=-1)[..., 1]


@torch.no_grad()
@pytest.mark.parametrize("references", [0, 2])
def test_map_and_score_are_those_of_the_equations(references):
    model = new_model(references)
    seen, prediction = model.tower(images(3)), model(images(3))
    score = slow_text(seen.image.double().numpy(), model)
    maps = [np.repeat(score[:, None], GRID * GRID, 1)]
    maps += [
        slow_harmonic(slow_text(w.double().numpy(), model), s)
        for s, w in zip((2, 3), seen.windows, strict=True)
    ]
    expected = hmean(np.stack(maps), axis=0)
    if references:
        known = model.tower(images(references, 7))
        pairs = zip([seen.patches, *seen.windows], [known.patches, *known.windows], strict=True)
        unlike = [
            np.stack(
                [
                    cdist(one, k.flatten(0, 1).double().numpy(), "cosine").min(1) / 2
                    for one in q.double().numpy()
                ]
            )
            for q, k in pairs
        ]
        visual = np.mean(
            [unlike[0], slow_harmonic(unlike[1], 2), slow_harmonic(unlike[2], 3)], axis=0
        )
        expected, score = (expected + visual) / 2, (score + visual.max(1)) / 2
    np.testing.assert_allclose(prediction.pred_score.numpy(), score, atol=1e-5)
    grown = nn.functional.interpolate(
        torch.from_numpy(expected).view(3, 1, GRID, GRID), (INPUT_SIZE, INPUT_SIZE), mode="bilinear"
    )
    np.testing.assert_allclose(prediction.anomaly_map.numpy(), grown.numpy(), atol=1e-5)
    assert prediction.anomaly_map.min() >= 0
    assert prediction.anomaly_map.max() <= 1


@torch.no_grad()
def test_a_reference_is_like_itself_and_another_image_is_not():
    model = new_model(2)
    visual = model.visual_map(model.tower(torch.cat([images(2, 7), images(1, 8)])))
    assert visual[:2].max() < 1e-6
    assert visual[2].min() > 1e-3


@torch.no_grad()
def test_other_scales_than_the_papers_have_their_own_windows():
    model = new_model(1, scales=(1, 4, 15))
    assert [len(w[0]) for w in model.tower(images(1)).windows] == [225, 144, 1]
    assert model(images(1)).anomaly_map.shape == (1, 1, INPUT_SIZE, INPUT_SIZE)


@pytest.mark.parametrize("scales", [(), (3, 2), (2, 2), (0, 2), (2, 16)])
def test_scales_that_cannot_be_are_refused(scales):
    with pytest.raises(InputError, match="scales"):
        WinclipConfig(scales=scales)


# References


def samples(*rows):
    return [
        SimpleNamespace(dataset="mvtec", category=category, label=label) for category, label in rows
    ]


def test_references_are_normal_of_every_category_and_drawn_by_the_seed():
    many = samples(*[("bottle", 0)] * 30, *[("wood", 0)] * 30, *[("wood", 1)] * 30, ("lid", 0))
    chosen = choose_references(many, 4, 42)
    assert [many[i].label for i in chosen] == [0] * 9
    assert sorted(many[i].category for i in chosen) == ["bottle"] * 4 + ["lid"] + ["wood"] * 4
    assert len(set(chosen.tolist())) == 9
    assert torch.equal(chosen, choose_references(many, 4, 42))
    assert not torch.equal(chosen, choose_references(many, 4, 43))
    assert len(choose_references(many, 0, 42)) == 0


@pytest.fixture
def merged():
    """Loaders of two categories, one of which has a name that the table lacks."""
    settings = get_globals()
    write_mvtec(
        Path(settings.dataset_dir) / "mvtec",
        categories=("metal_nut", "left_lid"),
        train=5,
        good=1,
        defects=1,
        size=32,
    )
    return get_dataloaders(
        "mvtec",
        ["metal_nut", "left_lid"],
        img_size=INPUT_SIZE,
        batch_size=4,
        normalize="clip",
        holdout=0.0,
        seed=1,
    )


def test_a_merged_trial_has_references_of_each_category_and_the_mean_of_their_sentences(
    merged, caplog
):
    trainer = WinclipTrainer(WinclipConfig(k_shot=2, weights="random"), TRAIN, seed=5)
    with caplog.at_level(logging.WARNING):
        trainer.fit(merged)
    assert "WinCLIP calls left_lid 'left lid'" in caplog.text
    assert "metal_nut" not in caplog.text
    assert trainer.model.text.shape == (2, 32)
    assert len(trainer.model.reference_patches) == 2 * 2 * 225
    assert len(trainer.model.reference_windows_3) == 2 * 2 * 169
    chosen = choose_references(merged.train.samples, 2, 5)
    batch = {int(i): image for b in merged.train for i, image in zip(b.index, b.image, strict=True)}
    with torch.no_grad():
        seen = trainer.model.tower(torch.stack([batch[int(i)] for i in chosen]))
    assert trainer.model.visual_map(seen).max() < 1e-6


def test_a_given_name_is_used_without_a_word(merged, caplog):
    trainer = WinclipTrainer(
        WinclipConfig(class_names={"left_lid": "lid"}, weights="random"), TRAIN
    )
    with caplog.at_level(logging.WARNING):
        assert trainer.product_names(["left_lid", "metal_nut"]) == ["lid", "metal nut"]
    assert not caplog.records


# What the plan asks


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"img_size": 256}, "input size 256 does not suit WinCLIP.*set img_size to 240"),
        ({"normalize": "imagenet"}, "normalize 'imagenet' does not suit WinCLIP.*use clip"),
    ],
)
def test_inputs_that_clip_does_not_take_are_refused(changes, said):
    train = TrainConfig(**{"img_size": 240, "normalize": "clip"} | changes)
    with pytest.raises(InputError, match=said):
        WinclipTrainer.check_inputs(WinclipConfig(), train)


def test_without_open_clip_the_plan_says_what_to_install(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(
        InputError, match=r"open_clip, which is not installed; run pip install 'adray\[clip\]'"
    ):
        WinclipTrainer.check_inputs(WinclipConfig(), TRAIN)


def test_an_open_clip_with_the_old_order_of_tokens_is_refused(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda _name: "2.24.0")
    with pytest.raises(InputError, match=r"open_clip_torch 3 or newer, not 2\.24\.0"):
        WinclipTrainer.check_inputs(WinclipConfig(), TRAIN)


def write_weights(state):
    path = Path(get_globals().backbone_dir) / BACKBONE_WEIGHT_FILES[BACKBONE].paths[0]
    path.parent.mkdir(parents=True)
    torch.save(state, path)
    return path


def check(path):
    WinclipTrainer.check_weight_file(WinclipConfig(), BACKBONE, path)


@torch.no_grad()
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_file_is_read_in_half_precision_and_from_a_training_on_several_devices(clip, prefix):
    half = {prefix + name: value.half() for name, value in clip.state_dict().items()}
    path = write_weights({"epoch": 31, "state_dict": half})
    check(path)
    tower = winclip.ClipImageTower(WinclipConfig())
    assert tower.weight_file == path
    assert {p.dtype for p in tower.parameters()} == {torch.float32}
    assert not any(p.requires_grad for p in tower.parameters())
    assert torch.allclose(tower(images(1)).image, clip.encode_image(images(1)), atol=5e-3)
    words = text_embeddings(load_clip(path), ["pill"], torch.device("cpu"))
    assert torch.allclose(words, text_embeddings(clip, ["pill"], torch.device("cpu")), atol=5e-3)


def test_truncated_foreign_hostile_and_wrongly_sized_files_are_refused(clip, tmp_path):
    state = clip.state_dict()
    path = write_weights(state)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match="truncated or damaged"):
        check(path)
    torch.save({"conv1.weight": torch.zeros(3)}, path)
    with pytest.raises(InputError, match="another network: it lacks"):
        check(path)
    torch.save(state | {"visual.proj": torch.zeros(64, 512)}, path)
    with pytest.raises(InputError, match=r"visual\.proj has shape"):
        check(path)
    torch.save({"state_dict": build_clip}, path)
    with pytest.raises(InputError, match="holds more than tensors"):
        check(path)


# A peer


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("k_shot", [0, 2])
def test_scores_and_maps_are_those_of_anomalib(monkeypatch, k_shot):
    peer = pytest.importorskip("anomalib.models.image.winclip.torch_model")
    monkeypatch.setattr(peer, "PRETRAINED", None)
    monkeypatch.setattr("anomalib.models.image.winclip.prompting.TEMPLATES", list(TEMPLATES))
    theirs, clip = peer.WinClipModel().eval(), load_clip(None)
    theirs.clip.load_state_dict(clip.state_dict())
    order_tokens_as_before(theirs, monkeypatch)
    theirs.setup("metal nut", images(k_shot, 7) if k_shot else None)
    ours = new_model()
    ours.tower.net.load_state_dict(clip.visual.state_dict())
    ours.text = text_embeddings(clip, ["metal nut"], torch.device("cpu"))
    if k_shot:
        ours.remember([ours.tower(images(k_shot, 7))])
    mine, other = ours(images(3)), theirs(images(3))
    np.testing.assert_allclose(mine.pred_score.numpy(), other.pred_score.numpy(), atol=1e-4)
    np.testing.assert_allclose(mine.anomaly_map[:, 0].numpy(), other.anomaly_map.numpy(), atol=1e-4)


def order_tokens_as_before(theirs, monkeypatch):
    """anomalib hands windows over tokens first, as open_clip's transformer took them before 2.26."""
    transformer, get_windows = theirs.clip.visual.transformer, theirs._get_window_embeddings
    forward = transformer.forward

    def tokens_first(feature_map, masks):
        transformer.forward = lambda tokens: forward(tokens.transpose(0, 1)).transpose(0, 1)
        try:
            return get_windows(feature_map, masks)
        finally:
            transformer.forward = forward

    monkeypatch.setattr(theirs, "_get_window_embeddings", tokens_first)
