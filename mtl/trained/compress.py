"""A run made smaller, step by step, and what each step costs in accuracy and saves on a device: one table from one run.

    distil    a student with other options of the configuration learns from the run
    prune     channels are cut out of the model so far, which is then trained on
    sparsify  weights of the model so far are set to zero while it is trained on; its file gets neither smaller nor faster
    int8      the file of the model so far gets 8-bit weights and activations

Each step that trains is a run directory of its own; each step ends in a file, exported and checked as by `mtl export`. A recipe that was
stopped goes on where it stopped when it is started again with the same options: `steps.json` holds them and what each step gave.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from mtl.base.files import write_json
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
from mtl.run.train import train
from mtl.trained.export import ExportOptions, export_run

STEPS = ("distil", "prune", "sparsify", "int8")


@dataclass(frozen=True)
class Row:
    """The model after a step: metrics of the test images by its file, in 0..1, None where they are undefined; parameters; the share
    of them that is zero; flops of one image as the graph is before it is quantised; bytes of the file; milliseconds of one image.
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


def compress(
    run_dir: Path,
    recipe: Sequence[str],
    *,
    out: Path,
    student: Sequence[str] = (),
    ratio: float = 0.5,
    sparsity: float = 0.8,
    rounds: int | None = None,
    finetune_rate: float = 0.3,
    threads: int = 1,
    repeats: int = 300,
    data_root: str | None = None,
) -> list[Row]:
    """Take the steps of `recipe` in their order, in the folder `out`; the first row is the run as it is.

    student: KEY=VALUE that the student differs by, for distil; ratio: of the channels, for prune; sparsity: share of zeros, for
    sparsify; rounds: of each training, None for as many as the run had; finetune_rate: the learning rate after pruning over that of the
    run. `compress.json` holds the rows and the machine that the files were timed on, `compress.png` draws them. A folder `out` that holds
    the same recipe is gone on with.

    Raises ValueError where the options contradict one another, where a step cannot be taken, and where `out` holds anything else.
    """
    _check(recipe, student, ratio, sparsity)
    if threads < 1:
        raise ValueError(f"threads must be >= 1, got {threads}")
    asked = {
        "run": str(run_dir.resolve()),
        "recipe": list(recipe),
        "student": list(student),
        "ratio": ratio,
        "sparsity": sparsity,
        "rounds": rounds,
        "finetune_rate": finetune_rate,
    }
    steps = _open(out, asked)
    current, int8 = run_dir, False
    config = read_config(run_dir)
    student_config = with_overrides(config, student)
    trained_at = config.client.learning_rate
    if config.mode == "detection":
        raise ValueError(f"mode=detection cannot be compressed: its detector is no part of any step, got {run_dir}")
    if data_root is not None:
        config.data.root = student_config.data.root = data_root
    done: list[tuple[str, Path, Path, dict[str, Any]]] = []
    for step in ("as it is", *recipe):
        if step == "distil":
            config = student_config
            config.distil.teacher = str(run_dir)
            trained_at = config.client.learning_rate
        elif step in ("prune", "sparsify"):
            words = (
                ["prune=channels", f"prune.ratio={ratio}"] if step == "prune" else ["prune=weights", f"prune.ratio={sparsity}"]
            )
            config.start, config.prune = str(current), compose(words).prune
            config.client.learning_rate = finetune_rate * trained_at
        elif step == "int8":
            int8 = True
        if step in ("distil", "prune", "sparsify"):
            current = _train(config, out / step, rounds)
        path = out / f"{len(done)}_{step.replace(' ', '_')}.onnx"
        if step not in steps or not path.is_file():
            exported = export_run(current, ExportOptions(int8=int8), out=path, data_root=data_root)
            steps[step] = {"metrics": exported.file, "num_bytes": exported.num_bytes, "flops": exported.flops}
            write_json(out / "steps.json", {"asked": asked, "steps": steps})
        done.append((step, current, path, steps[step]))
    times = measure({step: file_call(path, threads=threads) for step, _, path, _ in done}, repeats=repeats)
    rows = []
    for step, directory, _, made in done:
        run, metrics = load_run(directory), made["metrics"]
        rows.append(
            Row(
                step=step,
                rank1=metrics.get("rank1"),
                auroc=metrics["auroc"],
                worst_task_auroc=metrics["worst_task_auroc"],
                worst_clients_auroc=metrics["worst_clients_auroc"],
                balanced_accuracy=metrics["balanced_accuracy"],
                parameters=num_parameters(run.model),
                zeros=_share_of_zeros(run.model),
                flops=made["flops"],
                num_bytes=made["num_bytes"],
                p50=times[step].p50,
                p90=times[step].p90,
            )
        )
    machine = timing_machine(".onnx", threads)
    write_json(out / "compress.json", {"machine": machine, "steps": [asdict(row) for row in rows]})
    with figure_style():
        figure = draw_tradeoff([_model(row) for row in rows])
        if figure is not None:
            save_figure(figure, out / "compress.png")
    return rows


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
    """A copy of a run's configuration with GROUP=MEMBER and KEY=VALUE put in. Raises ValueError for a key that it does not have."""
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
    if rounds is not None:
        config.rounds = rounds
        config.evaluate_every = min(config.evaluate_every, rounds)
    config.output_dir, config.resume, config.name, config.write_report = str(run_dir), True, None, False
    if (run_dir / "summary.json").is_file():  # a finished run, whose file was not
        return run_dir
    try:
        train(config, run_dir)
    except HydraException as error:  # around the error of what was to be built
        raise ValueError(str(error.__cause__ or error)) from error
    return run_dir


def _share_of_zeros(model: MultiTaskModel) -> float:
    parameters = list(model.parameters())
    return sum(int((values == 0).sum()) for values in parameters) / sum(values.numel() for values in parameters)


def _check(recipe: Sequence[str], student: Sequence[str], ratio: float, sparsity: float) -> None:
    Pruning("channels", ratio=ratio)
    Pruning("weights", ratio=sparsity)
    unknown = [step for step in recipe if step not in STEPS]
    if unknown or not recipe:
        raise ValueError(f"recipe must be steps of {', '.join(STEPS)}, got {', '.join(unknown) or 'none'}")
    if list(recipe) != sorted(set(recipe), key=STEPS.index):
        raise ValueError(f"recipe must have each step once, in the order {', '.join(STEPS)}, got {', '.join(recipe)}")
    if student and "distil" not in recipe:
        raise ValueError(f"student needs the step distil in the recipe, got {' '.join(student)} without")


def _open(out: Path, asked: dict[str, Any]) -> dict[str, Any]:
    """What each step that is done gave. Raises ValueError where `out` holds anything but this recipe."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"out must be a folder, got the file {out}")
    file = out / "steps.json"
    if file.is_file():
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            before, steps = dict(content["asked"]), dict(content["steps"])
        except (ValueError, LookupError, TypeError) as error:
            raise ValueError(f"{file} is damaged: expected what mtl compress wrote; use another out") from error
        differing = [
            f"{name} ({before.get(name)} there, {value} now)" for name, value in asked.items() if before.get(name) != value
        ]
        if differing:
            raise ValueError(f"out {out} holds another recipe, which differs in {', '.join(differing)}; use another out")
        return steps
    if out.is_dir() and any(out.iterdir()):
        raise ValueError(f"out must be a new or an empty folder, or one that holds this recipe, got {out}")
    out.mkdir(parents=True, exist_ok=True)
    write_json(file, {"asked": asked, "steps": {}})
    return {}
