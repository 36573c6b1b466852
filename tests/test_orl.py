"""The claim of the README, on the embedded faces."""

from pathlib import Path

import pytest

from mtl.run.config import compose
from mtl.run.train import train


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 5])
def test_eight_devices_that_own_five_people_each_tell_forty_apart(tmp_path: Path, seed: int) -> None:
    config = compose([f"seed={seed}", f"data.root={tmp_path}", "tracking.wandb=disabled", "write_report=false"])
    rank1 = train(config, tmp_path / "run")["test/rank1"]
    assert rank1 is not None
    assert rank1 >= 0.962  # SOM + CNN with all images in one place, Lawrence et al. 1997
