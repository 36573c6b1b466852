"""The Lightning Trainer of a run, and the logger that writes a learner's numbers to the run's files and to W&B."""

import contextlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from hydra_zen import instantiate
from lightning_fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.loggers import Logger

from mtl.federation.ranks import Ranks
from mtl.learning.checkpoints import AtomicCheckpoints, EvaluateLast, Identity, NameRun, SaveBest, SaveRounds
from mtl.learning.learner import Learner
from mtl.learning.profiling import ProfileRounds
from mtl.learning.progress import RoundProgress
from mtl.learning.pruning import PruneWeights
from mtl.run.group import environment
from mtl.run.tracking import Tracker
from mtl.run.wandb_run import WandbOptions


class RunLogger(Logger):
    """A Lightning logger that passes on to a run's `Tracker` while `tracking` lasts; only the first rank logs."""

    def __init__(self, config: DictConfig, run_dir: Path) -> None:
        super().__init__()
        options = config.tracking
        self.wandb = WandbOptions(
            mode=options.wandb,
            project=options.project,
            group=options.group,
            name=config.name or run_dir.name,
            tags=list(options.tags),
            job_type=options.job_type,
            notes=options.notes,
            log_model=options.log_model,
            system=options.system,
        )
        self._config, self._run_dir = config, run_dir
        self._tracker: Tracker | None = None

    @property
    def name(self) -> str:
        """See `Logger`."""
        return "mtl"

    @property
    def version(self) -> str:
        """See `Logger`: the name of the run directory."""
        return self._run_dir.name

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Log the numbers of a round, `step`."""
        if self._tracker is not None and step is not None:
            self._tracker.log(step, metrics)

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Write nothing: `open_run_directory` writes the configuration."""

    @contextlib.contextmanager
    def tracking(self, last_round: int | None, data: str | None = None) -> Iterator[Tracker]:
        """Log to the files of the run and to W&B while the context lasts; an error in it marks W&B's run as failed.

        Args:
            last_round: see `Tracker`.
            data: fingerprint of the data.
        """
        plain: dict[str, Any] = OmegaConf.to_container(self._config, resolve=True)  # type: ignore[assignment]
        self._tracker = Tracker(self._run_dir, plain, wandb=self.wandb, last_round=last_round, data=data)
        try:
            yield self._tracker
        except BaseException:
            self._tracker.abandon()
            raise
        finally:
            self._tracker = None


def build_trainer(config: DictConfig, run_dir: Path, learner: Learner, identity: Identity, logger: RunLogger) -> pl.Trainer:
    """Build the Trainer, whose epochs are rounds; the best round is saved only where validation images can select it."""
    folder = run_dir / "checkpoints"
    callbacks: list[pl.Callback] = [RoundProgress(f"{config.mode}, seed {config.seed}")]
    callbacks += [EvaluateLast(), NameRun(identity)]
    if learner.monitor_stage == "val":
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
            logger=logger,
            log_every_n_steps=1,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=run_dir,
        )
    except (MisconfigurationException, ModuleNotFoundError, RuntimeError) as error:
        raise ValueError(f"trainer cannot be made of accelerator={config.trainer.accelerator}: {error}") from error


def _quieten_lightning() -> None:
    """Silence Lightning's messages about what is intended here."""
    for name in ("pytorch_lightning", "lightning_fabric", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*`LightningModule.configure_optimizers` returned `None`.*",  # the clients have the optimisers
        ".*does not have many workers.*",  # the images are in memory: a batch is a number
        ".*isinstance.treespec, LeafSpec.. is deprecated.*",  # Lightning calls it
        "Checkpoint directory .* exists and is not empty.*",  # on purpose, to resume
    ):
        warnings.filterwarnings("ignore", message=message)
