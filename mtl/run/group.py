"""Connects this process with the other ranks of a run, whether `mtl`, torchrun or srun started them."""

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
PATIENCE = 15.0  # seconds until a rank logs that it waits


def environment() -> ClusterEnvironment:
    """Return Lightning's environment for the program that started the ranks: torchrun, srun, or `mtl` itself.

    Slurm's variables are read only inside of a step of srun.

    Raises:
        ValueError: srun was started without --ntasks-per-node.
    """
    if TorchElasticEnvironment.detect():
        return TorchElasticEnvironment()
    if not inside_step():
        return LightningEnvironment()
    try:
        return SLURMEnvironment()
    except RuntimeError as error:
        raise ValueError(f"srun needs --ntasks-per-node, which is trainer.devices: {error}") from error


def _warn_of_waiting(place: str, number: int, count: int) -> None:
    logger.warning("rank %d waits for the other %d of %d processes at %s", number, count - 1, count, place)


@contextmanager
def process_group(accelerator: str) -> Iterator[Ranks]:
    """Join the process group of the run while the context lasts, and yield its ranks."""
    place = environment()
    gpu = accelerator in ("gpu", "cuda") or (accelerator == "auto" and torch.cuda.is_available())
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = str(place.main_address), str(place.main_port)
    if gpu:
        torch.cuda.set_device(place.local_rank())
    count = int(os.environ.get("WORLD_SIZE", place.world_size()))
    number = int(os.environ.get("RANK", place.global_rank()))
    patience = threading.Timer(
        PATIENCE, _warn_of_waiting, (f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}", number, count)
    )
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
    """Return the versions that must be equal on every rank."""
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in ("torch", "mtl")}}
