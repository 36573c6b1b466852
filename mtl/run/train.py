"""One run, from its configuration to its run directory: build, fit, test, summary, report."""

import contextlib
import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf

from mtl.base.files import write_json
from mtl.base.memory import keep_freed_memory
from mtl.base.types import Interrupted
from mtl.data.datamodule import FederatedDataModule
from mtl.federation.ranks import Ranks
from mtl.learning.checkpoints import CheckpointError, Identity, SaveBest, SaveRounds, read_checkpoint
from mtl.learning.learner import Learner
from mtl.learning.results import fit_summary, tested_summary
from mtl.metrics.scores import Summary
from mtl.report.page import write_report
from mtl.report.runs import CHOSEN_BY, best_key
from mtl.run.build import build_data, data_digest, files_fingerprint
from mtl.run.directory import is_recorded, locked, open_run_directory, update_config
from mtl.run.group import process_group, versions
from mtl.run.identity import fingerprint
from mtl.run.learners import build_learner
from mtl.run.objective import check_objective
from mtl.run.rules import check_rules
from mtl.run.spawn import inside_rank, run_ranks
from mtl.run.target import check_target, target_summary
from mtl.run.tracking import complete_record
from mtl.run.trainer import RunLogger, build_trainer

logger = logging.getLogger(__name__)


def train(config: DictConfig, run_dir: Path) -> Summary:
    """Train, test and report one run.

    With several devices this process starts a rank for each and waits, unless torchrun or srun has started it as one of them.

    Args:
        config: a composed configuration.
        run_dir: the run directory.

    Returns:
        The summary, as in `summary.json`.

    Raises:
        ValueError: The configuration or the data cannot be used.
        Diverged: The loss is not finite.
        Interrupted: The run was stopped by Ctrl-C; `resume=true` continues it.
    """
    check_rules(config)
    options = config.trainer
    if inside_rank():
        with process_group(options.accelerator) as ranks:
            return _train(config, run_dir, ranks)
    if options.num_nodes > 1:
        raise ValueError(f"trainer.num_nodes={options.num_nodes} needs torchrun or srun to start the processes on every machine")
    if options.devices > 1:
        run_ranks(options.devices, _plain(config), run_dir)
        summary: Summary = json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))
        return summary
    return _train(config, run_dir, Ranks())


def _train(config: DictConfig, run_dir: Path, ranks: Ranks) -> Summary:
    _set_up_process(config, ranks)
    data = build_data(config)
    run_dir = ranks.broadcast(run_dir)  # every rank uses the run directory of the first
    learner, steps = build_learner(config, data, run_dir)
    check_objective(config, learner)
    check_target(config, learner)
    content = data_digest(data)
    identity = Identity(fingerprint(_plain(config), content.encode()), files_fingerprint(config, *learner.further_data))
    ranks.require_same({**versions(), "configuration and data": identity.run, "files": identity.files})
    log = RunLogger(config, run_dir)
    trainer, loaders = build_trainer(config, run_dir, learner, identity, log), FederatedDataModule(data, steps=steps)
    with locked(run_dir) if ranks.is_first else contextlib.nullcontext():
        start = ranks.broadcast(_open(config, run_dir, identity) if ranks.is_first else None)
        if start.summary is not None:
            logger.info("output_dir %s holds this run, which is finished: there is nothing left to train", run_dir)
            result: Summary = start.summary
            if ranks.is_first and not is_recorded(run_dir):
                complete_record(run_dir, _plain(config), log.wandb, result, _pictures(run_dir))
            return result
        with log.tracking(start.last_round, content) if ranks.is_first else contextlib.nullcontext() as tracker:
            summary = _fit_and_test(config, run_dir, learner, trainer, loaders, start.checkpoint)
            if tracker is not None:
                learner.write_results(run_dir, data)
                summary |= target_summary(config, run_dir, learner)
                write_json(run_dir / "summary.json", summary)  # written last: where it exists, all results do
                if config.write_report:
                    write_report([run_dir])
                tracker.finish(summary, _pictures(run_dir))
    return summary


def _pictures(run_dir: Path) -> list[Path]:
    return sorted((run_dir / "figures").glob("*.png"))


def _set_up_process(config: DictConfig, ranks: Ranks) -> None:
    devices, machines = config.trainer.devices, config.trainer.num_nodes
    if ranks.count != devices * machines:
        raise ValueError(
            f"trainer.devices={devices} times trainer.num_nodes={machines} must be the {ranks.count} processes that were started"
        )
    keep_freed_memory()
    if config.trainer.threads or ranks.count > 1:
        torch.set_num_threads(config.trainer.threads or max((os.cpu_count() or 1) // devices, 1))


@dataclass(frozen=True)
class Start:
    """Where a run begins.

    Attributes:
        checkpoint: to continue from, None for a new run.
        last_round: of that checkpoint.
        summary: of a run that is finished already.
    """

    checkpoint: Path | None = None
    last_round: int | None = None
    summary: Summary | None = None


def _open(config: DictConfig, run_dir: Path, identity: Identity) -> Start:
    """Start the run in `run_dir`, or find the checkpoint to continue it from."""
    plain = _plain(config)
    checkpoint = open_run_directory(run_dir, plain, resume=config.resume)
    if checkpoint is None:
        return Start()
    content = read_checkpoint(checkpoint, identity.run)
    if content["files"] != identity.files:
        raise CheckpointError(
            f"checkpoint {checkpoint} is of another run: weights, start, distil.teacher, fleet.profiles, scenes or the server's images "
            "have changed their content"
        )
    last_round, rounds = int(content["epoch"]) + 1, config.rounds
    if last_round > rounds:
        raise ValueError(f"rounds must be at least the {last_round} that output_dir {run_dir} has done already, got {rounds}")
    summary = run_dir / "summary.json"
    finished = summary.exists() and last_round == rounds
    update_config(run_dir, plain, finished=finished)
    return Start(checkpoint, last_round, json.loads(summary.read_text(encoding="utf-8")) if finished else None)


def _fit_and_test(
    config: DictConfig,
    run_dir: Path,
    learner: Learner,
    trainer: pl.Trainer,
    loaders: FederatedDataModule,
    checkpoint: Path | None,
) -> Summary:
    """Train from `checkpoint` on, and test the best round, or the last one without validation images."""
    try:
        trainer.fit(learner, loaders, ckpt_path=checkpoint)
    except SystemExit as end:  # Lightning raises it on a second Ctrl-C
        raise Interrupted(f"stopped in round {trainer.current_epoch + 1}; resume=true goes on from the last checkpoint") from end
    saver = trainer.checkpoint_callbacks[-1]
    if isinstance(saver, SaveRounds) and saver.stopped:
        raise Interrupted(
            f"stopped after round {trainer.current_epoch} of {config.rounds}; resume=true output_dir={run_dir} goes on"
        )
    summary: Summary = {**fit_summary(learner, loaders.federated_data, config.rounds), CHOSEN_BY: None}
    best = next((callback for callback in trainer.checkpoint_callbacks if isinstance(callback, SaveBest)), None)
    if best is not None:
        summary |= {"fit/best_round": best.round, CHOSEN_BY: learner.chosen_by}
        summary |= {best_key(name): value for name, value in best.metrics.items()}
    trainer.test(learner, loaders, ckpt_path=None if best is None else best.path, verbose=False)
    return {**summary, **tested_summary(learner, loaders.federated_data)}


def _plain(config: DictConfig) -> dict[str, Any]:
    plain: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    return plain
