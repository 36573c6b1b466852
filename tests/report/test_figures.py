"""Every kind of figure at the sizes that sweeps have: no text leaves the picture, none lies on another, none is raw TeX."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from mtl.report import curves, detection, maps, multitask, tradeoff, verification
from mtl.report.groups import Group
from mtl.report.run_files import Conflict, Detections, Federation, Predictions
from mtl.report.runs import Run
from mtl.report.style import Prefixed, figure_style, shorten, shorten_apart

SIZES = (1, pytest.param(7, marks=pytest.mark.slow), pytest.param(12, marks=pytest.mark.slow), 100)


def make_run(num_tasks: int, seed: int = 0, *, num_clients: int = 4, most_held: int = 6, exclusive: bool = True) -> Run:
    """A run whose losses and bytes span decades, as those of real ones do."""
    random = np.random.default_rng(seed)
    tasks = tuple("W" * 40 if t == 2 else f"wearing_a_large_necktie_{t}" for t in range(num_tasks))
    rounds = [1, 20, 100, 200]
    curve = {r: 0.4 + 0.5 * (1 - np.exp(-r / (40 + seed))) for r in rounds}
    rates = {f"{stage}/{name}": curve for stage in ("val", "monitor") for name in ("rank1", "auroc")}
    losses = {f"train/{name}": {r: 3.0 * np.exp(-r / 30) + 1e-3 for r in rounds} for name in ("loss", "positive")}
    costs = {name: {r: (seed + 1) * 4.7e6 * r for r in rounds} for name in ("fit/bytes_up", "fit/bytes_down")}
    modelled = {f"cost/modelled_{name}": {r: 31.0 * r for r in rounds} for name in ("seconds", "joules")}
    auroc = {f"test/{task}/{name}": 0.5 + 0.4 * random.random() for task in tasks for name in ("auroc", "balanced_accuracy")}
    summary = auroc | {
        "test/rank1": 0.5 + 0.4 * random.random(),
        "test/worst_task_auroc": 0.5 + 0.3 * random.random(),
        "test/auroc": 0.8,
        "fit/seconds": 1234.5 + seed,
        "fit/bytes_up_per_client": 81_246_112.0 * (1 + seed),
        "fit/bytes_down_per_client": 81_246_112.0,
        "cost/parameters": 786_312.0 + 2_000 * seed,
        "cost/flops_forward": 567_104.0 * (1 + seed),
        "cost/modelled_joules_per_client": 1e3,
        "cost/modelled_seconds": 1e4 + seed,
    }
    targets = random.random((60, num_tasks)) < 0.5
    identity = random.integers(0, num_tasks, 60) if exclusive else np.full(60, -1)
    scores = random.normal(size=(60, num_tasks)) + targets
    predictions = Predictions(scores, targets, np.ones_like(targets), tasks, identity, num_tasks if exclusive else 0)
    held = random.integers(0, most_held, (num_clients, num_tasks))
    held[0, 0] = 1
    steps = np.full((num_tasks, num_tasks), 7) - 7 * np.eye(num_tasks, dtype=int)
    cosine = random.uniform(-0.2, 0.2, steps.shape)
    conflict = Conflict(cosine, cosine < 0, steps, np.array(tasks)) if num_tasks > 1 else None
    return Run(
        path=Path(f"runs/{seed}"),
        config={"seed": 0},
        environment={},
        curves=rates | losses | costs | modelled | {"conflict/cosine": curve, "conflict/share": curve},
        summary=summary,
        predictions=predictions,
        federation=Federation(held, held, held > 2, held.sum(1)),
        conflict=conflict,
        notes=(),
    )


def make_groups(count: int) -> list[Group]:
    """Of the names that a sweep over three keys gives, and one of the widest letters."""
    names = [f"client.learning_rate=0.{i:03d}, architecture=cross_stitch, loss=SphereFace2" for i in range(count)]
    names[2:3] = ["W" * 60][: len(names[2:3])]
    return [Group(name, (make_run(5, i),), {}) for i, name in enumerate(names)]


def make_detections(number: int) -> Detections:
    """`number` scenes of one true face each, at the edges of the pictures too, half of them found."""
    random = np.random.default_rng(0)
    corners = random.uniform(0, 30, (number, 2)).round()
    boxes = np.concatenate([corners, corners + 10], 1)
    boxes[0] = 0, 0, 40, 40
    names = np.array(["W" * 30] * number)
    return Detections(
        scores=random.random(5 * number),
        hits=random.random(5 * number) < 0.2,
        num_faces=2 * number,
        confidence=0.3,
        images=random.integers(0, 256, (min(number, 6), 3, 40, 40), dtype=np.uint8),
        found_scene=np.arange(number) % 6,
        found_boxes=boxes,
        found_names=names,
        found_place=np.where(np.arange(number) % 2, np.arange(number), -1),
        true_scene=np.arange(number) % 6,
        true_boxes=boxes,
        true_names=names,
    )


def detecting(number: int) -> Group:
    return Group(
        "detection",
        tuple(replace(make_run(3, seed), config={"seed": seed}, detections=make_detections(number)) for seed in range(number)),
        {},
    )


def one(count: int, **options: Any) -> Group:
    return Group("the only group of all", (make_run(count, **options), make_run(count, seed=1, **options)), {})


def roc(count: int) -> dict[str, tuple[Any, Any]]:
    far = np.concatenate([[0], np.geomspace(1e-4, 1, 50)])
    return {f"run {i} joined with the others": (far, (1 - far) ** (i + 2)) for i in range(count)}


KINDS: dict[str, Callable[[int], Figure | None]] = {
    "learning": lambda n: curves.draw_learning(one(n)),
    "learning_by_group": lambda n: curves.draw_learning_by_group(make_groups(n)),
    "costs": lambda n: curves.draw_costs(make_groups(n)),
    "profiles": lambda n: curves.draw_profiles(make_groups(n)),
    "comparison": lambda n: curves.draw_comparison(make_groups(n)),
    "tradeoff": lambda n: tradeoff.draw_tradeoff(tradeoff.models_of(make_groups(n))) if n > 1 else None,
    "tasks": lambda n: maps.draw_tasks(one(n)),
    "holdings": lambda n: maps.draw_holdings(one(n, most_held=900)),
    "holdings_of_as_many_clients": lambda n: maps.draw_holdings(one(n, num_clients=n)),
    "confusion": lambda n: maps.draw_confusion(one(n)),
    "separation": lambda n: maps.draw_separation(one(n, exclusive=False)),
    "conflict": lambda n: multitask.draw_conflict(one(n)),
    "detection": lambda n: detection.draw_precision_recall(detecting(n)),
    "scenes": lambda n: detection.draw_scenes(detecting(n)),
    "verification": lambda n: verification.draw_verification(roc(n)),
}


def drawn_texts(figure: Figure, monkeypatch: pytest.MonkeyPatch) -> list[Text]:
    """The texts that a rendering of the figure really draws, with their places as they are after it."""
    texts: dict[Text, None] = {}
    draw = Text.draw

    def note(text: Text, renderer: Any, *args: Any, **kwargs: Any) -> None:
        if text.get_visible() and text.get_text().strip():
            texts[text] = None
        draw(text, renderer, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Text, "draw", note)
        FigureCanvasAgg(figure).draw()
    return list(texts)


def tick_labels(axis: Axis) -> list[Text]:
    return [tick.label1 for tick in axis._update_ticks() if tick.label1.get_visible() and tick.label1.get_text()]


def titles(figure: Figure) -> list[Text]:
    """Of axes, and what is written along their sides."""
    of_axes = [(axes.title, axes._left_title, axes.xaxis.label, axes.yaxis.label) for axes in figure.axes]
    return [text for texts in of_axes for text in texts]


def overlapping(texts: Sequence[Text]) -> list[tuple[str, str]]:
    """Those that lie on one another by more than a pixel in both directions."""
    boxes = [(text.get_window_extent(), text.get_text()) for text in texts]
    return [
        (first, second)
        for (one, first), (other, second) in itertools.combinations(boxes, 2)
        if min(one.x1, other.x1) - max(one.x0, other.x0) > 1 and min(one.y1, other.y1) - max(one.y0, other.y0) > 1
    ]


def looks(handles: Sequence[Any]) -> list[tuple[Any, ...]]:
    return [(line.get_color(), line.get_linestyle(), line.get_marker()) for line in handles]


@pytest.mark.parametrize("number", SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_text_lies_inside_its_figure_and_is_no_tex(kind: str, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with figure_style():
        figure = KINDS[kind](number)
        if figure is None:
            assert number == 1
            return
        texts = drawn_texts(figure, monkeypatch)
        assert texts
        assert not [text.get_text() for text in texts if "$" in text.get_text()]
        assert not [text.get_text() for text in texts if "mathdefault" in text.get_text()]
        page = figure.bbox
        outside = {
            text.get_text(): box.extents.round().tolist()
            for text in texts
            if not (
                (box := text.get_window_extent()).x0 >= page.x0 - 1
                and box.x1 <= page.x1 + 1
                and box.y0 >= page.y0 - 1
                and box.y1 <= page.y1 + 1
            )
        }
        assert not outside, (page.extents, outside)
        assert not [pair for axes in figure.axes for axis in (axes.xaxis, axes.yaxis) for pair in overlapping(tick_labels(axis))]
        assert not overlapping([text for text in texts if text in titles(figure)])
        if figure.legends:
            handles = figure.legends[0].legend_handles
            assert len(set(looks(handles))) == len(handles)
            assert len({handle.get_label() for handle in handles}) == len(handles)


def test_ticks_of_one_axis_differ_and_say_their_values() -> None:
    """Trunks of 786,312 to 786,316 parameters: in thousands, three digits are needed to tell them apart."""
    assert Prefixed().format_ticks([786_312.0, 786_314.0, 786_316.0]) == ["786.312 k", "786.314 k", "786.316 k"]
    assert Prefixed().format_ticks([786_312.0, 786_312.5]) == ["786.3120 k", "786.3125 k"]
    assert Prefixed("B").format_ticks([0.0, 2.5e6, 5e6]) == ["0.0 MB", "2.5 MB", "5.0 MB"]
    assert [Prefixed()(value) for value in (300.0, 1e3, 3e9)] == ["300", "1 k", "3 G"]


def test_costs_that_are_equal_but_for_noise_are_no_panel() -> None:
    models = [tradeoff.Model(str(i), {"AUROC": 0.7 + i / 10}, {("parameters", ""): 786_312 + i / 10}) for i in range(3)]
    assert tradeoff.draw_tradeoff(models) is None


def test_a_long_name_keeps_its_two_ends() -> None:
    assert shorten("client.learning_rate=0.003, architecture=cross_stitch", 26) == "client.learning…oss_stitch"
    assert shorten("as it is", 26) == "as it is"
    assert len(shorten("W" * 40, 26)) < 20


def test_names_that_differ_in_their_middle_stay_apart() -> None:
    names = [f"client.learning_rate={rate}, work.batch_size={size}" for rate in (0.02, 0.05) for size in (8, 16)]
    assert shorten_apart(names, 60) == names
    for length in (12, 26, 36):
        assert len(set(shorten_apart(names, length))) == 4
    assert shorten_apart(["as", "it", "is"], 26) == ["as", "it", "is"]
