"""Joining the other ranks of a run, whoever started them."""

import importlib.metadata
import logging
import os
import platform
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment

from mtl.federation.ranks import Ranks
from mtl.run.spawn import inside_step

logger = logging.getLogger(__name__)
TIMEOUT = timedelta(minutes=30)
PATIENCE = 15.0  # seconds until a rank says whom it waits for


def environment() -> ClusterEnvironment:
    """Where this process stands among the ranks, and who started it. Slurm's numbers count in a step of srun alone.

    Raises ValueError where srun was not told how many tasks a machine has.
    """
    if TorchElasticEnvironment.detect():
        return TorchElasticEnvironment()
    if not inside_step():
        return LightningEnvironment()
    try:
        return SLURMEnvironment()
    except RuntimeError as error:
        raise ValueError(f"srun must be told --ntasks-per-node, which is trainer.devices: {error}") from error


def _tell(place: str, number: int, count: int) -> None:
    logger.warning("rank %d waits for the other %d of %d processes at %s", number, count - 1, count, place)


@contextmanager
def process_group(accelerator: str) -> Iterator[Ranks]:
    """The ranks of this run, in a process group while the context lasts."""
    place = environment()
    gpu = accelerator in ("gpu", "cuda") or (accelerator == "auto" and torch.cuda.is_available())
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = str(place.main_address), str(place.main_port)
    if gpu:
        torch.cuda.set_device(place.local_rank())
    count = int(os.environ.get("WORLD_SIZE", place.world_size()))
    number = int(os.environ.get("RANK", place.global_rank()))
    patience = threading.Timer(PATIENCE, _tell, (f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}", number, count))
    patience.start()
    try:
        dist.init_process_group("nccl" if gpu else "gloo", rank=number, world_size=count, timeout=TIMEOUT)
    finally:
        patience.cancel()
    try:
        yield Ranks()
    finally:
        dist.destroy_process_group()


def versions() -> dict[str, str]:
    """What must be the same on every rank for their results to fit together."""
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in ("torch", "mtl")}}
