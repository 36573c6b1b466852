"""A run made smaller, step by step, and what each step costs in accuracy and saves on a device: one table from one run.

    distil    a student with other options of the configuration learns from the run
    prune     channels are cut out of the model so far, which is then trained on
    sparsify  weights of the model so far are set to zero while it is trained on; its file gets neither smaller nor faster
    int8      the file of the model so far gets 8-bit weights and activations

Each step that trains is a run directory of its own; each step ends in a file, exported and checked as by `mtl export`.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from mtl.build import read_config
from mtl.configs import DEFAULTS, compose
from mtl.deploy import Exported, device_model, export_run
from mtl.edge.latency import file_call, measure
from mtl.edge.prune import Pruning
from mtl.files import write_json
from mtl.models.flops import count_forward, num_parameters
from mtl.models.hard_sharing import HardSharing
from mtl.report.style import figure_style, save_figure
from mtl.report.tradeoff import Model, draw_tradeoff
from mtl.train import train
from mtl.trained import load_run

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
    """Take the steps of `recipe` in their order, in the new folder `out`; the first row is the run as it is.

    student: KEY=VALUE that the student differs by, for distil; ratio: of the channels, for prune; sparsity: share of zeros, for
    sparsify; rounds: of each training, None for as many as the run had; finetune_rate: the learning rate after pruning over that of the
    run. `compress.json` holds the rows, `compress.png` draws them.

    Raises ValueError where the options contradict one another and where a step cannot be taken.
    """
    _check(recipe, out, student, ratio, sparsity)
    current, int8 = run_dir, False
    config = read_config(run_dir)
    student_config = with_overrides(config, student)
    trained_at = config.client.learning_rate
    out.mkdir(parents=True, exist_ok=True)
    if data_root is not None:
        config.data.root = student_config.data.root = data_root
    done: list[tuple[str, Path, Exported]] = []
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
        done.append((step, current, export_run(current, int8=int8, out=path, data_root=data_root)))
    times = measure({step: file_call(made.path, threads=threads) for step, _, made in done}, repeats=repeats)
    rows = []
    for step, directory, made in done:
        run = load_run(directory)
        rows.append(
            Row(
                step=step,
                rank1=made.file.get("rank1"),
                auroc=made.file["auroc"],
                worst_task_auroc=made.file["worst_task_auroc"],
                worst_clients_auroc=made.file["worst_clients_auroc"],
                balanced_accuracy=made.file["balanced_accuracy"],
                parameters=num_parameters(run.model),
                zeros=_share_of_zeros(run.model),
                flops=count_forward(device_model(run, run.model), run.image_shape, run.pixels),
                num_bytes=made.num_bytes,
                p50=times[step].p50,
                p90=times[step].p90,
            )
        )
    write_json(out / "compress.json", [asdict(row) for row in rows])
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
    config.output_dir, config.resume, config.name, config.write_report = str(run_dir), False, None, False
    try:
        train(config, run_dir)
    except HydraException as error:  # around the error of what was to be built
        raise ValueError(str(error.__cause__ or error)) from error
    return run_dir


def _share_of_zeros(model: HardSharing) -> float:
    parameters = list(model.parameters())
    return sum(int((values == 0).sum()) for values in parameters) / sum(values.numel() for values in parameters)


def _check(recipe: Sequence[str], out: Path, student: Sequence[str], ratio: float, sparsity: float) -> None:
    Pruning("channels", ratio=ratio)
    Pruning("weights", ratio=sparsity)
    unknown = [step for step in recipe if step not in STEPS]
    if unknown or not recipe:
        raise ValueError(f"recipe must be steps of {', '.join(STEPS)}, got {', '.join(unknown) or 'none'}")
    if list(recipe) != sorted(set(recipe), key=STEPS.index):
        raise ValueError(f"recipe must have each step once, in the order {', '.join(STEPS)}, got {', '.join(recipe)}")
    if student and "distil" not in recipe:
        raise ValueError(f"student needs the step distil in the recipe, got {' '.join(student)} without")
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"out must be a new or an empty folder, got {out}")
