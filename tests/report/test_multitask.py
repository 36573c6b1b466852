"""Delta-m by hand, and the picture of conflicts."""

from pathlib import Path

import numpy as np
import pytest

from mtl.base.files import write_arrays
from mtl.report.groups import group_runs
from mtl.report.multitask import delta_m, draw_conflict
from mtl.report.runs import read_run


def test_delta_m_by_hand() -> None:
    """Ten percent lost on one task, five gained on the other, in metrics that rise: 100 (0.1 - 0.05) / 2."""
    assert delta_m({"a": 0.72, "b": 0.63}, {"a": 0.8, "b": 0.6}) == pytest.approx(2.5)
    assert delta_m({"a": 0.72, "b": 0.63}, {"a": 0.8, "b": 0.6}, higher_is_better=False) == pytest.approx(-2.5)
    assert delta_m({"a": 0.5, "b": None}, {"a": 0.5, "b": None}) == 0


def test_delta_m_has_the_sign_opposite_to_libmtl() -> None:
    """Its example of `count_improvement`, a metric at a time: (-1)^w (base - new) / base with w = 1 where higher is better."""
    for base, new, higher in ((96, 93, True), (98, 99, False), (0.2, 0.5, True)):
        theirs = (-1) ** higher * (base - new) / base
        assert delta_m({"a": new}, {"a": base}, higher_is_better=higher) == pytest.approx(-100 * theirs)


def test_delta_m_names_the_task_that_is_missing() -> None:
    with pytest.raises(ValueError, match="tasks must be the same on both sides, got \\['b'\\] on one only"):
        delta_m({"a": 1.0}, {"a": 1.0, "b": 1.0})
    with pytest.raises(ValueError, match=r"task a must have a value on both sides, not 0 alone, got 1\.0 and 0\.0 alone"):
        delta_m({"a": 1.0}, {"a": 0.0})


def test_conflicts_are_drawn_where_they_were_measured(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    assert draw_conflict(group_runs([read_run(tmp_path)])[0]) is None
    steps = np.array([[0, 4, 0], [4, 0, 0], [0, 0, 0]])
    cosine = np.where(steps > 0, -0.25, 0.0)
    arrays = {"cosine": cosine, "conflicting": np.where(steps > 0, 0.5, 0.0), "steps": steps, "tasks": np.array(["a", "b", "c"])}
    write_arrays(tmp_path / "conflict.npz", **arrays)
    figure = draw_conflict(group_runs([read_run(tmp_path)])[0])
    assert figure is not None
    shown = figure.axes[0].images[0].get_array()
    assert shown is not None
    # The third task met no other: it is not on the map.
    assert shown.shape == (2, 2)
    assert shown[0, 1] == -0.25
    assert np.ma.getmaskarray(shown)[0, 0]
    assert {label.get_text() for label in figure.axes[0].get_yticklabels()} == {"a", "b"}
