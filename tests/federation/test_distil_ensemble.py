"""What the server learns from the clients' models on images without labels."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hydra_zen import instantiate
from torch import nn

from mtl.base.types import Params
from mtl.data.client_batches import LocalWork
from mtl.data.federated_data import FederatedData
from mtl.devices.widths import narrow
from mtl.federation.algorithms.fedavg import fedavg
from mtl.federation.algorithms.local_sgd import LocalSGD
from mtl.federation.clients.contract import Backend, Block, CohortJob, Training
from mtl.federation.clients.loop import LoopBackend
from mtl.federation.clients.stacked import StackedBackend
from mtl.federation.population.sampling import Sampling
from mtl.federation.population.views import Views, ViewsBackend
from mtl.federation.round import State, run_round
from mtl.federation.schedule import Schedule
from mtl.federation.server_steps.distil_ensemble import DistilEnsemble, Ensemble, feddf
from mtl.learning.checkpoints import read_checkpoint
from mtl.losses.bce import BCE
from mtl.models.cnn import Trunk
from mtl.models.heads import LinearHeads
from mtl.models.multi_task_model import MultiTaskModel
from mtl.run.train import train
from tests.composing import compose
from tests.conftest import clone, make_images
from tests.federation.small_federations import build_federation, initial_state
from tests.federation.test_backends import model_of, uneven
from tests.federation.test_rounds import OBJECTIVE, assert_equal
from tests.run.test_train import kill_after, numbers, small, without_time

IMAGES = torch.randint(0, 256, (7, 1, 8, 8), generator=torch.Generator().manual_seed(5), dtype=torch.uint8)


def prepared(images: torch.Tensor) -> torch.Tensor:
    return (images.float() / 255 - 0.5) / 0.25


def two_layers(seed: int) -> MultiTaskModel:
    torch.manual_seed(seed)
    trunk = Trunk(nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 6)), 6)
    return MultiTaskModel(trunk, LinearHeads(6, 4), BCE(4))


def ensemble_of(model: MultiTaskModel, images: torch.Tensor = IMAGES, **options: object) -> Ensemble:
    return Ensemble(DistilEnsemble(**options), [model], OBJECTIVE, LocalSGD(head_scale=1.0), images, seed=0)  # type: ignore[arg-type]


def stacked(models: list[MultiTaskModel]) -> Block:
    params = {name: torch.stack([model.params()[name] for model in models]) for name in models[0].params()}
    return Block(list(range(len(models))), {"params": params}, {}, torch.zeros(0))


TASKS = torch.tensor([[True, True, False, False], [True, False, True, False], [True, False, False, False]])


@pytest.mark.parametrize("as_one_block", [True, False])
def test_the_teacher_is_the_mean_over_the_clients_that_train_the_subtask(as_one_block: bool) -> None:
    models = [two_layers(seed) for seed in range(3)]
    ensemble = ensemble_of(models[0], batch_size=3)
    if as_one_block:
        votes = ensemble.votes(stacked(models), TASKS)
    else:
        votes = sum((ensemble.votes(stacked([model]), TASKS[[k]]) for k, model in enumerate(models)), torch.zeros(7, 4))
    logits = torch.stack([model(prepared(IMAGES)) for model in models]).detach()
    expected = torch.stack([logits[:, :, 0].sum(0), logits[0, :, 1], logits[1, :, 2], torch.zeros(7)], 1)
    torch.testing.assert_close(votes, expected, rtol=1e-4, atol=1e-5)


def test_a_step_by_hand_leaves_alone_what_nobody_trained() -> None:
    model, teacher = two_layers(0), two_layers(1)
    ensemble = ensemble_of(model, steps=1, batch_size=7, rate=0.5, temperature=2.0)
    teacher_scores = teacher(prepared(IMAGES)).detach()
    counts = torch.tensor([2.0, 1.0, 1.0, 0.0])
    student = ensemble.distil(
        model.params(), teacher_scores * counts, counts, round=0, frozen=frozenset({"trunk.features.1.bias"})
    )
    # Independently: cross-entropy against the teacher's probabilities has the gradient of the divergence; T^2 times it.
    loss = 4 * F.binary_cross_entropy_with_logits(
        model(prepared(IMAGES))[:, :3] / 2, torch.sigmoid(teacher_scores[:, :3] / 2), reduction="sum"
    )
    grads = torch.autograd.grad(loss / 7, list(model.parameters()))
    for (name, before), grad in zip(model.params().items(), grads, strict=True):
        after = before if name == "trunk.features.1.bias" else before - 0.5 * grad
        torch.testing.assert_close(student[name], after, rtol=1e-4, atol=1e-6)
    assert torch.equal(student["heads.weight"][3], model.params()["heads.weight"][3])


def test_a_student_of_clients_that_are_all_alike_does_not_move() -> None:
    model = two_layers(0)
    ensemble = ensemble_of(model, rate=0.1)
    votes = ensemble.votes(stacked([model] * 3), TASKS)
    before = clone(model.params())
    after = ensemble.distil(model.params(), votes, TASKS.sum(0).float(), round=0, frozen=frozenset())
    for name, value in before.items():
        assert torch.equal(model.params()[name], value)
        assert torch.allclose(after[name], value, atol=1e-5), name


def test_it_mends_what_averaging_breaks() -> None:
    """Two clients that compute the same with their hidden channels in another order: their mean computes something else."""
    one, other = two_layers(0), two_layers(0)
    with torch.no_grad():
        order = torch.arange(11, -1, -1)
        first, last = (layer for layer in other.trunk.modules() if isinstance(layer, nn.Linear))
        for value in (first.weight, first.bias):
            value.copy_(value[order])
        last.weight.copy_(last.weight[:, order])
    images, fresh = make_images(per_class=30, seed=1).images, make_images(per_class=30, seed=2).images
    teacher_scores = one(prepared(fresh)).detach()
    torch.testing.assert_close(other(prepared(fresh)), teacher_scores, rtol=1e-4, atol=1e-5)
    ensemble = ensemble_of(one, images, steps=200, rate=0.2)
    everyone = torch.ones(2, 4, dtype=torch.bool)
    mean = {name: (value + other.params()[name]) / 2 for name, value in one.params().items()}
    mended = ensemble.distil(
        mean, ensemble.votes(stacked([one, other]), everyone), torch.full((4,), 2.0), round=0, frozen=frozenset()
    )

    def error(params: Params) -> float:
        return float((torch.func.functional_call(one, params, (prepared(fresh),)) - teacher_scores).square().mean())

    assert error(mended) < 0.2 * error(mean)


def rounds(make: Callable[[Training], Backend], data: FederatedData, model: MultiTaskModel, of: list[int] | None = None) -> State:
    training = Training(model, OBJECTIVE, LocalSGD(), LocalWork(batch_size=3), 0)
    views = Views.whole(model, data.num_clients)
    if of is not None:
        views = Views([narrow(model, data.image_shape, ratio) for ratio in (1.0, 0.5)], torch.tensor(of))
    options = DistilEnsemble(steps=5, batch_size=4, num_images=7)
    models = [level.model for level in views.levels]
    federation = build_federation(
        data,
        training,
        make if views.all_whole else lambda training: ViewsBackend(views, training, make),
        schedule=Schedule(),
        sampling=Sampling(dropout=0.3),
        server=feddf(),
        algorithm=fedavg(momentum=0.5),
        views=views,
        steps=(Ensemble(options, models, OBJECTIVE, LocalSGD(), IMAGES, seed=0),),
    )
    state = initial_state(federation)
    for r in range(3):
        state, _ = run_round(federation, state, r)
    return state


@pytest.mark.parametrize("kind", ["dropout", "localnorm"])
@pytest.mark.parametrize("of", [None, [0, 1, 1, 0]])
def test_loop_and_stacked_agree(kind: str, of: list[int] | None) -> None:
    data = uneven([5, 1, 7, 3], 1)
    model = model_of(kind, data, torch.float64)
    one, other = rounds(LoopBackend, data, model, of), rounds(StackedBackend, data, model, of)
    for name, value in one.params.items():
        assert torch.allclose(value, other.params[name], rtol=1e-9, atol=1e-11), name


def test_a_round_is_the_average_and_then_the_lesson() -> None:
    data = uneven([5, 2], 1)
    model = two_layers(0)
    training = Training(model, OBJECTIVE, LocalSGD(), LocalWork(batch_size=3), 0)
    ensemble = Ensemble(DistilEnsemble(steps=5, batch_size=4), [model], OBJECTIVE, LocalSGD(), IMAGES, seed=0)
    plain = build_federation(data, training, LoopBackend, schedule=Schedule(), server=feddf(), steps=())
    state = initial_state(plain)
    averaged, before = run_round(plain, state, 1)
    learned, after = run_round(replace(plain, server=replace(plain.server, steps=(ensemble,))), state, 1)
    assert (before.bytes_up, before.bytes_down) == (after.bytes_up, after.bytes_down)
    slots = training.slots(state.params, data.num_tasks)
    job = CohortJob([0, 1], 1, lambda clients: state.bank.load(clients, slots), before.learning_rate, progress=1 / 5)
    votes = sum((ensemble.votes(t, data.assignment[t.clients]) for t in LoopBackend(training)(job, data)), torch.zeros(7, 4))
    expected = ensemble.distil(averaged.params, votes, data.assignment.sum(0), round=1, frozen=frozenset())
    assert_equal(learned.params, expected)
    assert not torch.equal(learned.params["heads.weight"], averaged.params["heads.weight"])


def test_images_come_from_a_data_set_or_are_noise(class_folders: Path) -> None:
    noise = DistilEnsemble(num_images=100).unlabelled((1, 8, 8), torch.uint8, seed=0)
    assert noise.shape == (100, 1, 8, 8)
    assert float(noise.float().mean()) == pytest.approx(127.5, abs=4)  # deviation .9
    assert DistilEnsemble(num_images=9).unlabelled((3, 1, 1), torch.float32, seed=0).shape == (9, 3, 1, 1)
    node = "data@server.images=folder"
    words = ["server=feddf", f"+{node}", f"server.images.root={class_folders}", "server.images.image_size=[16,16]"]
    (options,) = instantiate(compose([*words, "server.images.grey=true", "server.num_images=5"]).server).options
    drawn = options.unlabelled((1, 16, 16), torch.uint8, seed=0)
    stored = {image.numpy().tobytes() for image in options.images.images}
    assert len({image.numpy().tobytes() for image in drawn} & stored) == 5
    assert torch.equal(drawn, options.unlabelled((1, 16, 16), torch.uint8, seed=0))
    with pytest.raises(
        ValueError, match=r"server.images must be \(1, 8, 8\) of torch.uint8, like those of the run, got \(1, 16, 16\)"
    ):
        options.unlabelled((1, 8, 8), torch.uint8, seed=0)
    with pytest.raises(ValueError, match=r"server.num_images must be in \[1, 32\], the number of images of folder, got 33"):
        replace(options, num_images=33).unlabelled((1, 16, 16), torch.uint8, seed=0)
    for name in ("num_images", "steps", "batch_size"):
        with pytest.raises(ValueError, match=f"server.{name} must be >= 1, got 0"):
            feddf(**{name: 0})
    with pytest.raises(ValueError, match=r"server.rate must be > 0, got 0"):
        feddf(rate=0.0)


LESSONS = [
    "server=feddf",
    "server.steps=3",
    "server.num_images=20",
    "algorithm.momentum=.5",
    "sampling.dropout=0.3",
    "trunk=classic_cnn",
]


def test_a_resumed_run_ends_as_one_never_interrupted(class_folders: Path, tmp_path: Path) -> None:
    """That ranks agree is held by the run of `test_peers`, whose server distils too."""
    config = small(class_folders, *LESSONS)
    summary = train(config, tmp_path / "whole")
    kill_after(config, tmp_path / "cut", rounds=2)
    config.resume = True
    assert without_time(train(config, tmp_path / "cut")) == without_time(summary)
    assert numbers(tmp_path / "cut") == numbers(tmp_path / "whole")


@pytest.mark.slow
def test_two_ranks_learn_the_same_lessons(class_folders: Path, tmp_path: Path) -> None:
    for name, words in (("one", []), ("two", ["trainer.devices=2"])):
        train(small(class_folders, *LESSONS, *words), tmp_path / name)
    one, two = (read_checkpoint(tmp_path / name / "checkpoints" / "last.ckpt")["state_dict"] for name in ("one", "two"))
    for name, value in one.items():
        assert torch.allclose(two[name], value, rtol=1e-4, atol=1e-5), name


def test_what_does_not_go_with_it_is_refused(class_folders: Path, tmp_path: Path) -> None:
    for overrides, message in (
        (
            ["keep=heads"],
            r"server=feddf needs the clients' whole models: mode=federated and keep=nothing, got clients that keep heads",
        ),
        (["mode=local"], r"got clients that keep all"),
        (
            ["transfer=features", "transfer.cache=true", "transfer.trained=1", "augmentation=none", "mirror=false"],
            r"server=feddf needs images that are not features: transfer.cache must be false",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            train(small(class_folders, "server=feddf", *overrides), tmp_path / "run")
        assert not (tmp_path / "run").exists()
