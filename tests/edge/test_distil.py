"""Learning from a teacher: each part against an implementation of its own, and whole runs."""

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mtl.edge.distil import Distillation, Distilling, angles, attention, distances, hints, soft_binary, soft_identities
from mtl.losses.bce import BCE
from mtl.losses.pairs import PairLosses
from mtl.models.cnn import small_cnn
from mtl.models.heads import LinearHeads
from mtl.models.multi_task_model import MultiTaskModel
from mtl.run.train import train
from tests.edge.conftest import CENTRALISED, Train
from tests.run.test_train import numbers, small

EVERYBODY = torch.ones(5, dtype=torch.bool)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def huber(x: float) -> float:
    return 0.5 * x * x if abs(x) < 1 else abs(x) - 0.5


def test_soft_binary_targets_are_the_divergence_of_bernoulli_variables() -> None:
    s, t, temperature = draw(5, 3), draw(5, 3, seed=1), 3.0
    divergence = soft_binary(s, t, EVERYBODY[:, None].expand(5, 3), EVERYBODY, temperature)
    left, right = (torch.distributions.Bernoulli(logits=z / temperature) for z in (t, s))
    torch.testing.assert_close(divergence, temperature**2 * torch.distributions.kl_divergence(left, right).mean(0))


def test_soft_identities_are_the_divergence_of_categorical_variables() -> None:
    s, t, temperature = draw(5, 4), draw(5, 4, seed=1), 4.0
    divergence = soft_identities(s, t, EVERYBODY[:, None].expand(5, 4), EVERYBODY, temperature)
    expected = F.kl_div(F.log_softmax(s / temperature, 1), F.softmax(t / temperature, 1), reduction="batchmean") * temperature**2
    torch.testing.assert_close(divergence.sum(), expected)
    # A client that trains two of the four compares those two alone.
    counted = torch.tensor([True, False, True, False]).expand(5, 4)
    two = soft_identities(s[:, ::2], t[:, ::2], EVERYBODY[:, None].expand(5, 2), EVERYBODY, temperature)
    torch.testing.assert_close(soft_identities(s, t, counted, EVERYBODY, temperature)[::2], two)


def test_relations_are_those_of_loops_over_pairs_and_triples() -> None:
    s, t = draw(5, 3), draw(5, 4, seed=1)

    def all_distances(f: Tensor) -> dict[tuple[int, int], float]:
        lengths = {(i, j): math.dist(f[i].tolist(), f[j].tolist()) for i, j in itertools.permutations(range(5), 2)}
        mean = sum(lengths.values()) / len(lengths)
        return {pair: value / mean for pair, value in lengths.items()}

    student, teacher = all_distances(s), all_distances(t)
    expected = sum(huber(student[pair] - teacher[pair]) for pair in student) / len(student)
    assert float(distances(s, t, EVERYBODY)) == pytest.approx(expected, rel=1e-4)

    def angle(f: Tensor, i: int, j: int, k: int) -> float:
        return float(F.cosine_similarity(f[j] - f[i], f[k] - f[i], dim=0))

    triples = list(itertools.permutations(range(5), 3))
    expected = sum(huber(angle(s, *triple) - angle(t, *triple)) for triple in triples) / len(triples)
    assert float(angles(s, t, EVERYBODY)) == pytest.approx(expected, rel=1e-4)


def test_attention_is_worked_out_by_hand() -> None:
    # Maps of two places: energies (1, 0) and (3, 4)/5, whose squared distance over the places is (.16 + .64) / 2.
    student = {(1, 2): torch.tensor([[[[1.0, 0.0]]]]), (9, 9): torch.zeros(1, 1, 9, 9)}
    teacher = {(1, 2): torch.tensor([[[[3.0, 4.0]]]]).sqrt()}
    assert float(attention(student, teacher, EVERYBODY[:1])) == pytest.approx(0.4)
    with pytest.raises(ValueError, match=r"distil.attention needs maps of one size in both trunks"):
        attention({(2, 2): torch.zeros(1, 1, 2, 2)}, teacher, EVERYBODY[:1])


