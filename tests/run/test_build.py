"""What a configuration describes."""

import dataclasses
import tracemalloc

import torch
from omegaconf import OmegaConf

from mtl.run.build import data_fingerprint, files_fingerprint
from mtl.run.identity import digest, fingerprint
from tests.conftest import make_federation


def test_the_fingerprint_of_data_depends_on_every_part_and_copies_no_image() -> None:
    data, config = make_federation(), OmegaConf.create({"seed": 0})
    parts = [part.numpy().tobytes() for part in (data.images, data.targets, data.known)]
    assert data_fingerprint(config, data) == fingerprint({"seed": 0}, digest(*parts).encode())
    turned = dataclasses.replace(data, images=data.images.transpose(2, 3).contiguous().transpose(2, 3))
    assert data_fingerprint(config, turned) == data_fingerprint(config, data)  # whatever the order in memory
    names = OmegaConf.create({"weights": None, "start": None, "distil": {"teacher": None}, "fleet": {"profiles": None}})
    assert files_fingerprint(names, torch.ones(2)) != files_fingerprint(names, torch.zeros(2))
    assert files_fingerprint(names, torch.zeros(0, 4)) == files_fingerprint(names)
    large = dataclasses.replace(data, images=torch.zeros(1000, 3, 64, 64, dtype=torch.uint8))
    tracemalloc.start()
    data_fingerprint(config, large)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < large.images.numel() / 10
