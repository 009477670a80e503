"""Cards of unequal size: what trials ask for, and a sweep on raylets of a machine that seems to have such cards."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import yaml
from fake_datasets import write_mvtec
from toy_sweep import toy_settings

from adray.registry import ModelRegistry
from adray.sweep.cards import by_card, nodes_of, selector
from adray.sweep.resources import RETRY_LEVELS, Need, Node, Share, Site, choose_share, share_at

PARTS = Node(2, 8, 32 * 10**9, 8), Node(1, 4, 16 * 10**9, 16), Node(1, 4, 16 * 10**9, 24)
UNEQUAL = Site(4, 16, 64 * 10**9, 24 * 10**9, PARTS)


def share_of(gpu_mb: float | None, site: Site = UNEQUAL) -> Share:
    need = Need(60.0, 10.0, 100.0, 1000.0, gpu_mb, 1)
    return choose_share(ModelRegistry.resolve("padim"), need, (), site, 1000)


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
    equal = Site(2, 16, 64 * 10**9, 24 * 10**9, (Node(2, 16, 64 * 10**9, 24),))
    assert share_of(13000, equal).card == 0
    assert share_at(share_of(13000, equal), RETRY_LEVELS[-1], equal).card == 0
    assert selector(share_of(13000, equal), equal) is None


def test_the_last_retry_level_is_on_the_largest_card():
    shares = [share_at(share_of(None), level, UNEQUAL) for level in RETRY_LEVELS]
    assert [share.card for share in shares] == [0, 0, 0, 24]
    assert shares[-1].gpu == 1.0


def test_no_trial_asks_for_more_than_the_largest_part_that_may_take_it():
    for gpu_mb in (None, 7000, 13000):
        for level in RETRY_LEVELS:
            share = share_at(share_of(gpu_mb), level, UNEQUAL)
            able = [n for n in UNEQUAL.nodes if n.card >= share.card]
            assert any(share.memory <= n.memory and share.cpu <= n.cpus for n in able)


def test_any_card_that_is_large_enough_will_do():
    assert selector(Share(0.5, 1, 1, 16), UNEQUAL) == [{"adray-card": "in(16,24)"}]
    assert selector(Share(0.5, 1, 1), UNEQUAL) is None


def test_the_cards_of_a_machine_are_divided_by_size():
    parts = by_card((24, 8, 24, 8), Site(4, 16, 100))
    assert [(node.card, node.gpus, node.cpus, gpus) for node, gpus in parts] == [
        (8, 2, 8, "1,3"),
        (24, 2, 8, "0,2"),
    ]
    assert [node.card for node, _ in by_card((24, 8, 24), Site(1, 16, 100))] == [24]
    assert by_card((), Site(4, 16, 100)) == []


def test_each_part_sees_its_own_of_the_gpus_that_this_process_may_see(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5,GPU-abc")
    assert [gpus for _, gpus in by_card((24, 8, 24), Site(3, 16, 100))] == ["5", "3,GPU-abc"]


def test_nodes_that_left_do_not_count_and_those_without_a_label_have_cards_of_unknown_size():
    def node(alive, labels):
        return {
            "Alive": alive,
            "Labels": labels,
            "Resources": {"GPU": 2.0, "CPU": 4.0, "memory": 9.0},
        }

    found = nodes_of(
        [node(True, {"adray-card": "24"}), node(True, {}), node(False, {"adray-card": "80"})]
    )
    assert [n.card for n in found] == [0, 24]


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
