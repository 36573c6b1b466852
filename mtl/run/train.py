"""One run, from its configuration to its run directory: build, fit, test, summary, report."""

import contextlib
import json
import logging
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from hydra_zen import instantiate
from lightning_fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf

from mtl.base.files import write_arrays, write_json
from mtl.base.memory import keep_freed_memory
from mtl.base.types import Interrupted
from mtl.data.datamodule import FederatedDataModule
from mtl.data.federated_data import FederatedData
from mtl.federation.ranks import Ranks
from mtl.learning.checkpoints import AtomicCheckpoints, CheckpointError, EvaluateLast, SaveBest, SaveRounds, read_checkpoint
from mtl.learning.detection import DetectionLearning
from mtl.learning.federated import FederatedLearning
from mtl.learning.learner import Learner, account_key
from mtl.learning.profiling import ProfileRounds
from mtl.learning.progress import RoundProgress
from mtl.learning.pruning import PruneWeights
from mtl.metrics.scores import Metrics, worst_clients
from mtl.report.page import write_report
from mtl.run.build import build_data, data_fingerprint, files_fingerprint
from mtl.run.config import check_keys
from mtl.run.directory import held, open_run_directory, update_config
from mtl.run.group import environment, joined, versions
from mtl.run.learners import build_learner
from mtl.run.options import check_options
from mtl.run.spawn import inside_rank, run_ranks
from mtl.run.tracking import WANDB_MODES, Tracker, WandbOptions

logger = logging.getLogger(__name__)
MODES = ("federated", "centralised", "local", "single_task", "detection")
# 16-mixed needs a gradient scaler in every client's steps; bfloat16 does not.
PRECISIONS = ("32-true", "bf16-mixed")


def train(config: DictConfig, run_dir: Path) -> Metrics:
    """Train as `config` says, in `run_dir`; returns what its `summary.json` holds.

    With several devices this process starts a rank for each and waits, unless torchrun or srun has started it as one of them. Raises
    ValueError where the configuration or the data cannot be used, `Diverged` where the loss is not finite, and `Interrupted` after
    Ctrl-C; then `resume=true` goes on.
    """
    _check(config)
    plain: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    options = config.trainer
    if inside_rank():
        with joined(options.accelerator) as ranks:
            return _train(config, plain, run_dir, ranks)
    if options.num_nodes > 1:
        raise ValueError(f"trainer.num_nodes={options.num_nodes} needs torchrun or srun to start the processes on every machine")
    if options.devices > 1:
        run_ranks(options.devices, plain, run_dir)
        summary: Metrics = json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))
        return summary
    return _train(config, plain, run_dir, Ranks())


