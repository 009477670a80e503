"""Cards of unequal size: what trials ask for, and a sweep on a machine that seems to have such cards."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
import yaml
from fake_datasets import write_mvtec
from toy_sweep import toy_settings

from adray.config import ResourceRule
from adray.registry import ModelRegistry
from adray.sweep import session
from adray.sweep.cards import Card, cards_here, nodes_of, shown_names
from adray.sweep.leases import leased
from adray.sweep.resources import (
    RETRY_LEVELS,
    Need,
    Node,
    Share,
    Site,
    cpus_for,
    least_share,
    share_at,
)
from adray.sweep.sweep import RunOptions

PARTS = (Node(3, 12, 48 * 10**9, (8, 16, 8)), Node(1, 4, 16 * 10**9, (24,)))
UNEQUAL = Site(4, 16, 64 * 10**9, 24 * 10**9, PARTS)


def share_of(gpu_mb: float | None, site: Site = UNEQUAL) -> Share:
    need = Need(60.0, 10.0, 100.0, 1000.0, gpu_mb, 1)
    return least_share(ModelRegistry.resolve("padim"), need, ResourceRule(), site)


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ("1,3", ["1", "3"]),
        (" 0, 1 ", ["0", "1"]),
        ("1,", ["1"]),
        (",1", []),
        ("-1", []),
        ("0,-1,1", ["0"]),
        ("NoDevFiles", []),
        ("none", []),
        ("0,0", []),
        ("GPU-8a,MIG-8b/1/0", ["GPU-8a", "MIG-8b/1/0"]),
        ("", []),
        (" ", []),
    ],
)
def test_a_variable_shows_the_gpus_that_cuda_would_show(value, names):
    assert shown_names(value) == names


@pytest.mark.parametrize(
    ("gpu_mb", "card"), [(None, 0), (1000, 0), (5500, 0), (7000, 16), (13000, 24), (22000, 24)]
)
def test_a_trial_asks_for_the_smallest_card_that_holds_its_peak(gpu_mb, card):
    assert share_of(gpu_mb).card == card


@pytest.mark.parametrize("gpu_mb", [1000, 5500, 7000, 13000])
def test_its_share_is_enough_on_the_smallest_card_that_it_may_land_on(gpu_mb):
    share = share_of(gpu_mb)
    assert share.gpu * max(share.card, 8) * 1000 >= gpu_mb


def test_where_all_cards_are_equal_none_is_asked_for():
    equal = Site(2, 16, 64 * 10**9, 24 * 10**9, (Node(2, 16, 64 * 10**9, (24, 24)),))
    assert share_of(13000, equal).card == 0
    assert share_at(share_of(13000, equal), RETRY_LEVELS[-1], equal).card == 0


def test_the_last_retry_level_is_on_the_largest_card():
    shares = [share_at(share_of(None), level, UNEQUAL) for level in RETRY_LEVELS]
    assert [share.card for share in shares] == [0, 0, 0, 24]
    assert shares[-1].gpu == 1.0


def test_no_trial_asks_for_more_than_the_largest_machine_that_may_take_it():
    for gpu_mb in (None, 7000, 13000):
        for level in RETRY_LEVELS:
            least = share_of(gpu_mb)
            given = Share(least.gpu, cpus_for(least.gpu, 1, UNEQUAL), least.memory, least.card)
            share = share_at(given, level, UNEQUAL)
            able = [node for node in UNEQUAL.parts if max(node.cards) >= share.card]
            assert any(share.memory <= n.memory and share.cpu <= n.cpus for n in able)


def test_the_first_gpus_of_this_machine_are_used_as_they_are_named_there(monkeypatch):
    cards = [Card("3", "GPU-a", 24), Card("5", "GPU-b", 8), Card("GPU-abc", "GPU-c", 24)]
    monkeypatch.setattr(session, "cards_here", lambda _: cards)
    site = session.local_site(2, 4)
    assert [(device.name, device.card) for device in site.devices] == [("3", 24), ("5", 8)]
    assert site.gpu_memory == 24 * 10**9


def test_gpus_that_only_a_test_has_are_named_as_this_process_may_see_them(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    site = session.local_site(3, 4)
    assert site.gpu_memory == 0
    assert [(device.name, device.card) for device in site.devices] == [("0", 0), ("1", 0), ("2", 0)]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-abc")
    assert [card.name for card in cards_here(2)] == ["3", "GPU-abc"]


def test_a_sweep_gives_the_gpus_that_it_leased_to_its_trials_by_name(monkeypatch, tmp_path):
    cards = [Card("0", "GPU-a", 8), Card("1", "GPU-b", 24), Card("2", "GPU-c", 16)]
    monkeypatch.setenv("ADRAY_LEASES", str(tmp_path))
    monkeypatch.setattr(session, "cards_here", lambda _: cards)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(session, "ray_site", lambda _, local, **__: nullcontext(local))
    monkeypatch.setattr(session, "keep_bytecode", lambda _: None)
    sweep = SimpleNamespace(
        options=RunOptions(num_gpus=1, num_cpus=4),
        config=SimpleNamespace(name="s"),
        settings=None,
    )
    with leased(cards[:1], 1, "other"), session.workers(sweep) as site:
        assert [(device.name, device.card) for device in site.devices] == [("1", 24)]
        assert site.gpu_memory == 24 * 10**9
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "1"


def test_nodes_that_left_do_not_count_and_those_without_a_label_have_cards_of_unknown_size():
    def node(alive, labels):
        return {
            "Alive": alive,
            "Labels": labels,
            "NodeID": "ab",
            "Resources": {"GPU": 2.0, "CPU": 4.0, "memory": 9.0},
        }

    found = nodes_of(
        [node(True, {"adray-card": "24"}), node(True, {}), node(False, {"adray-card": "80"})]
    )
    assert [n.cards for n in found] == [(24, 24), (0, 0)]


FAKE = """
import sys
from adray.sweep import session
from adray.sweep.cards import Card
session.cards_here = lambda gpus: [Card("0", "0", 8), Card("1", "1", 24), Card("2", "2", 8)]
from adray.cli.sweep import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.ray
def test_out_of_memory_ends_on_the_largest_card_of_a_machine_and_others_run_beside_it(tmp_path):
    write_mvtec(
        tmp_path / "datasets" / "mvtec", categories=("bottle",), train=6, good=3, defects=4, size=48
    )
    config = {
        "name": "s",
        "settings": toy_settings(tmp_path),
        "grid": {
            "models": ["toy-ok", "toy-memory"],
            "datasets": {"mvtec": ["bottle"]},
            "seeds": [0, 1, 2],
        },
        "overrides": {"toy-ok": {"model": {"pause": 3.0}}},
        "resources": [{"cpu": 1, "gpu": 1.0, "memory_gb": 0.2}],
        "save_maps": 0,
    }
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(config))
    command = [
        sys.executable,
        "-c",
        FAKE,
        str(tmp_path / "s.yaml"),
        "--num-gpus",
        "3",
        "--num-cpus",
        "3",
    ]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    ran: dict[str, set[str]] = {}
    for file in (tmp_path / "outputs").rglob("trial.json"):
        record = json.loads(file.read_text())
        name = record["identity"]["configuration"]
        ran.setdefault(name, set()).add(record["environment"]["visible_gpus"])
    print(ended.stdout[-3000:], ended.stderr[-3000:])
    assert ended.returncode == 1
    assert ran["toy-memory"] == {"1"}
    assert ran["toy-ok"] <= {"0", "1", "2"}
