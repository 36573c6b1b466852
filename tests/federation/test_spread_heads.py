"""Clients that have one person each and no negative: FedAvg collapses, FedAwS and fixed codes do not."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mtl.data.client_batches import LocalWork
from mtl.data.federated_data import FederatedData
from mtl.data.transforms import Augmentation, Normalise
from mtl.federation.algorithms.local_sgd import LocalSGD
from mtl.federation.clients.contract import Training
from mtl.federation.clients.stacked import StackedBackend
from mtl.federation.inference import Inference
from mtl.federation.objective import Objective
from mtl.federation.round import run_round
from mtl.federation.server import Server, mean
from mtl.federation.server_steps.spread_heads import fedaws, spread_loss, spread_out
from mtl.losses.hinge import Hinge
from mtl.metrics.scores import rank1
from mtl.models import cnn, heads
from mtl.models.multi_task_model import MultiTaskModel
from mtl.run.rules import check_rules
from mtl.run.train import train
from tests.composing import compose
from tests.conftest import make_federation
from tests.federation.small_federations import build_federation, initial_state
from tests.run.test_train import small

# Three directions in the plane, at 0, 60 and 90 degrees: distances 2 sin 30 = 1, 2 sin 45 = 1.414, 2 sin 15 = .518.
UNITS = torch.tensor([[1.0, 0.0], [0.5, math.sqrt(3) / 2], [0.0, 1.0]], dtype=torch.float64)
NEAR = 2 * math.sin(math.radians(15))


def test_spread_loss_by_hand() -> None:
    # Margin 1.2: the pair at 1.414 costs nothing, each other pair counts from both its ends.
    assert float(spread_loss(UNITS, margin=1.2)) == pytest.approx(2 * 0.2**2 + 2 * (1.2 - NEAR) ** 2)
    # The nearest alone: 1 for the first head, NEAR for the other two.
    assert float(spread_loss(UNITS, margin=1.2, nearest=1)) == pytest.approx(0.2**2 + 2 * (1.2 - NEAR) ** 2)
    assert float(spread_loss(UNITS, margin=1.2, nearest=9)) == float(spread_loss(UNITS, margin=1.2))


def test_a_step_by_hand_keeps_lengths() -> None:
    heads_before = torch.stack([3 * UNITS[1], 2 * UNITS[2]])
    # d/dw_1 of 2 (v - d)^2 is -4 (v - d) (w_1 - w_2) / d.
    away = (UNITS[1] - UNITS[2]) / NEAR
    step = 0.1 * 4 * (1.2 - NEAR)
    expected = torch.stack([3 * F.normalize(UNITS[1] + step * away, dim=0), 2 * F.normalize(UNITS[2] - step * away, dim=0)])
    after = spread_out(heads_before, rate=0.1, margin=1.2)
    assert torch.allclose(after, expected)
    assert after.norm(dim=1).tolist() == pytest.approx([3, 2])


@given(st.integers(0, 999), st.integers(2, 12), st.sampled_from([None, 1, 3]))
@settings(max_examples=30, deadline=None)
def test_small_steps_lower_the_regulariser(seed: int, count: int, nearest: int | None) -> None:
    start = torch.randn(count, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    after = spread_out(start, rate=1e-3, margin=1.41, nearest=nearest)
    before, after_step = (float(spread_loss(F.normalize(w, dim=-1), margin=1.41, nearest=nearest)) for w in (start, after))
    assert after_step <= before + 1e-9


def test_orthogonal_heads_rest_and_equal_heads_stay_finite() -> None:
    spread_heads = heads.CosineHeads(8, 5).weight.detach()
    assert torch.allclose(spread_out(spread_heads, rate=1.0, margin=1.41), spread_heads, atol=1e-6)
    same = torch.ones(3, 4)
    assert torch.equal(spread_out(same, rate=1.0, margin=1.41).isfinite(), torch.ones(3, 4, dtype=torch.bool))


@pytest.mark.parametrize("words", [["heads=codes"], ["keep=heads"], ["mode=local"]])
def test_server_needs_the_heads(words: list[str]) -> None:
    with pytest.raises(ValueError, match=r"server=fedaws needs heads that the clients send: .* keep=nothing"):
        check_rules(compose(["server=fedaws", *words]))


def test_wrong_options_are_refused() -> None:
    for options, message in (
        ({"spread": 0}, "server.spread must be > 0, got 0"),
        ({"margin": 2.5}, r"server.margin must be in \(0, 2\], got 2.5"),
        ({"nearest": 0}, "server.nearest must be null or >= 1, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            fedaws(**options)  # type: ignore[arg-type]


PEOPLE = 8
# The trunk of `small`: a 3x3 convolution to 8 channels, GroupNorm, 8 places each way to 8 features; and the loss's bias.
SHARED = 9 * 8 + 2 * 8 + (8 * 8 * 8 + 1) * 8 + 1


def faces() -> FederatedData:
    """Eight clients of one person each, whose pictures differ little beside what all have in common, as faces do."""
    data = make_federation(PEOPLE, num_classes=PEOPLE, per_class=8, size=12)
    rng = torch.Generator().manual_seed(0)
    common = torch.randint(40, 180, (1, 1, 12, 12), generator=rng)
    personal = torch.randint(-30, 31, (PEOPLE, 1, 12, 12), generator=rng)[data.identity]
    noise = torch.randint(-15, 16, data.images.shape, generator=rng)
    return replace(data, images=(common + personal + noise).to(torch.uint8))


def training_of(data: FederatedData, head: str) -> Training:
    """The paper's loss."""
    torch.manual_seed(0)
    trunk = cnn.small_cnn(data.image_shape, channels=(8, 16), width=16)
    layer = {"cosine": heads.CosineHeads, "codes": heads.FixedCodes}[head](trunk.width, PEOPLE)
    model = MultiTaskModel(trunk, layer, Hinge(PEOPLE, margin=0.9, squared=True))
    objective = Objective(Augmentation(flip=False), Normalise())
    return Training(model, objective, LocalSGD(learning_rate=0.3, head_scale=1.0), LocalWork(batch_size=6, steps=2), 0)