def _train(config: DictConfig, plain: dict[str, Any], run_dir: Path, ranks: Ranks) -> Metrics:
    here, machines = config.trainer.devices, config.trainer.num_nodes
    if ranks.count != here * machines:
        raise ValueError(
            f"trainer.devices={here} times trainer.num_nodes={machines} must be the {ranks.count} processes that were started"
        )
    keep_freed_memory()
    if config.trainer.threads or ranks.count > 1:
        torch.set_num_threads(config.trainer.threads or max((os.cpu_count() or 1) // here, 1))
    data = build_data(config)
    # Every rank works for the one run directory of the first.
    run_dir = ranks.broadcast(run_dir)
    learner, steps = build_learner(config, data, run_dir)
    learner.run, learner.files = data_fingerprint(config, data), files_fingerprint(config, *learner.further_data)
    ranks.require_same({**versions(), "configuration and data": learner.run, "files": learner.files})
    trainer = build_trainer(config, run_dir, learner)
    loaders = FederatedDataModule(data, steps=steps)
    with held(run_dir) if ranks.is_first else contextlib.nullcontext():
        checkpoint, last_round, summary = ranks.broadcast(_open(run_dir, plain, learner) if ranks.is_first else None)
        if summary is not None:
            logger.info("output_dir %s holds this run, finished: there is nothing to go on with", run_dir)
        else:
            summary = _train_in(config, plain, run_dir, learner, trainer, loaders, checkpoint, last_round)
        result: Metrics = summary
    return result


def _train_in(
    config: DictConfig,
    plain: dict[str, Any],
    run_dir: Path,
    learner: Learner,
    trainer: pl.Trainer,
    loaders: FederatedDataModule,
    checkpoint: Path | None,
    last_round: int | None,
) -> Metrics:
    """Train, test and write what a run directory holds."""
    tracker, data = None, loaders.federated_data
    if Ranks().is_first:
        told = config.tracking
        wandb = WandbOptions(
            told.wandb,
            told.project,
            told.group,
            config.name or run_dir.name,
            tags=list(told.tags),
            job_type=told.job_type,
            log_model=told.log_model,
        )
        tracker = Tracker(run_dir, plain, wandb=wandb, last_round=last_round)
        learner.log_round = tracker.log
    try:
        summary = _fit_and_test(config, run_dir, data, learner, trainer, loaders, checkpoint)
        if tracker is not None:
            _save(run_dir, data, learner, summary)
            if config.write_report:
                write_report([run_dir])
            tracker.finish(summary, sorted((run_dir / "figures").glob("*.png")))
    except BaseException:
        if tracker is not None:
            tracker.abandon()
        raise
    return summary


def _open(run_dir: Path, plain: dict[str, Any], learner: Learner) -> tuple[Path | None, int | None, Metrics | None]:
    """The checkpoint to go on from, its last round, and the summary of a run that is finished."""
    checkpoint = open_run_directory(run_dir, plain, resume=plain["resume"])
    if checkpoint is None:
        return None, None, None
    content = read_checkpoint(checkpoint, learner.run)
    if content["files"] != learner.files:
        raise CheckpointError(
            f"checkpoint {checkpoint} is of another run: weights, start, distil.teacher, fleet.profiles, scenes or the server's images "
            "do not hold what they held"
        )
    last_round, rounds = int(content["epoch"]) + 1, plain["rounds"]
    if last_round > rounds:
        raise ValueError(f"rounds must be at least the {last_round} that output_dir {run_dir} has done already, got {rounds}")
    update_config(run_dir, plain)
    summary = run_dir / "summary.json"
    finished = summary.exists() and last_round == rounds
    return checkpoint, last_round, json.loads(summary.read_text(encoding="utf-8")) if finished else None


def _fit_and_test(
    config: DictConfig,
    run_dir: Path,
    data: FederatedData,
    learner: Learner,
    trainer: pl.Trainer,
    loaders: FederatedDataModule,
    checkpoint: Path | None,
) -> Metrics:
    try:
        trainer.fit(learner, loaders, ckpt_path=checkpoint)
    except SystemExit as end:  # what Lightning makes of a second Ctrl-C
        raise Interrupted(f"stopped in round {trainer.current_epoch + 1}; resume=true goes on from the last checkpoint") from end
    saver = trainer.checkpoint_callbacks[-1]
    if isinstance(saver, SaveRounds) and saver.stopped:
        raise Interrupted(
            f"stopped after round {trainer.current_epoch} of {config.rounds}; resume=true output_dir={run_dir} goes on"
        )
    summary = _fit_summary(learner, data, config.rounds)
    chosen = next((callback for callback in trainer.checkpoint_callbacks if isinstance(callback, SaveBest)), None)
    if chosen is not None:
        summary["fit/best_round"] = chosen.round
    trainer.test(learner, loaders, ckpt_path=None if chosen is None else chosen.path, verbose=False)
    tested, metrics = data.num_tested, learner.test_metrics
    metrics["worst_clients_auroc"] = worst_clients(metrics, data.tasks[:tested], data.assignment[:, :tested])
    return summary | {f"test/{name}": value for name, value in metrics.items()}


def build_trainer(config: DictConfig, run_dir: Path, learner: Learner) -> pl.Trainer:
    """An epoch is a round. The best round is kept only where there are validation images to choose it by."""
    folder = run_dir / "checkpoints"
    callbacks: list[pl.Callback] = [RoundProgress(f"{config.mode}, seed {config.seed}")]
    callbacks.append(EvaluateLast())
    if learner.watched == "val":
        learner.check_choice()
        callbacks.append(SaveBest(folder / "best.ckpt"))
    if config.prune.kind == "weights":
        callbacks.append(PruneWeights(instantiate(config.prune), learner.model, num_rounds=config.rounds))
    if config.profile:
        callbacks.append(ProfileRounds(run_dir / "profile"))
    callbacks.append(SaveRounds(folder / "last.ckpt", every=config.checkpoint_every))
    _quieten_lightning()
    try:
        return pl.Trainer(
            accelerator=config.trainer.accelerator,
            devices=config.trainer.devices,
            num_nodes=config.trainer.num_nodes,
            strategy="ddp" if Ranks().count > 1 else "auto",
            use_distributed_sampler=False,
            precision=config.trainer.precision,
            max_epochs=config.rounds,
            check_val_every_n_epoch=min(config.evaluate_every, config.rounds),
            num_sanity_val_steps=0,
            plugins=[AtomicCheckpoints(), environment()],
            callbacks=callbacks,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=run_dir,
        )
    except (MisconfigurationException, ModuleNotFoundError, RuntimeError) as error:
        raise ValueError(f"trainer cannot be made of accelerator={config.trainer.accelerator}: {error}") from error


def _check(config: DictConfig) -> None:
    check_keys(config)
    check_options(config)
    if config.mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, got {config.mode}")
    for name in ("rounds", "evaluate_every", "checkpoint_every", "tracking.log_every", "engine.block"):
        value = OmegaConf.select(config, name)
        if value is not None and value < 1:
            raise ValueError(f"{name} must be >= 1, got {value}")
    if config.tracking.wandb not in WANDB_MODES:
        raise ValueError(f"tracking.wandb must be one of {', '.join(WANDB_MODES)}, got {config.tracking.wandb}")
    if config.trainer.precision not in PRECISIONS:
        raise ValueError(f"trainer.precision must be one of {', '.join(PRECISIONS)}, got {config.trainer.precision}")
    if config.trainer.threads is not None and config.trainer.threads < 1:
        raise ValueError(f"trainer.threads must be >= 1, got {config.trainer.threads}")
    for name in ("devices", "num_nodes"):
        if config.trainer[name] < 1:
            raise ValueError(f"trainer.{name} must be >= 1, got {config.trainer[name]}")
        if config.trainer[name] > 1 and config.mode in ("centralised", "detection"):
            raise ValueError(f"mode={config.mode} trains on one device: trainer.{name} must be 1, got {config.trainer[name]}")


def _quieten_lightning() -> None:
    """Silence what Lightning says of things that are so by design here."""
    for name in ("pytorch_lightning", "lightning_fabric", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*`LightningModule.configure_optimizers` returned `None`.*",  # the clients have their own
        ".*does not have many workers.*",  # the images are in memory: a batch is a number
        ".*isinstance.treespec, LeafSpec.. is deprecated.*",  # Lightning's own use of torch
        "Checkpoint directory .* exists and is not empty.*",  # on purpose, to resume
    ):
        warnings.filterwarnings("ignore", message=message)


def _fit_summary(learner: Learner, data: FederatedData, rounds: int) -> Metrics:
    account = learner.account
    summary: Metrics = {account_key(name): float(value) for name, value in account.items()}
    summary["fit/samples_per_second"] = account["samples"] / account["seconds"]
    summary["fit/rounds"] = rounds
    timing = learner.round_seconds()
    if timing is not None:
        summary["fit/round_seconds"], summary["fit/overhead"] = timing
    for way in ("bytes_up", "bytes_down"):
        summary[f"fit/{way}_per_client"] = account[way] / data.num_clients
    if "modelled_seconds" in account:
        summary["cost/modelled_seconds_per_round"] = account["modelled_seconds"] / rounds
        summary["cost/modelled_joules_per_client"] = account["modelled_joules"] / data.num_clients
    return summary | {f"cost/{name}": value for name, value in learner.costs().items()}


def _save(run_dir: Path, data: FederatedData, learner: Learner, summary: Metrics) -> None:
    """What is known at the end, the summary last: where it is, everything is."""
    views = learner.federation.population.views if isinstance(learner, FederatedLearning) else None
    _save_federation(run_dir, data, {} if views is None else views.client_records)
    _save_predictions(run_dir, learner)
    _save_conflict(run_dir, learner)
    if isinstance(learner, DetectionLearning):
        write_arrays(run_dir / "detection.npz", **learner.detections())
    if isinstance(learner, FederatedLearning) and views is not None:
        learner.federation.population.sampling.write(run_dir, data.clients.sizes, views.widths)
    write_json(run_dir / "summary.json", summary)


def _save_federation(run_dir: Path, data: FederatedData, of_clients: dict[str, list[Any]]) -> None:
    """of_clients: the share of the channels, or the architecture, that each client trains, where they are not the same."""
    tested = data.num_tested
    assignment = data.assignment.cpu().numpy()
    source = {"source_assignment": assignment[:, tested:]} if data.num_source else {}
    write_arrays(
        run_dir / "federation.npz",
        **{name: np.array(value) for name, value in of_clients.items()},
        positives=data.positives[:, :tested].numpy(),
        negatives=data.negatives[:, :tested].numpy(),
        assignment=assignment[:, :tested],
        images=np.array(data.clients.sizes),
        **source,
    )


def _save_predictions(run_dir: Path, learner: Learner) -> None:
    data = learner.federated_data
    test, tested = data.split.test, data.num_tested
    assert learner.test_scores is not None
    write_arrays(
        run_dir / "predictions.npz",
        scores=learner.test_scores.numpy(),
        targets=data.targets[test, :tested].cpu().numpy(),
        known=data.known[test, :tested].cpu().numpy(),
        identity=data.identity[test].cpu().numpy(),
        num_exclusive=np.array(data.num_exclusive),
        tasks=np.array(data.tasks[:tested]),
    )


def _save_conflict(run_dir: Path, learner: Learner) -> None:
    """For each pair of tasks the mean cosine of their gradients, the share of steps in which they conflict, and the number of steps: over
    the rounds up to the tested one.
    """
    if learner.pairs is None:
        return
    cosines, against, count = learner.pairs.cpu().numpy()
    steps = np.maximum(count, 1)
    tasks = np.array(learner.balanced)
    write_arrays(run_dir / "conflict.npz", cosine=cosines / steps, conflicting=against / steps, steps=count, tasks=tasks)
