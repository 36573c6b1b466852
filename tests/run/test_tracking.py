import json
from pathlib import Path

import pytest

from mtl.base.files import atomic_write, write_json
from mtl.run.tracking import Tracker
from mtl.run.wandb_run import WandbOptions

NONE = WandbOptions("disabled")


def test_numbers_are_kept_exactly_and_a_torn_line_is_dropped_on_resume(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path, {}, wandb=NONE)
    tracker.log(1, {"train/loss": 0.1 + 0.2})
    tracker.log(2, {"train/loss": 1 / 3})
    tracker.abandon()
    path = tmp_path / "metrics.csv"
    path.write_text(path.read_text() + "3,train/lo")
    Tracker(tmp_path, {}, wandb=NONE, last_round=1).abandon()
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
