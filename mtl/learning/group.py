"""Joining the other ranks of a run, whoever started them."""

import importlib.metadata
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment

from mtl.federation.ranks import Ranks

TIMEOUT = timedelta(minutes=30)


@contextmanager
def joined(accelerator: str) -> Iterator[Ranks]:
    """The ranks of this run, in a process group while the context lasts."""
    kinds = (SLURMEnvironment, TorchElasticEnvironment)
    place = next((kind() for kind in kinds if kind.detect()), LightningEnvironment())
    gpu = accelerator in ("gpu", "cuda") or (accelerator == "auto" and torch.cuda.is_available())
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = str(place.main_address), str(place.main_port)
    if gpu:
        torch.cuda.set_device(place.local_rank())
    count = int(os.environ.get("WORLD_SIZE", place.world_size()))
    number = int(os.environ.get("RANK", place.global_rank()))
    dist.init_process_group("nccl" if gpu else "gloo", rank=number, world_size=count, timeout=TIMEOUT)
    try:
        yield Ranks()
    finally:
        dist.destroy_process_group()


def versions() -> dict[str, str]:
    """What must be the same on every rank for their results to fit together."""
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in ("torch", "mtl")}}
