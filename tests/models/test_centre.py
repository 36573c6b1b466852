"""The centre head and its peaks."""

import math

import pytest
import torch

from mtl.losses.centre import centre_targets
from mtl.models.centre import CentreHead, decode, map_layers, map_stride
from mtl.models.cnn import flat, lenet, separable_cnn, small_cnn


def test_the_head_keeps_the_places_of_maps_of_any_size() -> None:
    head = CentreHead(16, width=8)
    for size in ((20, 20), (7, 13), (1, 1)):
        assert head(torch.rand(2, 16, *size)).shape == (2, 5, *size)


def test_the_heat_starts_near_its_prior() -> None:
    torch.manual_seed(0)
    heat = CentreHead(16)(torch.rand(2, 16, 8, 8))[:, 0].sigmoid().detach()
    assert float(heat.mean()) == pytest.approx(0.1, abs=0.03)


def test_decoding_its_targets_gives_the_boxes_back() -> None:
    boxes = torch.tensor(
        [[[10.0, 12, 50, 61], [70.0, 8, 96, 40], [64.0, 64, 100, 120]], [[3.0, 5, 40, 44], [0.0, 0, 0, 0], [0.0, 0, 0, 0]]]
    )
    valid = torch.tensor([[True, True, True], [True, False, False]])
    targets = centre_targets(boxes, valid, (16, 14), 8)
    maps = torch.zeros(2, 5, 16, 14)
    maps[:, 0] = torch.logit(targets.heat * 0.98 + 0.01)
    at = targets.cell[:, None].expand(-1, 4, -1)
    values = torch.where(valid[..., None], torch.cat([targets.offset, targets.log_size], 2), 0)
    maps[:, 1:] = maps[:, 1:].flatten(2).scatter_add(2, at, values.transpose(1, 2)).view(2, 4, 16, 14)
    decoded, scores = decode(maps, 8, top=5)
    for image in range(2):
        sure = scores[image] > 0.9
        assert int(sure.sum()) == int(valid[image].sum())
        order = decoded[image, sure][:, 0].argsort()
        expected = boxes[image, valid[image]]
        assert torch.allclose(decoded[image, sure][order], expected[expected[:, 0].argsort()], atol=1e-3)


def test_only_peaks_count_the_highest_first() -> None:
    maps = torch.full((1, 5, 4, 4), -5.0)
    maps[0, 1:] = 0
    maps[0, 0, 1, 1], maps[0, 0, 1, 2], maps[0, 0, 3, 3] = 2.0, 1.5, 1.0
    boxes, scores = decode(maps, 4, top=3)
    assert scores[0, :2].tolist() == pytest.approx([1 / (1 + math.exp(-2)), 1 / (1 + math.exp(-1))])
    assert float(scores[0, 2]) < 0.01
    assert boxes[0, 0].tolist() == [2, 2, 6, 6]


def test_the_map_of_a_trunk_ends_before_its_flatten() -> None:
    for trunk in (small_cnn((1, 56, 46)), separable_cnn((1, 56, 46))):
        assert map_stride(map_layers(trunk), 1) == (128, 8)
    assert map_stride(map_layers(small_cnn((3, 64, 64), channels=[16, 32])), 3) == (32, 4)


def test_trunks_without_a_map_and_strides_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="mode=detection needs a trunk of convolutions"):
        map_layers(flat((1, 8, 8)))
    with pytest.raises(ValueError, match="stride of 2, 4, 8, 16, got"):
        map_stride(map_layers(lenet((1, 32, 32))), 1)
    with pytest.raises(ValueError, match=r"detector.width must be a number divisible by detector.groups=8, got 12"):
        CentreHead(16, width=12)
