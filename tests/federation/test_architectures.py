"""Every architecture trains federated, by every backend alike, and what belongs to a subtask stays with those that train it."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from mtl.balancing.gramian import HeadGeometry, cosines
from mtl.balancing.grouping import group_tasks
from mtl.data.client_batches import LocalWork
from mtl.data.federated_data import FederatedData
from mtl.data.transforms import Augmentation, Normalise
from mtl.federation.algorithms.local_sgd import LocalSGD
from mtl.federation.inference import Inference
from mtl.federation.layout import is_head
from mtl.federation.objective import Objective
from mtl.losses.bce import BCE
from mtl.losses.pairs import TaskCounts
from mtl.models import cnn, heads
from mtl.models.architecture import Parts
from mtl.models.multi_task_model import MultiTaskModel
from mtl.run.build import build_data, build_model
from mtl.run.members import PARTIAL
from mtl.run.train import train
from tests.composing import compose
from tests.conftest import make_federation
from tests.federation.test_backends import LOOP, STACKED, assert_close, three_rounds, uneven
from tests.run.test_train import SMALL, small

ARCHITECTURES = [name for name in PARTIAL["architecture"] if name != "hard_sharing"]
OPTIONS = {
    "cross_stitch": {"groups": 2},
    "soft_sharing": {"groups": [["c0", 2], [1, "c3"]]},
    "grouped": {"groups": 2},
    "mmoe": {"width": 6},
    "dselect_k": {"width": 6, "entropy": 0.1},
    "cgc": {"width": 6},
    "ple": {"width": 6},
    "mtan": {},
}
CASES = [(name, OPTIONS[name]) for name in ARCHITECTURES] + [
    ("mtan", {"groups": 2}),
    ("dselect_k", {"width": 6, "per_image": False}),
    ("ple", {"width": 6, "groups": 2, "num_levels": 3}),
]


def model_of(name: str, options: dict, data: FederatedData, trunk: str = "groupnorm") -> MultiTaskModel:  # type: ignore[type-arg]
    torch.manual_seed(0)
    make = {
        "groupnorm": lambda: cnn.small_cnn(data.image_shape, channels=(4, 8), width=6, groups=2),
        "dropout": lambda: cnn.classic_cnn(data.image_shape, channels=(4,), width=8),
    }[trunk]
    parts = Parts(make, lambda width: heads.LinearHeads(width, data.num_tasks), trunk, data.tasks, data.image_shape)
    return MultiTaskModel(*PARTIAL["architecture"][name](parts, **options), BCE(data.num_tasks)).double()


@pytest.mark.parametrize(("name", "options"), CASES)
@pytest.mark.parametrize(("trunk", "keep"), [("groupnorm", "nothing"), ("dropout", "heads")])
def test_loop_and_stacked_agree(name: str, options: dict, trunk: str, keep: str) -> None:  # type: ignore[type-arg]
    data = uneven([5, 1, 7], 1)
    model = model_of(name, options, data, trunk)
    states = [
        three_rounds(make, data, model, keep=keep, client=LocalSGD(learning_rate=0.02), work=LocalWork(3, steps=2))
        for make in (LOOP, STACKED)
    ]
    assert_close(*states, 1e-9)
    moved = {key for key, value in model.params().items() if not torch.equal(value, states[0].params[key])}
    assert moved == {key for key in model.params() if keep == "nothing" or not is_head(key)}


@pytest.mark.parametrize(
    ("name", "options", "keep", "rule"),
    [
        *((*case, "heads", "argmax") for case in CASES),
        ("cross_stitch", OPTIONS["cross_stitch"], "nothing", "platt"),
        ("cross_stitch", OPTIONS["cross_stitch"], "all", "argmax"),
        ("mtan", {}, "heads", "platt"),
        ("ple", OPTIONS["ple"], "all", "platt"),
    ],
)
def test_scores_are_those_of_each_client_s_own_model(name: str, options: dict, keep: str, rule: str) -> None:  # type: ignore[type-arg]
    from mtl.federation.fusion import fit_platt

    data = uneven([5, 2, 7], 1)
    model = model_of(name, options, data)
    state = three_rounds(LOOP, data, model, keep=keep, work=LocalWork(3, steps=2), rounds=2)
    objective = Objective(Augmentation(), Normalise(), mirror=True)
    index = data.split.test
    expected = torch.zeros(len(index), data.num_tasks)
    for client in range(data.num_clients):
        client_params = {key: value[0] for key, value in state.bank.load([client], {"params": state.params})["params"].items()}

        def score(images: Tensor, client_params: dict[str, Tensor] = client_params) -> Tensor:
            views = [objective.inputs(images, dtype=torch.float64)]
            views.append(views[0].flip(-1))
            return torch.stack([functional_call(model.eval(), client_params, (view,)) for view in views]).mean(0).detach().float()

        scores, client_images = score(data.images[index]), data.clients[client]
        if rule == "platt":
            scale, offset = fit_platt(
                score(data.images[client_images]),
                data.targets[client_images],
                data.known[client_images] & data.assignment[client],
            )
            scores = (scores * scale + offset).float()
        expected += torch.where(data.assignment[client], scores, 0)
    expected /= data.assignment.sum(0)
    model.train()
    if keep == "nothing":
        model.load_state_dict(state.params, strict=False)
    for activation_numel in (model.activation_numel, 2**24):
        # A few images and clients at a time give what all at once do.
        model.activation_numel = activation_numel
        for stacked in (False, True):
            scores = Inference(model, objective, rule).scores(data, state, index, stacked=stacked)
            assert torch.allclose(scores, expected, atol=1e-5)


def test_the_entropy_of_gates_counts_where_a_label_is_known() -> None:
    data = make_federation()
    model = model_of("dselect_k", {"entropy": 0.5, "per_image": False, "width": 6}, data)
    plain = model_of("dselect_k", {"entropy": 0.0, "per_image": False, "width": 6}, data)
    plain.load_state_dict(model.state_dict())
    objective = Objective(Augmentation(), Normalise())
    inputs = objective.inputs(data.images[:4], dtype=torch.float64)
    mask = torch.ones(4, 4, dtype=torch.bool)
    mask[:, 1] = False
    mask[0, 2] = False
    valid = torch.tensor([True, True, True, False])
    counts = TaskCounts(torch.ones(4), torch.ones(4))
    losses = [objective.losses(m, inputs, data.targets[:4], mask, valid, counts).tasks for m in (model, plain)]
    entropy = model.penalty(model.trunk(inputs))
    assert entropy is not None
    # Three images count; subtask 1 has no known label among them, subtask 2 two.
    assert torch.allclose(losses[0] - losses[1], entropy[0] * torch.tensor([3, 0, 2, 3]) / 3)
    slopes = torch.autograd.grad(losses[0].sum(), list(model.heads.parameters()))
    assert all(not slope[1].any() and slope[0].any() for slope in slopes)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_each_is_built_from_its_defaults(class_folders: Path, name: str) -> None:
    config = small(class_folders, f"architecture={name}")
    data = build_data(config)
    model = build_model(config, data.image_shape, data.tasks, data.num_exclusive)
    assert model(torch.rand(2, *data.image_shape)).shape == (2, 4)


@pytest.mark.parametrize("mode", ["federated", "centralised"])
def test_a_whole_run(class_folders: Path, tmp_path: Path, mode: str) -> None:
    words = ["architecture=mtan", f"mode={mode}", "rounds=2", "keep=heads", "trainer.precision=bf16-mixed"]
    assert train(small(class_folders, *words), tmp_path / "run")["test/auroc"] is not None


def test_the_default_is_hard_sharing_with_its_names(class_folders: Path) -> None:
    config = small(class_folders)
    data = build_data(config)
    model = build_model(config, data.image_shape, data.tasks, data.num_exclusive)
    layers = {"0.weight", "1.weight", "1.bias", "4.weight", "4.bias"}
    assert set(model.params()) == {f"trunk.features.{name}" for name in layers} | {"heads.weight", "loss.bias"}


def test_groups_found_from_gradients_train(class_folders: Path, tmp_path: Path) -> None:
    words = [*SMALL, f"data.root={class_folders}", "heads=linear", "loss=bce"]
    config = compose(words)
    data = build_data(config)
    model = build_model(config, data.image_shape, data.tasks, data.num_exclusive)
    inputs = Objective(Augmentation(), Normalise()).inputs(data.images[data.split.train])
    features = model.trunk(inputs)
    logits = model.heads(features)
    errors = torch.sigmoid(logits) - data.targets[data.split.train].float()
    heads = HeadGeometry(model.params()["heads.weight"], features.detach(), cosine=False)
    cosine, _ = cosines(heads.gramian(errors.detach()))
    groups = group_tasks(cosine, 2)
    assert sorted(task for group in groups for task in group) == [0, 1, 2, 3]
    option = str(groups).replace(" ", "")
    run = train(compose([*words, "architecture=grouped", f"architecture.groups={option}", "rounds=2"]), tmp_path / "run")
    assert run["test/auroc"] is not None


def test_wrong_groups_are_refused_before_anything_is_written(class_folders: Path, tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r"architecture.groups must be in \[1, 4\], the number of subtasks, got 9"):
        train(small(class_folders, "architecture=grouped", "architecture.groups=9"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
