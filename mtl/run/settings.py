"""The keys at the top of the configuration and the groups of options without members, with their defaults."""

import functools
from dataclasses import dataclass, field, fields
from typing import Any

from hydra_zen import ZenField, builds, make_config
from omegaconf import MISSING

from mtl.data.hiding import KnownLabels
from mtl.run.members import DEFAULTS


@dataclass
class TrainerOptions:
    """Processes, accelerator and precision.

    Args:
        accelerator: cpu, gpu or auto, as pytorch-lightning's Trainer takes it
        devices: number of processes that share a round, each on a GPU or some cores
        num_nodes: machines, where torchrun or srun starts the processes
        precision: 32-true or bf16-mixed
        threads: threads of torch on the CPU, null for all cores, shared by the processes
    """

    accelerator: str = "auto"
    devices: int = 1
    num_nodes: int = 1
    precision: str = "32-true"
    threads: int | None = None


@dataclass
class EngineOptions:
    """How clients are simulated.

    Args:
        backend: auto (the fastest, tried on the first cohort), loop (one by one), vmap (stacked) or compiled (stacked and compiled)
        compile: whether torch.compile makes the stacked step: auto (where it pays), always, never
        block: clients stacked at most, null for as many as fit
        bank_memory: bytes of memory for the clients' state between rounds; a larger state is kept in files
    """

    backend: str = "auto"
    compile: str = "auto"
    block: int | None = None
    bank_memory: int = 2**32


@dataclass
class BalanceOptions:
    """How every balancer is applied.

    Args:
        level: gradients that are compared: those by the features (representation) or of the trunk (parameters), auto for the cheapest that
            serves
        heads: whether the task weights also scale the heads' gradients, null as the method's authors do it
        normalise: length of the update: length (as the plain sum's part along it, so that a learning rate means the same with every
            method), weights (the task weights sum to the number of tasks) or none (as the method gives it)
        gradient_scale: what the gradients are divided by before a method that works on their Gramian sees them: none, l2 (their length),
            loss (their task's) or loss+ (both)
        conflict: log how far the tasks' gradients point against each other, and draw the map of it
    """

    level: str = "auto"
    heads: bool | None = None
    normalise: str = "length"
    gradient_scale: str = "none"
    conflict: bool = False


@dataclass
class TrackingOptions:
    """What is logged, in files and in W&B.

    Args:
        wandb: auto (online where an account is set up, else offline), online, offline or disabled
        project: W&B's project, or ENTITY/PROJECT
        group: W&B's group, null for the folder of a sweep
        tags: W&B's tags, added to the data, mode, algorithm, server and client
        job_type: W&B's job type, null for the mode
        notes: W&B's notes on the run
        log_model: store the tested model at W&B as an artifact
        system: record the use of processor, memory and GPU at W&B
        per_task: log losses and metrics of every subtask in every round
        log_every: number of rounds whose numbers are read from the compute device at once
    """

    wandb: str = "auto"
    project: str = "mtl"
    group: str | None = None
    tags: list[str] = field(default_factory=list)
    job_type: str | None = None
    notes: str | None = None
    log_model: bool = False
    system: bool = False
    per_task: bool = True
    log_every: int = 1


# Groups of options without members.
OPTIONS: dict[str, type] = {
    "known_labels": KnownLabels,
    "balance": BalanceOptions,
    "engine": EngineOptions,
    "trainer": TrainerOptions,
    "tracking": TrackingOptions,
}


def top_level() -> Any:
    """The dataclass of all keys at the top, with their defaults."""
    return make_config(
        *(ZenField(Any, MISSING, name=group) for group in DEFAULTS),
        hydra_defaults=[
            "_self_",
            *({group: member} for group, member in DEFAULTS.items()),
            {"override hydra/job_logging": "stdout"},
        ],
        mode=ZenField(str, "federated"),
        partition_by=ZenField(str, "class"),
        norm=ZenField(str, "refuse"),
        known_labels=ZenField(KnownLabels, builds(KnownLabels, populate_full_signature=True)()),
        weights=ZenField(str | None, None),
        keep=ZenField(str, "nothing"),
        fusion=ZenField(str, "argmax"),
        reduction=ZenField(str, "mean"),
        mirror=ZenField(bool, True),
        rounds=ZenField(int, 80),
        evaluate_every=ZenField(int, 10),
        checkpoint_every=ZenField(int, 5),
        best_by=ZenField(str | None, None),
        objective=ZenField(str | None, None),
        target_accuracy=ZenField(float | None, None),
        seed=ZenField(int, 0),
        start=ZenField(str | None, None),
        name=ZenField(str | None, None),
        output_dir=ZenField(str, "runs/${now:%Y-%m-%d_%H-%M-%S}_${token:}"),
        resume=ZenField(bool, False),
        balance=ZenField(BalanceOptions, BalanceOptions()),
        engine=ZenField(EngineOptions, EngineOptions()),
        trainer=ZenField(TrainerOptions, TrainerOptions()),
        profile=ZenField(bool, False),
        write_report=ZenField(Any, "auto"),
        tracking=ZenField(TrackingOptions, TrackingOptions()),
        hydra={
            "run": {"dir": "${output_dir}"},
            "sweep": {"dir": "${output_dir}", "subdir": "${run_folder:}"},
            "output_subdir": None,
            "callbacks": {"sweep": {"_target_": "mtl.cli.job_folder.Sweep", "keys": [], "twins": [], "token": None, "gpus": []}},
            "help": {"app_name": "mtl train"},
        },
    )


@functools.cache
def top_level_keys() -> tuple[str, ...]:
    """Return the names of all keys at the top that are options of a run."""
    return tuple(option.name for option in fields(top_level()) if option.name not in ("defaults", "hydra"))
