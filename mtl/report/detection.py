"""Faces found in the test scenes: precision against recall, and some of the scenes with their boxes."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from mtl.report.groups import Group
from mtl.report.measures import precision_recall
from mtl.report.run_files import Array, Detections
from mtl.report.style import BLUE, GREEN, ORANGE, RED, Drawing, Look, add_legend, pick_line, shorten

LOOKS: dict[str, Look] = {
    "right": {"color": GREEN},
    "the name of somebody else": {"color": ORANGE},
    "no face": {"color": RED},
    "missed": {"color": BLUE, "linestyle": "--"},
}


def draw_precision_recall(group: Group) -> Drawing:
    """Draw a line for each run, with a dot at the confidence of the run."""
    runs = [(run.config.get("seed"), run.detections) for run in group.runs if run.detections is not None]
    runs = [(seed, faces) for seed, faces in runs if len(faces.scores) and faces.num_faces]
    if not runs:
        return None
    figure = Figure(figsize=(4.6, 3.2))
    axes = figure.subplots()
    for index, (_, faces) in enumerate(runs):
        precision, recall, scores = precision_recall(faces.scores, faces.hits, faces.num_faces)
        axes.plot(recall, precision, **pick_line(index) | {"markevery": 0.1})
        sure = int((scores >= faces.confidence).sum())
        if sure:
            axes.plot(recall[sure - 1], precision[sure - 1], "o", color=pick_line(index)["color"], markersize=5)
    axes.set(xlim=(0, 1.02), ylim=(0, 1.02), xlabel="recall: share of the true faces that are found")
    axes.set_ylabel("precision: share of the found that are true")
    axes.grid()
    if len(runs) > 1:
        add_legend(figure, [f"seed {seed}" for seed, _ in runs], [pick_line(index) for index in range(len(runs))])
    return figure


def draw_scenes(group: Group) -> Drawing:
    """Draw the scenes that the first run has saved, with the boxes of found and missed faces."""
    faces = next((run.detections for run in group.runs if run.detections is not None and len(run.detections.images)), None)
    if faces is None:
        return None
    num_columns = min(3, len(faces.images))
    num_rows = -(-len(faces.images) // num_columns)
    height, width = faces.images.shape[2:]
    figure = Figure(figsize=(2.9 * num_columns, 2.9 * num_rows * min(height / width, 2)))
    grid = list(figure.subplots(num_rows, num_columns, squeeze=False).flat)
    for scene, axes in enumerate(grid):
        if scene < len(faces.images):
            _draw_scene(axes, faces, scene)
        else:
            axes.remove()
    named = bool((faces.found_names != "").any())
    looks = {name: look for name, look in LOOKS.items() if named or name != "the name of somebody else"}
    names = ["a face" if name == "right" and not named else name for name in looks]
    add_legend(figure, [f"found: {name}" if name != "missed" else name for name in names], list(looks.values()))
    return figure


def _draw_scene(axes: Axes, faces: Detections, scene: int) -> None:
    image = faces.images[scene]
    axes.imshow(image[0] if len(image) == 1 else image.transpose(1, 2, 0), cmap="gray", vmin=0, vmax=255)
    axes.set_axis_off()
    for place in (faces.true_scene == scene).nonzero()[0]:
        if place not in faces.found_place:
            _draw_box(axes, faces.true_boxes[place], faces.true_names[place], LOOKS["missed"])
    for place in (faces.found_scene == scene).nonzero()[0]:
        name, true = str(faces.found_names[place]), int(faces.found_place[place])
        kind = "no face" if true < 0 else "right"
        if true >= 0 and name and name != faces.true_names[true]:
            kind = "the name of somebody else"
        _draw_box(axes, faces.found_boxes[place], name, LOOKS[kind])


def _draw_box(axes: Axes, box: Array, name: str, look: Look) -> None:
    """The name stands over its box where there is room above, and never leaves the picture to the right."""
    left, top, right, bottom = box.tolist()
    edge = {"edgecolor": look["color"], "linestyle": look.get("linestyle", "-"), "linewidth": 1.3}
    axes.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, **edge))
    if not name:
        return
    width, height = axes.get_xlim()[1], axes.get_ylim()[0]
    at_left = (left + right) / 2 < width / 2
    over = top > 0.08 * height
    behind = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.6}
    axes.text(
        max(left, 0) if at_left else min(right, width),
        top if over else min(bottom, height),
        shorten(name, 14),
        ha="left" if at_left else "right",
        va="bottom" if over or bottom > 0.92 * height else "top",
        size=6,
        color=look["color"],
        bbox=behind,
    )
