"""What a search maximises is a validation metric of the round that is tested."""

from pathlib import Path

import pytest

from mtl.base.types import NoObjective
from mtl.run.config import compose
from mtl.run.objective import objective_value, require_validation
from mtl.run.train import train
from tests.run.test_train import small

SUMMARY = {"test/rank1": 0.9, "test/auroc": 0.8, "val/best_rank1": 0.5, "val/best_auroc": 0.25, "fit/chosen_by": "val/rank1"}


def test_the_value_is_that_of_the_metric_that_is_asked_for_or_that_chose_the_round(class_folders: Path) -> None:
    assert objective_value(small(class_folders), SUMMARY) == 0.5
    assert objective_value(small(class_folders, "objective=val/auroc"), SUMMARY) == 0.25
    without = {"test/rank1": 0.9, "test/auroc": 0.8, "fit/chosen_by": None}
    assert objective_value(small(class_folders), without) is None


@pytest.mark.parametrize("name", ["test/rank1", "rank1", "val/c0/auroc", "val/best_rank1", "val/named"])
def test_what_is_no_validation_metric_of_the_run_is_refused_with_the_choices(
    class_folders: Path, tmp_path: Path, name: str
) -> None:
    with pytest.raises(NoObjective, match=rf"objective must be null or one of val/rank1, val/auroc, .*, got {name}"):
        train(small(class_folders, f"objective={name}"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_objective_without_validation_images_is_refused(class_folders: Path, tmp_path: Path) -> None:
    with pytest.raises(NoObjective, match=r"got val/rank1, and split leaves no validation images; say split.val=2"):
        train(small(class_folders, "objective=val/rank1", "split.val=0"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        (["split=auto", "split.val=0"], "say split.val=2, images of each class, or split=fractions split.val=.2"),
        (["split=per_class", "split.val=0"], "say split.val=2, images of each class, or split=fractions split.val=.2"),
        (["split=fractions", "split.val=0"], "say split.val=.2$"),
    ],
)
def test_a_search_without_validation_images_is_told_which_options_leave_some(
    class_folders: Path, words: list[str], advice: str
) -> None:
    with pytest.raises(NoObjective, match=f"a search needs validation images to choose by, and split leaves none; {advice}"):
        require_validation(compose(["data=folder", f"data.root={class_folders}", *words]))
    require_validation(small(class_folders))


def test_runs_that_differ_in_the_objective_are_one_run(class_folders: Path, tmp_path: Path) -> None:
    summary = train(small(class_folders), tmp_path / "run")
    assert train(small(class_folders, "objective=val/auroc", "resume=true"), tmp_path / "run") == summary
