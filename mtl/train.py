"""One run, from its configuration to its run directory: build, fit, test, summary, report."""

import contextlib
import json
import logging
import os
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from hydra_zen import instantiate
from lightning_fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf

from mtl.balancing.weighting import Equal
from mtl.build import build_data, build_levels, build_workloads, data_fingerprint, files_fingerprint, kept
from mtl.configs import check_keys
from mtl.data.client_batches import LocalWork
from mtl.data.datamodule import FederatedDataModule
from mtl.data.federated_data import FederatedData
from mtl.edge.widths import Level
from mtl.federation.auto import make_backend
from mtl.federation.balance import make_balance
from mtl.federation.features import cache_features
from mtl.federation.feddf import Ensemble, FedDF
from mtl.federation.fleet import FleetSampling
from mtl.federation.for_each_client import Backend, Training
from mtl.federation.heterofl import Levels, LevelsBackend
from mtl.federation.inference import Inference
from mtl.federation.objective import Objective
from mtl.federation.personalise import Bank
from mtl.federation.ranks import Ranks
from mtl.federation.rounds import Setting
from mtl.federation.sampling import Draws, Sampling
from mtl.files import write_arrays, write_json
from mtl.learning.centralised import CentralisedLearning
from mtl.learning.checkpoints import AtomicCheckpoints, CheckpointError, EvaluateLast, SaveBest, SaveRounds, read_checkpoint
from mtl.learning.detection import DetectionLearning
from mtl.learning.federated import FederatedLearning
from mtl.learning.group import environment, joined, versions
from mtl.learning.learner import Learner, account_key
from mtl.learning.profiling import ProfileRounds
from mtl.learning.progress import RoundProgress
from mtl.learning.pruning import PruneWeights
from mtl.memory import keep_freed_memory
from mtl.metrics import Metrics, worst_clients
from mtl.models.hard_sharing import HardSharing
from mtl.options import check_options
from mtl.report.page import write_report
from mtl.run_directory import held, open_run_directory, update_config
from mtl.spawn import inside_rank, run_ranks
from mtl.tracking import WANDB_MODES, Tracker, WandbOptions
from mtl.trained import build_start
from mtl.types import Interrupted

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
    run_dir = ranks.agree(run_dir)
    learner, steps = build_learner(config, data, run_dir)
    learner.run, learner.files = data_fingerprint(config, data), files_fingerprint(config, *learner.further_data)
    ranks.require_same({**versions(), "configuration and data": learner.run, "files": learner.files})
    trainer = build_trainer(config, run_dir, learner)
    loaders = FederatedDataModule(data, steps=steps)
    with held(run_dir) if ranks.first else contextlib.nullcontext():
        checkpoint, last_round, summary = ranks.agree(_open(run_dir, plain, learner) if ranks.first else None)
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
    if Ranks().first:
        told = config.tracking
        wandb = WandbOptions(
            told.wandb, told.project, told.group, config.name or run_dir.name, tags=list(told.tags), job_type=told.job_type
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


def build_learner(config: DictConfig, data: FederatedData, run_dir: Path) -> tuple[Learner, int]:
    """The learner of the mode, and its training steps in a round."""
    model, objective = build_start(config, data)
    transfer, image_shape, pixels = instantiate(config.transfer), data.image_shape, data.images.dtype
    num_frozen = transfer.freeze(model)
    if transfer.cache:
        if config.mode == "detection":
            raise ValueError("transfer.cache=true keeps features in place of pictures, and mode=detection trains on scenes too")
        data, objective = cache_features(model, num_frozen, objective, data, _device(config))
    frozen = transfer.schedule(model)
    client, work, schedule = instantiate(config.client), instantiate(config.work), instantiate(config.schedule)
    if scales := transfer.scales(model):
        client = replace(client, scales=scales)
    levels, seed = build_levels(config, data, model, objective), config.seed
    sampling = build_sampling(config, data, model, objective, levels)
    options = config.balance
    pooled = config.mode in ("centralised", "detection", "single_task")
    method, total, returns = instantiate(config.balancer), 0, 0
    if pooled or not isinstance(method, Equal):
        for cohort in (sampling.draw(data.num_clients, seed=seed, round=round)[1] for round in range(config.rounds)):
            total += sum(work.num_steps(data.clients.size(client)) for client in cohort)
            returns += len(cohort)
    # As many gradient steps in all as the clients that come back make together, spread evenly over the rounds.
    steps = max(round(total / config.rounds), 1)
    if pooled:
        work, returns, num_trained = LocalWork(batch_size=work.batch_size, steps=steps), config.rounds, 1
    else:
        num_trained = data.num_clients
    method = method.for_run(steps_per_round=total / max(returns, 1), num_rounds=returns / num_trained)
    balance = make_balance(
        method,
        model,
        level=options.level,
        heads=options.heads,
        normalise=options.normalise,
        gradient_scale=options.gradient_scale,
        conflict=options.conflict,
    )
    if balance is not None and objective.distil is not None:
        raise ValueError(
            "a teacher (distil.teacher, transfer.distance, transfer.angle) needs balancer=equal, without balance.conflict: what it "
            "asks for beside the labels is no task's"
        )
    if balance is not None and transfer.unfreeze_every is not None and balance.remembers_gradients:
        name = type(balance.method).__name__
        raise ValueError(
            f"transfer.unfreeze_every changes what is trained, and balancer {name} remembers the gradients of all of it"
        )
    if levels is not None and balance is not None and balance.remembers_gradients:
        name = type(balance.method).__name__
        raise ValueError(
            f"widths.levels below 1 and trunk=peers change what is trained, and balancer {name} remembers the gradients of all of it"
        )
    told = {"best_by": config.best_by, "per_task": config.tracking.per_task, "log_every": config.tracking.log_every}
    if config.mode == "single_task":
        data, sampling = data.single_tasks(), Sampling()
    if config.mode in ("centralised", "detection"):
        told |= {"num_rounds": config.rounds, "seed": seed, "balance": balance, "frozen": frozen}
        if config.mode == "detection":
            told |= {name: instantiate(config[name]) for name in ("scenes", "detection", "scene_augmentation")}
        learning = DetectionLearning if config.mode == "detection" else CentralisedLearning
        central = learning(model, data.pooled(), objective, client, work, schedule, **told)
        central.image_shape, central.pixels = image_shape, pixels
        return central, steps
    training = Training(model, objective, client, work, seed, balance)
    engine, server = config.engine, instantiate(config.server)
    ensemble = None
    if isinstance(server, FedDF):
        if kept(config) != "nothing":
            raise ValueError(
                f"server=feddf scores with the clients' models: it needs keep=nothing, got mode={config.mode} keep={config.keep}"
            )
        if transfer.cache:
            raise ValueError("server=feddf needs images that are not features: transfer.cache must be false, got true")
        models, students = ([model], 1) if levels is None else ([level.model for level in levels.levels], levels.students)
        images = server.unlabelled(data.image_shape, data.images.dtype, seed=seed)
        ensemble = Ensemble(server, models, replace(objective, distil=None), client, images, seed=seed, students=students)

    def backend(training: Training) -> Backend:
        name = engine.backend if objective.distil is None else "loop"
        return make_backend(name, training, num_rounds=config.rounds, block=engine.block, compile=engine.compile)

    setting = Setting(
        data=data,
        training=training,
        backend=backend(training) if levels is None else LevelsBackend(levels, training, backend),
        schedule=schedule,
        sampling=sampling,
        server=server,
        num_rounds=config.rounds,
        frozen=frozen,
        levels=levels,
        ensemble=ensemble,
    )
    params = model.params() if balance is None else model.params() | balance.start(model.params(), data.num_tasks)
    bank = Bank(
        kept(config),
        params,
        data.assignment,
        folder=run_dir / "bank",
        memory=engine.bank_memory,
        num_processes=Ranks().count,
    )
    if bank.num_bytes:
        place = f"files in {bank.folder}" if bank.folder else "memory"
        logger.info(
            "what stays on the clients: %.1f kB a client, %.1f MB when all %d have trained, in %s",
            bank.bytes_per_client / 1e3,
            bank.num_bytes / 1e6,
            data.num_clients,
            place,
        )
    federated = FederatedLearning(model, setting, Inference(model, objective, config.fusion), bank, **told)
    federated.image_shape, federated.pixels = image_shape, pixels
    return federated, 1


def _device(config: DictConfig) -> torch.device:
    """Where to compute before the Trainer is there."""
    return torch.device("cuda" if torch.cuda.is_available() and config.trainer.accelerator in ("auto", "gpu", "cuda") else "cpu")


def build_sampling(
    config: DictConfig, data: FederatedData, model: HardSharing, objective: Objective, levels: Levels | None
) -> Draws:
    """Who takes part in a round; with a fleet, as its devices and the server's patience allow."""
    sampling, fleet = instantiate(config.sampling), instantiate(config.fleet)
    if fleet.mix is None:
        sampling.draw(data.num_clients, seed=config.seed, round=0)  # raises where the cohort is larger
        draws: Draws = sampling
        return draws
    workloads = build_workloads(config, data, [Level(1.0, model, {})] if levels is None else levels.levels, objective)
    workload = workloads[0] if levels is None else levels.workload(workloads)
    return FleetSampling(sampling, fleet, workload, data.assignment, seed=config.seed)


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
    levels = learner.setting.levels if isinstance(learner, FederatedLearning) else None
    _save_federation(run_dir, data, levels)
    _save_predictions(run_dir, learner)
    _save_conflict(run_dir, learner)
    if isinstance(learner, DetectionLearning):
        write_arrays(run_dir / "detection.npz", **learner.detections())
    if isinstance(learner, FederatedLearning) and isinstance(learner.setting.sampling, FleetSampling):
        widths = None if levels is None else levels.widths
        learner.setting.sampling.write(run_dir / "fleet.csv", data.clients.sizes, widths)
    write_json(run_dir / "summary.json", summary)


def _save_federation(run_dir: Path, data: FederatedData, levels: Levels | None) -> None:
    """With the share of the channels, or the architecture, that each client trains, where they are not the same."""
    tested = data.num_tested
    assignment = data.assignment.cpu().numpy()
    source = {"source_assignment": assignment[:, tested:]} if data.num_source else {}
    write_arrays(
        run_dir / "federation.npz",
        **({} if levels is None else {name: np.array(value) for name, value in levels.told.items()}),
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
