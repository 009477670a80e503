"""Frozen features and coresets in files: the same scores for less work, and damage costs time only."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_datasets import save, write_mvtec

from adray.components import shared_coreset, shared_features
from adray.components.k_center_greedy import k_center_greedy, k_center_passes
from adray.conditions import PLAIN, Condition
from adray.data.loaders import get_dataloaders
from adray.registry import ModelRegistry
from adray.settings import Settings, use_settings
from adray.types import Sharing

TRAIN = {"img_size": 64, "batch_size": 4, "holdout": 0.2}
MODEL = {"weights": "random", "coreset_ratio": 0.05}
SHARED = Sharing(("layer2", "layer3"), 0.05)


@pytest.fixture
def site(tmp_path):
    """A small data set and caches of their own."""
    write_mvtec(
        tmp_path / "datasets" / "mvtec", categories=("bottle",), train=10, good=4, defects=6
    )
    settings = Settings(dataset_dir=str(tmp_path / "datasets"), cache_dir=str(tmp_path / "cache"))
    use_settings(settings)
    return settings


class Trial:
    """A training and its scores, with the images that went through the backbone counted.

    Args:
        meddle: called between training and scoring.
    """

    def __init__(
        self,
        name="patchcore-resnet18",
        sharing=None,
        meddle=None,
        seed=1,
        condition=PLAIN,
        **model,
    ):
        model = (
            {**MODEL, **model} if name.startswith("patchcore") else {"weights": "random", **model}
        )
        self.trainer = ModelRegistry.get_trainer(name, train=TRAIN, model=model, seed=seed)
        self.trainer.sharing = sharing
        self.images = 0
        self.trainer.model.extractor.register_forward_hook(self._count)
        loaders = get_dataloaders(
            "mvtec",
            "bottle",
            img_size=64,
            batch_size=4,
            holdout=0.2,
            seed=seed,
            condition=condition,
        )
        self.trainer.fit(loaders)
        if meddle is not None:
            meddle()
        self.scores = self.trainer.predict(loaders.test)
        self.built = [work.kind for work in self.trainer.shared_work if work.built]

    def _count(self, _module, args, _out):
        self.images += len(args[0])

    def agrees(self, other):
        names = ["pred_score", *(["anomaly_map"] if self.scores.anomaly_map is not None else [])]
        pairs = [(getattr(trial.scores, name) for trial in (self, other)) for name in names]
        return all(np.allclose(mine, theirs, rtol=1e-5, atol=1e-6) for mine, theirs in pairs)


def files(site, pattern="*.rows"):
    return sorted((Path(site.cache_dir) / "features").glob(pattern))


def test_a_trial_by_itself_writes_nothing(site):
    assert Trial().images == 18  # those that are held out are not asked for
    assert not (Path(site.cache_dir) / "features").exists()


def test_models_that_tap_different_layers_share_one_pass(site):
    wanted = Sharing(("layer1", "layer2", "layer3", "layer4"))
    alone = {name: Trial(name) for name in ("padim", "patchcore-resnet18", "dfm-resnet18", "dfkde")}
    shared = {name: Trial(name, wanted) for name in alone}
    assert [trial.built.count("features") for trial in shared.values()] == [1, 0, 0, 0]
    assert [trial.images for trial in shared.values()] == [
        0,
        0,
        0,
        0,
    ]  # the pass was of a network with all the taps
    assert len(files(site, "*-layer?.rows")) == 4
    for name, trial in shared.items():
        assert trial.agrees(alone[name])


@pytest.mark.parametrize("name", ["padim", "patchcore-resnet18"])
def test_conditions_read_the_features_of_the_plain_case_and_run_no_backbone(site, name):
    few = Condition(k_shot=4)
    assert Trial(name, condition=few).images == 4 + 10  # those that train and those that test
    alone = Trial(name, condition=few)
    wanted = Sharing(("layer1", "layer2", "layer3"), 0.05)
    plain = Trial(name, wanted)
    shared = Trial(name, wanted, condition=few)
    assert (shared.images, shared.built.count("features")) == (0, 0)
    assert shared.agrees(alone)
    assert not shared.agrees(plain)


def test_features_that_are_there_serve_a_trial_by_itself_too(site):
    Trial(sharing=SHARED)
    assert Trial().images == 0


def test_other_weights_and_a_changed_image_get_features_of_their_own(site):
    Trial(sharing=SHARED)
    assert Trial(seed=2, sharing=SHARED).built.count("features") == 1
    save(Path(site.dataset_dir) / "mvtec" / "bottle" / "train" / "good" / "000.png", 77, 64)
    changed = Trial(sharing=SHARED)
    assert changed.built.count("features") == 1
    assert changed.agrees(Trial(sharing=None))


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 8
    path.write_bytes(content)


def delete(path):
    path.unlink()


def empty(path):
    path.write_bytes(b"")


DAMAGE = [truncate, flip, delete, empty]


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("pattern", ["*-layer3.rows", "*-layer2.json", "*.rows"])
def test_damage_before_a_trial_costs_time_only(site, damage, pattern):
    direct = Trial()
    Trial(sharing=SHARED)
    for path in files(site, pattern):
        damage(path)
    after = Trial(sharing=SHARED)
    assert after.agrees(direct)
    assert after.images > 0 or "features" in after.built
    assert Trial(sharing=SHARED).agrees(direct)
    assert Trial(sharing=SHARED).images == 0  # by now the files are whole again


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_in_the_middle_of_a_trial_costs_time_only(site, damage):
    direct = Trial()
    Trial(sharing=SHARED)
    assert Trial(sharing=SHARED, meddle=lambda: [damage(path) for path in files(site)]).agrees(
        direct
    )


def test_a_cache_deleted_in_the_middle_of_a_trial_is_made_anew_by_the_next(site):
    direct = Trial()
    assert Trial(
        sharing=SHARED, meddle=lambda: [path.unlink() for path in files(site, "*")]
    ).agrees(direct)
    assert Trial(sharing=SHARED).agrees(direct)
    assert Trial(sharing=SHARED).images == 0


@pytest.mark.parametrize("gigabytes", [0.0, 1e-5, 4e-4])
def test_a_limit_too_small_for_all_costs_time_only(site, gigabytes):
    direct = Trial()
    use_settings(replace(site, shared_feature_gb=gigabytes))
    assert Trial(sharing=SHARED).agrees(direct)
    assert sum(path.stat().st_size for path in files(site)) <= gigabytes * 1e9


def test_a_folder_that_cannot_be_made_costs_time_only(site, caplog):
    direct = Trial()
    (Path(site.cache_dir) / "features").write_text("a file where the folder should be")
    assert Trial(sharing=SHARED).agrees(direct)
    assert "cannot be used" in caplog.text


def test_a_trial_goes_on_by_itself_where_the_builder_takes_too_long(site, monkeypatch):
    direct = Trial()
    Trial(sharing=SHARED)
    groups = {path.name.partition("-")[0].removesuffix(".rows") for path in files(site)}
    for path in files(site):
        path.unlink()
    monkeypatch.setattr(shared_features, "WAIT_SECONDS", 0.1)
    monkeypatch.setattr(shared_coreset, "WAIT_SECONDS", 0.1)
    hold = "import fcntl, sys, time\nfor p in sys.argv[1:]: f = open(p, 'w'); fcntl.flock(f, 2); globals()[p] = f\n"
    locks = [str(Path(site.cache_dir) / "features" / f"{group}.lock") for group in groups]
    holder = subprocess.Popen(
        [sys.executable, "-c", f"{hold}print('held', flush=True); time.sleep(60)", *locks],
        stdout=subprocess.PIPE,
    )
    try:
        assert holder.stdout.readline() == b"held\n"
        waiting = Trial(sharing=SHARED)
    finally:
        holder.kill()
        holder.wait()
    assert waiting.agrees(direct)
    assert waiting.images == 18
    assert files(site) == []


def test_what_a_killed_builder_left_is_swept_and_built_again(site):
    Trial(sharing=SHARED)
    for path in files(site):
        path.rename(path.with_name(f".{path.stem}.0a1b2c3d.tmp.rows"))
    again = Trial(sharing=SHARED)
    assert "features" in again.built
    assert files(site, ".*.tmp.*") == []


def test_a_larger_selection_goes_on_where_a_smaller_one_stopped():
    features = torch.randn(900, 12, generator=torch.Generator().manual_seed(3))
    whole = k_center_greedy(features, 300, torch.Generator().manual_seed(5))
    earlier = k_center_passes(features, 40, torch.Generator().manual_seed(5))
    assert torch.equal(torch.cat(earlier)[:40], whole[:40])
    assert torch.equal(torch.cat(k_center_passes(features, 300, earlier=earlier))[:300], whole)


def test_twenty_settings_of_patchcore_cost_one_pass_and_one_selection(site, monkeypatch):
    calls = []
    monkeypatch.setattr(
        shared_coreset,
        "k_center_passes",
        lambda *args: calls.append(args[1]) or k_center_passes(*args),
    )
    settings = [(ratio, count) for ratio in (0.02, 0.2, 0.05, 0.1, 0.01) for count in (1, 3, 5, 9)]
    wanted = Sharing(("layer2", "layer3"), 0.2, same_coreset=True)
    trials = {(r, k): Trial(sharing=wanted, coreset_ratio=r, num_neighbors=k) for r, k in settings}
    built = [kind for trial in trials.values() for kind in trial.built]
    assert {kind: built.count(kind) for kind in built} == {
        "features": 1,
        "coreset": 1,
        "neighbors": 5,
    }
    assert len(calls) == 1
    assert sum(trial.images for trial in trials.values()) == 20
    for (ratio, count), trial in trials.items():
        if count in (1, 9):
            use_settings(replace(site, shared_feature_gb=0))
            assert trial.agrees(Trial(coreset_ratio=ratio, num_neighbors=count))


def test_a_larger_coreset_than_was_foreseen_extends_the_stored_one(site):
    direct = Trial(coreset_ratio=0.2)
    Trial(sharing=SHARED)
    (before,) = [path for path in files(site) if "-" not in path.name]
    small = json.loads(before.with_suffix(".json").read_text().partition(" ")[2])["passes"]
    larger = Trial(sharing=SHARED, coreset_ratio=0.2)
    grown = json.loads(before.with_suffix(".json").read_text().partition(" ")[2])["passes"]
    assert grown[: len(small)] == small
    assert len(grown) > len(small)
    assert larger.agrees(direct)
    assert larger.built == ["coreset"]


def test_its_share_of_the_common_work_stands_beside_what_a_trial_did_itself(site):
    builder, reader = Trial(sharing=SHARED), Trial(sharing=SHARED)
    made, used = (
        {work.kind: work for work in trial.trainer.shared_work} for trial in (builder, reader)
    )
    for kind in ("features", "coreset"):
        assert made[kind].built
        assert not used[kind].built
        assert made[kind].key == used[kind].key
        assert made[kind].build_seconds == pytest.approx(used[kind].build_seconds)
        assert 0 < used[kind].alone_seconds <= used[kind].build_seconds