@pytest.mark.parametrize("part", [hints, distances, angles], ids=lambda part: part.__name__)
def test_padding_has_no_influence(part: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    s, t = draw(5, 3).requires_grad_(), draw(5, 3, seed=1)
    valid = torch.tensor([True, True, True, True, False])
    padded = torch.cat([s[:4], s[:1].detach()])
    loss = part(padded, torch.cat([t[:4], t[:1]]), valid)
    torch.testing.assert_close(loss, part(s[:4], t[:4], EVERYBODY[:4]))
    loss.backward()
    assert s.grad is not None
    assert bool(s.grad.isfinite().all())


def models() -> tuple[MultiTaskModel, MultiTaskModel]:
    return tuple(MultiTaskModel(small_cnn((1, 8, 8), channels=(8,), width=6), LinearHeads(6, 3), BCE(3)) for _ in range(2))  # type: ignore[return-value]


def test_a_student_that_is_its_teacher_has_nothing_to_learn_from_it() -> None:
    teacher, _ = models()
    options = Distilling(teacher="x", hard=0.0, soft=1.0, feature=1.0, attention=1.0, distance=1.0, angle=1.0)
    student, _ = models()
    student.load_state_dict(teacher.state_dict())
    inputs, mask = draw(5, 1, 8, 8), torch.ones(5, 3, dtype=torch.bool)

    def hard(representation: object, logits: Tensor) -> PairLosses:
        return PairLosses(logits.square().sum(0), logits.square().sum(0))

    losses = Distillation(options, teacher, student).losses(student, inputs, mask, EVERYBODY, hard)
    assert losses.tasks.abs().max() < 1e-5
    assert losses.positive.min() > 0  # the parts of the labels are still told
    losses.tasks.sum().backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert max(float(parameter.grad.abs().max()) for parameter in student.trunk.parameters() if parameter.grad is not None) < 1e-4


def test_hints_need_embeddings_of_one_width() -> None:
    teacher, _ = models()
    student = MultiTaskModel(small_cnn((1, 8, 8), channels=(8,), width=4), LinearHeads(4, 3), BCE(3))
    with pytest.raises(
        ValueError, match=r"distil.feature needs embeddings of one width, got 6 of the teacher and 4 of the student"
    ):
        Distillation(Distilling(feature=1.0), teacher, student)


@pytest.mark.parametrize("kind", ["soft", "identity", "feature", "attention", "relations"])
def test_every_kind_trains(trained: Train, pictures: Path, tmp_path: Path, kind: str) -> None:
    words = [CENTRALISED, "rounds=2", "split.train=8"]
    summary = train(small(pictures, *words, f"distil={kind}", f"distil.teacher={trained(CENTRALISED)}"), tmp_path / kind)
    assert 0 <= (summary["test/rank1"] or 0) <= 1
    assert numbers(tmp_path / kind) != numbers(trained(*words))
    # A step asks the teacher, the model does not.
    alone = json.loads((trained(*words) / "summary.json").read_text())
    assert summary["cost/flops_forward"] == alone["cost/flops_forward"]
    assert (summary["cost/flops_training"] or 0) > alone["cost/flops_training"]


def test_clients_learn_from_a_teacher_too(trained: Train, pictures: Path, tmp_path: Path) -> None:
    every = ["distil.feature=1", "distil.distance=1", "distil.angle=1", "distil.attention=1"]
    words = [f"distil.teacher={trained(CENTRALISED)}", *every, "rounds=2", "split.train=8", "engine.backend=auto"]
    train(small(pictures, *words), tmp_path / "run")
    assert numbers(tmp_path / "run") != numbers(trained("rounds=2", "split.train=8"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["engine.backend=vmap"], "distil.teacher needs engine.backend=loop, or auto, which takes it; got vmap"),
        (["distil.soft=0"], "distil must have a weight above zero"),
        (["distil.temperature=0"], "distil.temperature must be > 0, got 0"),
        (["distil.hard=-1"], "distil.hard must be >= 0, got -1"),
        (["data.image_size=[8,8]"], r"distil.teacher must have been trained on images of \(1, 8, 8\), got \(1, 16, 16\)"),
        (["normalise.mean=0.3"], "distil.teacher must be trained with Normalise"),
        (["subtasks.classes=[c0,c1,c3]"], "distil.teacher must have the same subtasks in the same order, .* it also has c2"),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused(
    trained: Train, pictures: Path, tmp_path: Path, overrides: list[str], message: str
) -> None:
    with pytest.raises(Exception, match=message):
        train(small(pictures, f"distil.teacher={trained('mode=centralised')}", "split.train=8", *overrides), tmp_path / "run")
    assert not (tmp_path / "run").exists()
