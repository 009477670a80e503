"""Images added to a trained model, and taken away: as a new fit on all, with the promise kept."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from fake_datasets import write_mvtec

from adray import update
from adray.__main__ import main as adray
from adray.audit import known_images
from adray.cli.update import main
from adray.cross import Refit
from adray.data.loaders import get_dataloaders
from adray.errors import InputError
from adray.files import file_sha256
from adray.predict import load_predictor
from adray.registry import ModelRegistry
from adray.results.store import UPDATED, partial_folder
from adray.results.trial_files import find_checkpoint
from adray.settings import Settings, use_settings
from adray.train import train
from adray.update import update_trial, updating_configurations

SIZE = 56
TRANSFORMER = {"backbone": "dinov2_vits14", "weights": "random"}
EXACT = {
    "padim": {"num_features": 20, "weights": "random"},
    "dfm-resnet18": {"weights": "random"},
    "dfkde": {"weights": "random"},
    "subspacead-small-448": {**TRANSFORMER, "layers": ("blocks.0", "blocks.1")},
    "rad-small-448": {**TRANSFORMER, "layers": ("blocks.0", "blocks.1"), "num_images": 3},
    "musc-small-448": {**TRANSFORMER, "layers": ("blocks.0", "blocks.1")},
}
BANKS = {
    "patchcore-resnet18": {"weights": "random", "coreset_ratio": 0.3},
    "anomalydino-small-448": {**TRANSFORMER, "layer": "blocks.1", "coreset_ratio": 0.3},
    "mhpatchcore-resnet18": {"weights": "random", "bank_size": 100},
}

GONE = 99_999_999
"""A process that is not there."""


@pytest.fixture
def site(tmp_path, own_settings, one_thread):
    """A small data set, a folder of further normal images, and where results go."""
    write_mvtec(
        tmp_path / "data" / "mvtec", categories=("bottle",), train=12, good=4, defects=6, size=SIZE
    )
    write_mvtec(tmp_path / "other" / "mvtec", categories=("cable",), train=18, size=SIZE)
    # The images of a category are the same for each number, so the first ones would be known.
    (tmp_path / "more").mkdir()
    for path in sorted((tmp_path / "other/mvtec/cable/train/good").glob("*.png"))[12:]:
        shutil.copy(path, tmp_path / "more" / path.name)
    settings = Settings(
        dataset_dir=str(tmp_path / "data"),
        output_dir=str(tmp_path / "outputs"),
        cache_dir=str(tmp_path / "cache"),
    )
    use_settings(settings)
    return tmp_path


def refit_of(name, model):
    """A trainer of which each fit takes features from memory, and its loaders."""
    trainer = ModelRegistry.get_trainer(
        name,
        train={"img_size": SIZE, "crop_size": None, "batch_size": 4, "holdout": 0.0},
        model=model,
        seed=1,
    )
    loaders = get_dataloaders("mvtec", "bottle", img_size=SIZE, batch_size=4, holdout=0.0, seed=1)
    return Refit(trainer, loaders)


class Nothing:
    """No images."""

    samples = ()

    def __len__(self):
        return 0

    def __iter__(self):
        return iter(())


def scores_of(refit):
    scores = refit.trainer.predict(refit.loaders.test)
    maps = scores.anomaly_map
    return scores.pred_score if maps is None else np.append(scores.pred_score, maps)


@pytest.mark.parametrize("name", EXACT)
def test_an_update_is_a_new_fit_on_all_images_and_back(site, name):
    refit = refit_of(name, EXACT[name])
    everything, first, rest = np.arange(12), np.arange(7), np.arange(7, 12)
    refit.fit(everything)
    whole = scores_of(refit)
    refit.fit(first)
    before = scores_of(refit)

    refit.trainer.update(7, refit.images(rest), Nothing())
    largest = np.abs(whole).max()
    np.testing.assert_allclose(scores_of(refit), whole, rtol=0, atol=1e-6 * largest)
    refit.trainer.update(12, Nothing(), refit.images(rest))
    np.testing.assert_allclose(scores_of(refit), before, rtol=0, atol=1e-6 * largest)
    assert not np.allclose(before, whole, rtol=1e-3)


@pytest.mark.parametrize("name", BANKS)
def test_a_bank_becomes_a_coreset_of_itself_and_the_new_patches_within_the_bound(site, name):
    refit = refit_of(name, BANKS[name])
    refit.fit(np.arange(12))
    size = len(refit.trainer.model.memory_bank)
    refit.fit(np.arange(7))
    old = refit.trainer.model.memory_bank.clone()
    seen = []
    for batch in refit.images(np.arange(12)):
        model = refit.trainer.model
        if name.startswith("patchcore"):
            seen.append(model.embed(batch.features).flatten(0, 1))
        elif name.startswith("mhpatchcore"):
            seen.append(model.whiten(model.embed(batch.features).flatten(0, 1)))
        else:
            seen.append(torch.nn.functional.normalize(batch.features[0].flatten(0, 1), dim=1))
    refit.trainer.update(7, refit.images(np.arange(7, 12)), Nothing())

    bank = refit.trainer.model.memory_bank
    assert len(bank) == size
    allowed = torch.cat([old, *seen])
    to_allowed = torch.cdist(bank, allowed, compute_mode="donot_use_mm_for_euclid_dist").amin(1)
    # Products of other batches round otherwise.
    assert float(to_allowed.max()) <= 1e-5 * float(bank.norm(dim=1).max())
    # What was near the old bank is at most as much farther as the old bank's own patches are.
    patches = torch.cat(seen)
    radius = float(torch.cdist(old, bank).amin(1).max())
    first = patches[: len(patches) * 7 // 12]
    excess = torch.cdist(first, bank).amin(1) - torch.cdist(first, old).amin(1)
    assert float(excess.max()) <= radius + 1e-4


def trained(name="padim", model=None, **train_config):
    """The folder of a trained trial."""
    sizes = {"img_size": SIZE, "batch_size": 4, "holdout": 0.25, **train_config}
    result = train("mvtec", "bottle", name, train=sizes, model=model or EXACT[name])
    return result["folder"]


def more(site, count=6):
    return sorted((site / "more").glob("*.png"))[:count]


def content(folder):
    return {p.name: file_sha256(p) for p in sorted(folder.iterdir()) if p.is_file()}


def table(folder, split):
    scores = pd.read_parquet(folder / "scores.parquet")
    return scores[scores.split == split].sort_values("path")


def test_the_new_trial_stands_beside_its_parent_which_stays_as_it_is(site):
    parent = site / trained()
    before = content(parent)
    found = update_trial(parent, more(site), [], "cpu", None)
    assert content(parent) == before
    assert found.folder.parent == parent
    assert (found.added, found.removed, found.known, found.existed) == (6, 0, 0, False)

    old, new = (json.loads((f / "trial.json").read_text()) for f in (parent, found.folder))
    assert new["identity"]["update"]["parent"] == old["id"]
    assert new["identity"]["update"]["added"] == sorted(map(file_sha256, more(site)))
    assert new["id"] != old["id"]
    assert found.folder.name == UPDATED + new["id"][:8]
    assert found.result["counts"]["train"] == 9 + 6
    assert found.result["update"]["parent"] == old["id"]
    assert not list(parent.glob(".*.partial"))


def test_the_promise_is_of_the_same_calibration_normals_scored_by_the_new_model(site):
    parent = site / trained()
    found = update_trial(parent, more(site), [], "cpu", None)
    old, new = table(parent, "holdout"), table(found.folder, "holdout")
    assert list(new.path) == list(old.path)
    assert len(new) == 3
    assert not np.allclose(new.pred_score, old.pred_score, rtol=1e-4)
    predictor = load_predictor(found.folder, "cpu")
    again = [outcome.pred_score for outcome in predictor.predict(new.path)]
    np.testing.assert_allclose(again, new.pred_score, rtol=1e-5)
    np.testing.assert_allclose(sorted(again), predictor.calibration, rtol=1e-5)
    (promise,) = found.result["verdict"]["promises"]
    assert promise["normals"] == 3
    assert promise["score"] == pytest.approx(max(again), rel=1e-5)
    # What trains is none of them.
    learnt = {file_sha256(site / path) for path in found.result["update"]["added"]}
    assert learnt.isdisjoint(map(file_sha256, map(site.joinpath, new.path)))


def test_images_that_the_parent_knows_are_left_out_whatever_they_are_called(site, capsys):
    parent = site / trained()
    held_out = table(parent, "holdout").path.iloc[0]
    tested = table(parent, "test").path.iloc[0]
    shutil.copy(held_out, site / "more" / "양품.png")
    shutil.copy(tested, site / "more" / "test.png")
    shutil.copy(more(site)[0], site / "more" / "again.png")
    assert main([str(parent), str(site / "more"), "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert "3 images are left out, since the trial knows them, or they are copies" in said
    assert "6 images added, 0 taken away" in said
    with pytest.raises(InputError, match="nothing to add: 1 images are known"):
        update_trial(parent, [site / "more" / "양품.png"], [], "cpu", None)


def test_an_audit_knows_the_images_that_an_update_added(site):
    parent = site / trained()
    found = update_trial(parent, more(site, 4), [], "cpu", None)
    learnt = known_images(found.folder).has_learnt
    assert [learnt(path) for path in more(site)] == [True] * 4 + [False] * 2
    assert not any(map(known_images(parent).has_learnt, more(site)))
    assert all(map(learnt, (site / "data/mvtec/bottle/train/good").iterdir()))


def test_the_same_update_is_made_once(site, capsys):
    parent = site / trained()
    first = update_trial(parent, more(site), [], "cpu", None)
    before = content(first.folder)
    again = update_trial(parent, list(reversed(more(site))), [], "cpu", None)
    assert (again.folder, again.existed) == (first.folder, True)
    assert content(first.folder) == before


@pytest.mark.parametrize(
    "name",
    [
        "padim",
        pytest.param("dfkde", marks=pytest.mark.slow),
        pytest.param("subspacead-small-448", marks=pytest.mark.slow),
    ],
)
def test_what_is_added_in_two_steps_and_taken_away_scores_as_the_parent(site, name):
    model = EXACT[name] | ({"rotations": 2} if name.startswith("subspacead") else {})
    parent = site / trained(name, model)
    one = update_trial(parent, more(site)[:2], [], "cpu", None)
    two = update_trial(one.folder, more(site)[2:], [], "cpu", None)
    assert two.folder.parent == parent
    both = update_trial(parent, more(site), [], "cpu", site / "both")
    np.testing.assert_allclose(
        table(two.folder, "test").pred_score, table(both.folder, "test").pred_score, rtol=1e-5
    )
    back = update_trial(two.folder, [], more(site), "cpu", None)
    np.testing.assert_allclose(
        table(back.folder, "test").pred_score, table(parent, "test").pred_score, rtol=1e-4
    )
    assert back.result["counts"]["train"] == 9


@pytest.mark.slow
def test_an_image_is_taken_away_with_the_views_that_were_learnt_whatever_it_is_called_now(site):
    model = EXACT["subspacead-small-448"] | {"rotations": 2}
    parent = site / trained("subspacead-small-448", model)
    held_out = set(table(parent, "holdout").path)
    images = sorted((site / "data/mvtec/bottle/train/good").glob("*.png"))
    ours = next(path for path in images if str(path) not in held_out)
    more_than_before = update_trial(parent, more(site), [], "cpu", None)
    gone = []
    for number, path in enumerate([*more(site), ours]):
        gone.append(shutil.copy(path, site / f"renamed {number}.png"))

    back = update_trial(more_than_before.folder, [], gone[:-1], "cpu", None)
    expected = table(parent, "test").pred_score
    np.testing.assert_allclose(table(back.folder, "test").pred_score, expected, rtol=1e-4)
    less = update_trial(back.folder, [], gone[-1:], "cpu", None)
    again = update_trial(less.folder, [ours], [], "cpu", None)
    np.testing.assert_allclose(table(again.folder, "test").pred_score, expected, rtol=1e-4)


def test_an_image_of_the_training_is_taken_away_and_comes_back(site):
    parent = site / trained()
    held_out = set(table(parent, "holdout").path)
    images = sorted((site / "data/mvtec/bottle/train/good").glob("*.png"))
    gone = [path for path in images if str(path) not in held_out][:2]
    less = update_trial(parent, [], gone, "cpu", None)
    assert less.result["counts"]["train"] == 7
    again = update_trial(less.folder, gone, [], "cpu", None)
    np.testing.assert_allclose(
        table(again.folder, "test").pred_score, table(parent, "test").pred_score, rtol=1e-4
    )
    with pytest.raises(InputError, match=r"--remove: .* has not learnt from"):
        update_trial(less.folder, [], gone, "cpu", None)
    with pytest.raises(InputError, match=r"--remove: .* has not learnt from"):
        update_trial(parent, [], [next(iter(map(type(site), held_out)))], "cpu", None)


@pytest.mark.slow
@pytest.mark.parametrize("name", BANKS)
def test_banks_take_images_and_give_none_back(site, name):
    parent = site / trained(name, BANKS[name])
    found = update_trial(parent, more(site), [], "cpu", None)
    assert found.result["counts"]["train"] == 15
    assert load_predictor(found.folder, "cpu").calibration
    with pytest.raises(InputError, match="keeps a coreset of patches"):
        update_trial(parent, [], more(site), "cpu", None)


def test_of_two_commands_that_make_the_same_update_the_first_wins(site, monkeypatch):
    parent = site / trained()
    run = update._run

    def meanwhile(*args):
        monkeypatch.setattr(update, "_run", run)
        result = run(*args)
        assert not update_trial(parent, more(site), [], "cpu", None).existed
        return result

    monkeypatch.setattr(update, "_run", meanwhile)
    found = update_trial(parent, more(site), [], "cpu", None)
    assert found.existed
    assert [p.name for p in parent.iterdir() if p.is_dir()] == [found.folder.name]


def test_a_later_update_removes_what_a_killed_one_left_and_not_what_one_that_runs_has(
    site, monkeypatch
):
    parent = site / trained()
    places = {}
    for process in (GONE, 1):  # nobody, and the first process of the system
        with monkeypatch.context() as patched:
            patched.setattr("os.getpid", lambda process=process: process)
            places[process] = partial_folder(parent / f"{UPDATED}0123abcd")
        (places[process] / "trial.json").write_text("{")
    update_trial(parent, more(site), [], "cpu", None)
    assert not places[GONE].exists()
    assert places[1].exists()


KILLED = """
import os, signal, sys
from pathlib import Path
from adray import update
update._run = lambda *args: os.kill(os.getpid(), signal.SIGKILL)
update.update_trial(Path(sys.argv[1]), list(map(Path, sys.argv[2:])), [], "cpu", None)
"""


@pytest.mark.slow
def test_an_update_that_was_killed_leaves_a_trial_as_it_was_once_clean_has_run(site, capsys):
    parent = site / trained()
    before = sorted(parent.iterdir())
    command = [sys.executable, "-c", KILLED, str(parent), *map(str, more(site))]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    (left,) = set(parent.iterdir()) - set(before)
    assert adray(["clean", str(site / "outputs"), "--dry-run"]) == 0
    assert str(left) in capsys.readouterr().out
    assert adray(["clean", str(site / "outputs"), "--yes"]) == 0
    assert sorted(parent.iterdir()) == before


def test_what_cannot_be_updated_is_refused_with_what_can(site):
    assert {*EXACT, *BANKS} <= set(updating_configurations())
    stfpm = site / trained("stfpm", {"weights": "random"}, num_epochs=1)
    with pytest.raises(InputError, match=r"stfpm learns in several passes.* padim"):
        update_trial(stfpm, more(site), [], "cpu", None)
    crossed = site / trained(calibration="cross")
    with pytest.raises(InputError, match="train it with calibration: holdout"):
        update_trial(crossed, more(site), [], "cpu", None)
    tiled = site / trained(tile=32)
    with pytest.raises(InputError, match="was trained on tiles"):
        update_trial(tiled, more(site), [], "cpu", None)
    with pytest.raises(InputError, match="no finished trial"):
        update_trial(site, more(site), [], "cpu", None)


def test_images_that_cannot_be_read_leave_nothing_behind(site):
    parent = site / trained()
    (site / "broken.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"broken\.png: "):
        update_trial(parent, [*more(site), site / "broken.png"], [], "cpu", None)
    with pytest.raises(InputError, match="cannot be read"):
        update_trial(parent, [site / "absent.png"], [], "cpu", None)
    assert [p.name for p in parent.iterdir() if p.is_dir()] == []


def test_a_data_set_that_changed_is_refused_since_others_would_be_held_out(site):
    parent = site / trained()
    shutil.copy(more(site)[0], site / "data/mvtec/bottle/train/good/new.png")
    with pytest.raises(InputError, match="keep images to add outside of the data set's folder"):
        update_trial(parent, more(site), [], "cpu", None)


def test_a_checkpoint_from_before_there_were_updates_is_refused(site):
    parent = site / trained("dfkde")
    path = find_checkpoint(parent)
    stored = torch.load(path, weights_only=True)
    del stored["statistics"]
    torch.save(stored, path)
    with pytest.raises(InputError, match="train it once more"):
        update_trial(parent, more(site), [], "cpu", None)


def test_the_last_images_stay(site):
    parent = site / trained("dfkde")
    held_out = set(table(parent, "holdout").path)
    images = sorted((site / "data/mvtec/bottle/train/good").glob("*.png"))
    trains = [path for path in images if str(path) not in held_out]
    with pytest.raises(InputError, match=r"1 images would be left of 9, .* at least 2"):
        update_trial(parent, [], trains[:8], "cpu", None)


def test_the_command_refuses_nothing_at_all_and_no_trial(site):
    with pytest.raises(InputError, match="nothing to add or to take away"):
        main([str(site)])
    with pytest.raises(InputError):
        main([str(site / "none"), str(site / "more")])
