"""What was trained in the runs of a report, in a sentence or two."""

from collections.abc import Sequence
from html import escape

from mtl.report.groups import Group, flatten
from mtl.report.runs import Run


def describe(groups: Sequence[Group]) -> str:
    """Say in one paragraph of HTML what was trained, on what data, and how."""
    runs = [run for group in groups for run in group.runs]
    modes = list(dict.fromkeys(str(run.config["mode"]) for run in runs if "mode" in run.config))
    data = list(dict.fromkeys(name for run in runs if (name := _member(run, "data"))))
    shapes = {(*run.federation.positives.shape, int(run.federation.images.sum())) for run in runs if run.federation is not None}
    size = ""
    if len(shapes) == 1:
        ((num_clients, num_tasks, num_images),) = shapes
        clients = f"{num_clients:,} client{'s'[: num_clients != 1]}"
        size = f" Data: {num_tasks:,} task{'s'[: num_tasks != 1]} and {num_images:,} training images on {clients}."
    trained = f" ({', '.join(modes)} training)" if modes else ""
    source = f" on {', '.join(data)}" if data else ""
    models = list(dict.fromkeys(map(_describe_model, runs)))
    what = models[0] if len(models) == 1 else "Several kinds of models"
    balancers = list(dict.fromkeys(name for run in runs if (name := _member(run, "balancer")) not in ("", "Equal")))
    balanced = (
        f", balanced by {', '.join(balancers)}" if len(balancers) == len({_member(run, "balancer") for run in runs}) else ""
    )
    text = (
        f"{what} {'was' if len(models) == 1 else 'were'} trained{source}{trained}, by the positive and negative loss of every "
        f"subtask{balanced}.{size} This page is made from the run director{'y' if len(runs) == 1 else 'ies'} alone."
    )
    return escape(text)


def _member(run: Run, group: str) -> str:
    """The class or function that a run's configuration names for a group, "" where it names none."""
    return str(flatten(run.config).get(f"{group}._target_") or "").rsplit(".", 1)[-1]


def _describe_model(run: Run) -> str:
    """What is shared depends on the architecture, and on what stays on a client."""
    architecture, mode = _member(run, "architecture"), run.config.get("mode")
    if mode in ("single_task", "local"):
        return "A model for each subtask alone" if mode == "single_task" else "A model on each client alone"
    if architecture not in ("", "hard_sharing"):
        return f"A model of the architecture {architecture}"
    if not architecture or _member(run, "trunk") == "peers":
        return "A model" if not architecture else "A trunk of each architecture of clients with shared heads"
    return f"One shared trunk with one head per subtask{' and one that finds faces' if mode == 'detection' else ''}"
