"""What `adray start` says at its end: the commands of the trials that were decided on."""

from __future__ import annotations

from pathlib import Path

from fake_datasets import save
from fake_parts import part_trial

from adray.__main__ import main
from adray.cli.start_steps import FirstHour


def test_the_last_commands_name_the_decided_trial(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for i in range(10):
        save(Path("mvtec") / "ok" / f"{i}.png", i, 32)

    def swept(self, file, minutes):
        part_trial(Path("outputs"), "padim", 3.0)
        part_trial(Path("outputs"), "stfpm", 0.1)
        return 0

    monkeypatch.setattr(FirstHour, "_swept", swept)
    assert main(["start", "mvtec", "--yes", "--minutes", "1"]) == 0
    last = capsys.readouterr().out.splitlines()[-2:]
    assert "adray predict" in last[0]
    assert "outputs/mvtec/cup/padim/" in last[0]
    assert "adray bundle" in last[1]
    assert "outputs/mvtec/cup/padim/" in last[1]
