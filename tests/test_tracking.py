import json
from pathlib import Path

import pytest
from PIL import Image

from mtl import tracking
from mtl.files import atomic_write, write_json
from mtl.tracking import Tracker


def test_an_offline_run_is_recorded_without_an_account_or_a_prompt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("HOME", str(tmp_path))
    tracker = Tracker(tmp_path, {"seed": 0}, group="sweep")
    tracker.log(1, {"train/loss": 0.5, "val/rank1": None})
    picture = tmp_path / "map.png"
    Image.new("L", (4, 4)).save(picture)
    tracker.finish({"test/rank1": 0.25, "test/auroc": None}, [picture])
    recorded = list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    assert len(recorded) == 1
    assert list((tmp_path / "wandb").rglob("*.png"))


def test_a_server_out_of_reach_leaves_an_offline_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(tracking, "WANDB_TIMEOUT", 4.0)
    tracker = Tracker(tmp_path, {"seed": 0}, wandb="online")
    tracker.log(1, {"train/loss": 0.5})
    tracker.finish({"test/rank1": 0.25})
    assert "W&B cannot be reached" in caplog.text
    assert list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))


def test_numbers_are_kept_exactly_and_a_torn_line_is_dropped_on_resume(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path, {}, wandb="disabled")
    tracker.log(1, {"train/loss": 0.1 + 0.2})
    tracker.log(2, {"train/loss": 1 / 3})
    tracker.abandon()
    path = tmp_path / "metrics.csv"
    path.write_text(path.read_text() + "3,train/lo")
    Tracker(tmp_path, {}, wandb="disabled", last_round=1).abandon()
    assert path.read_text() == "round,metric,value\n1,train/loss,0.30000000000000004\n"


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})

    def write_half() -> None:
        with atomic_write(path) as file:
            file.write(b"half")
            raise OSError(28, "full")

    with pytest.raises(OSError, match="full"):
        write_half()
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