def train_positive_only(data: FederatedData, head: str, server: Server, *, rounds: int = 30) -> tuple[MultiTaskModel, Tensor]:
    """The paper's loss on clients without negatives; returns the model and the scores of the test images."""
    assert (data.negatives[data.assignment] == 0).all()
    training = training_of(data, head)
    model = training.model
    federation = build_federation(data, training, StackedBackend, server=server, num_rounds=rounds)
    state = initial_state(federation)
    for r in range(rounds):
        state, _ = run_round(federation, state, r)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(state.params[name])
    return model, Inference(model, training.objective).scores(data, state, data.split.test)


def outcome(head: str, server: Server) -> tuple[float, float]:
    """Rank-1 on the test images, and the mean cosine between the features of two people."""
    data = faces()
    model, scores = train_positive_only(data, head, server)
    people = data.identity[data.split.test]
    with torch.no_grad():
        features = F.normalize(model.eval().trunk(Normalise()(data.images[data.split.test].float() / 255)), dim=-1)
    strangers = people[:, None] != people
    return rank1(scores, people), float((features @ features.T)[strangers].mean())


def test_naive_averaging_collapses_and_fedaws_and_fixed_codes_do_not() -> None:
    naive, naive_cosine = outcome("cosine", mean())
    spread, spread_cosine = outcome("cosine", fedaws())
    codes, codes_cosine = outcome("codes", mean())
    # Beyond the loss's own margin: with the threshold that it trains for, everybody is everybody.
    assert naive_cosine > 0.9
    for accuracy, cosine in ((spread, spread_cosine), (codes, codes_cosine)):
        assert cosine < 0.25
        assert accuracy > 0.9 > naive


def test_codes_are_apart_of_unit_length_never_sent_and_the_same_for_a_seed() -> None:
    torch.manual_seed(0)
    codes = heads.FixedCodes(8, 5)
    assert torch.allclose(codes.codes @ codes.codes.T, torch.eye(5), atol=1e-6)
    assert not list(codes.parameters())
    assert "codes" in codes.state_dict()
    features = torch.randn(3, 8)
    assert torch.allclose(codes(features), F.cosine_similarity(features[:, None], codes.codes, dim=-1), atol=1e-6)
    many = heads.FixedCodes(4, 9).codes
    assert torch.allclose(many.norm(dim=1), torch.ones(9))
    drawn = heads.FixedCodes(64, 40, kind="random").codes
    assert float((drawn @ drawn.T - torch.eye(40)).abs().max()) < 0.65  # of 780 cosines of deviation 1/8
    with pytest.raises(ValueError, match=r"heads.kind must be one of orthogonal, random, got hadamard"):
        heads.FixedCodes(4, 2, kind="hadamard")


@pytest.mark.parametrize("overrides", [["fusion=platt"], ["keep=heads"], ["mode=local"], ["mode=centralised"]])
def test_codes_train_in_every_mode(class_folders: Path, tmp_path: Path, overrides: list[str]) -> None:
    summary = train(small(class_folders, "heads=codes", "rounds=2", *overrides), tmp_path / "run")
    assert 0 <= summary["test/rank1"] <= 1  # type: ignore[operator]
    sent = 3 if overrides == ["fusion=platt"] else 2  # in two rounds, and to be calibrated at a validation
    assert summary["fit/bytes_down"] == (0 if overrides[0].startswith("mode") else sent * 2 * 4 * SHARED)
