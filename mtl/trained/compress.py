"""Compress a trained run step by step, and tabulate what each step costs in accuracy and saves on a device.

    distil    a student with other options of the configuration learns from the run
    prune     channels are cut out of the last step's model, which is then trained further
    sparsify  weights of the last step's model are set to zero while it is trained further; its file gets neither smaller nor faster
    int8      the file of the last step's model gets 8-bit weights and activations

Each step that trains is a run directory of its own; each step ends in a file, exported and checked as by `mtl export`. `steps.json` holds
the recipe and what each step gave: the same recipe started again goes on after the last finished step.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from mtl.base.files import write_json
from mtl.base.types import Interrupted
from mtl.edge.latency import file_call, measure
from mtl.edge.machine import timing_machine
from mtl.edge.prune import Pruning
from mtl.models.flops import num_parameters
from mtl.models.multi_task_model import MultiTaskModel
from mtl.report.style import figure_style, save_figure
from mtl.report.tradeoff import Model, draw_tradeoff
from mtl.run.build import read_config
from mtl.run.config import compose
from mtl.run.load import load_run
from mtl.run.members import DEFAULTS
from mtl.run.options import check_options
from mtl.run.train import train
from mtl.trained.export import ExportOptions, export_run
from mtl.trained.recipe_folder import START, STEPS, recipe_folder, write_steps

RECIPE_KEYS = ("recipe", "student", "ratio", "sparsity", "rounds", "finetune_rate")  # of CompressOptions, in steps.json


@dataclass(frozen=True)
class CompressOptions:
    """The steps to take, and how.

    Attributes:
        recipe: some of `STEPS`, each once, in their order.
        student: KEY=VALUE of the configuration in which the student differs from the run, for distil.
        ratio: share of the channels to cut, for prune.
        sparsity: share of the weights to set to zero, for sparsify.
        rounds: rounds of each training, None for as many as the run had.
        finetune_rate: learning rate after pruning, relative to that of the run.
        threads: threads that the latency is measured with.
        repeats: images that the latency is measured on.
    """

    recipe: Sequence[str]
    student: Sequence[str] = ()
    ratio: float = 0.5
    sparsity: float = 0.8
    rounds: int | None = None
    finetune_rate: float = 0.3
    threads: int = 1
    repeats: int = 300

    def __post_init__(self) -> None:
        Pruning("channels", ratio=self.ratio)
        Pruning("weights", ratio=self.sparsity)
        unknown = [step for step in self.recipe if step not in STEPS]
        if unknown or not self.recipe:
            raise ValueError(f"recipe must be steps of {', '.join(STEPS)}, got {', '.join(unknown) or 'none'}")
        if list(self.recipe) != sorted(set(self.recipe), key=STEPS.index):
            raise ValueError(f"recipe must have each step once, in the order {', '.join(STEPS)}, got {', '.join(self.recipe)}")
        if self.student and "distil" not in self.recipe:
            raise ValueError(f"student needs the step distil in the recipe, got {' '.join(self.student)} without")
        for name in ("rounds", "threads", "repeats"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} must be >= 1, got {value}")
        if not 0 < self.finetune_rate < math.inf:
            raise ValueError(f"finetune_rate must be a finite number > 0, got {self.finetune_rate}")


@dataclass(frozen=True)
class Row:
    """The model after a step.

    Attributes:
        step: its name; "as it is" for the run itself.
        rank1, auroc, worst_task_auroc, worst_clients_auroc, balanced_accuracy: of the test images by the file, in 0..1, None if undefined.
        parameters: number of parameters.
        zeros: share of them that is zero.
        flops: of one image, by the graph before it is quantised.
        num_bytes: size of the file.
        p50: median milliseconds of one image.
        p90: 90th percentile of the milliseconds of one image.
    """

    step: str
    rank1: float | None
    auroc: float | None
    worst_task_auroc: float | None
    worst_clients_auroc: float | None
    balanced_accuracy: float | None
    parameters: int
    zeros: float
    flops: int
    num_bytes: int
    p50: float
    p90: float


@dataclass(frozen=True)
class _Step:
    """A step that is done: the run whose model it is, its file, and what `steps.json` says of it."""

    name: str
    run_dir: Path
    file: Path
    facts: dict[str, Any]


def compress(run_dir: Path, options: CompressOptions, *, out: Path, data_root: str | None = None) -> list[Row]:
    """Take the steps of the recipe in their order, in the folder `out`; the first row is the run as it is.

    `compress.json` holds the rows and the machine that the files were timed on, `compress.png` draws them. A folder `out` that holds the
    same recipe is continued. A start that fails leaves nothing in the way of another; a later failure has a note on how to go on.

    Args:
        run_dir: the run to compress.
        options: the steps.
        out: folder of the files, and of the runs that are trained.
        data_root: folder of the run's data, None for where they were when it was trained.

    Raises:
        ValueError: an option contradicts another or the run, a step cannot be taken, or `out` holds anything else.
    """
    base = with_overrides(read_config(run_dir), ())
    student = with_overrides(base, options.student)
    if base.mode == "detection":
        raise ValueError(f"mode=detection cannot be compressed: its detector is no part of any step, got {run_dir}")
    if options.student:
        check_options(student)  # before the first step takes its time
    student.distil.teacher = str(run_dir)
    if data_root is not None:
        base.data.root = student.data.root = data_root
    recipe = {"run": str(run_dir.resolve())} | {name: getattr(options, name) for name in RECIPE_KEYS}
    recipe |= {name: list(recipe[name]) for name in ("recipe", "student")}
    with recipe_folder(out, recipe) as facts:
        steps = []
        current = run_dir
        for number, name in enumerate((START, *options.recipe)):
            base = student if name == "distil" else base
            if name not in (START, "int8"):
                current = _train(_step_config(name, base, options, start=current), out / name, options.rounds)
            file = out / f"{number}_{name.replace(' ', '_')}.onnx"
            if name not in facts or not file.is_file():
                exported = export_run(current, ExportOptions(int8=name == "int8"), out=file, data_root=data_root)
                facts[name] = {"metrics": exported.file, "num_bytes": exported.num_bytes, "flops": exported.flops}
                write_steps(out, recipe, facts)
            steps.append(_Step(name, current, file, facts[name]))
        rows = _rows(steps, options)
        _write_results(out, rows, options.threads)
    return rows


def _step_config(name: str, base: DictConfig, options: CompressOptions, *, start: Path) -> DictConfig:
    """The configuration that a step trains with. base: that of the run, or of the student; start: the run of the step before."""
    config = base.copy()
    if name == "distil":
        return config
    words = ["prune=channels", f"prune.ratio={options.ratio}"]
    if name == "sparsify":
        words = ["prune=weights", f"prune.ratio={options.sparsity}"]
    config.start, config.prune = str(start), compose(words).prune
    config.client.learning_rate = options.finetune_rate * base.client.learning_rate
    return config


def _rows(steps: Sequence[_Step], options: CompressOptions) -> list[Row]:
    times = measure({step.name: file_call(step.file, threads=options.threads) for step in steps}, repeats=options.repeats)
    rows = []
    for step in steps:
        model, metrics = load_run(step.run_dir).model, step.facts["metrics"]
        rows.append(
            Row(
                step=step.name,
                rank1=metrics.get("rank1"),
                auroc=metrics["auroc"],
                worst_task_auroc=metrics["worst_task_auroc"],
                worst_clients_auroc=metrics["worst_clients_auroc"],
                balanced_accuracy=metrics["balanced_accuracy"],
                parameters=num_parameters(model),
                zeros=_share_of_zeros(model),
                flops=step.facts["flops"],
                num_bytes=step.facts["num_bytes"],
                p50=times[step.name].p50,
                p90=times[step.name].p90,
            )
        )
    return rows


def _write_results(out: Path, rows: Sequence[Row], threads: int) -> None:
    machine = timing_machine(".onnx", threads)
    write_json(out / "compress.json", {"machine": machine, "steps": [asdict(row) for row in rows]})
    with figure_style():
        figure = draw_tradeoff([_model(row) for row in rows])
        if figure is not None:
            save_figure(figure, out / "compress.png")


def _model(row: Row) -> Model:
    rates = {
        "rank-1": row.rank1,
        "AUROC": row.auroc,
        "worst-task AUROC": row.worst_task_auroc,
        "AUROC of the worst clients": row.worst_clients_auroc,
    }
    costs = {
        ("file", "B"): float(row.num_bytes),
        ("an image, measured", "ms"): row.p50,
        ("FLOPs of an image", ""): float(row.flops),
    }
    return Model(row.step, {name: value for name, value in rates.items() if value is not None}, costs)


def with_overrides(config: DictConfig, words: Sequence[str]) -> DictConfig:
    """Copy a run's configuration, with other members of groups and values of keys.

    Args:
        config: of the run.
        words: GROUP=MEMBER and KEY=VALUE.

    Raises:
        ValueError: the configuration lacks a key.
    """
    changed = config.copy()
    for word in words:
        key, equals, _ = word.partition("=")
        parent, _, last = key.rpartition(".")
        node = OmegaConf.select(changed, parent) if parent else changed
        if not equals or not isinstance(node, DictConfig) or last not in node:
            raise ValueError(f"student must be KEY=VALUE with a key of the run's configuration, got {word}")
        value: Any = compose([word])[key] if key in DEFAULTS else OmegaConf.select(OmegaConf.from_dotlist([word]), key)
        OmegaConf.update(changed, key, value, merge=False)
    return changed


def _train(config: DictConfig, run_dir: Path, rounds: int | None) -> Path:
    """Train in `run_dir`, or go on there, unless it holds the finished run."""
    if rounds is not None:
        config.rounds = rounds
        config.evaluate_every = min(config.evaluate_every, rounds)
    config.output_dir, config.resume, config.name, config.write_report = str(run_dir), True, None, False
    if (run_dir / "summary.json").is_file():
        return run_dir
    try:
        train(config, run_dir)
    except HydraException as error:  # around the error of what was to be built
        raise ValueError(str(error.__cause__ or error)) from error
    except Interrupted as stop:  # which says how to go on with a run of `mtl train`
        raise Interrupted(f"stopped in the training of {run_dir}") from stop
    return run_dir


def _share_of_zeros(model: MultiTaskModel) -> float:
    parameters = list(model.parameters())
    return sum(int((values == 0).sum()) for values in parameters) / sum(values.numel() for values in parameters)
