"""Every backend gives the same result, and no client's depends on who is trained beside it."""

import logging
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mtl.base import compiling
from mtl.base.types import Slots
from mtl.data.client_batches import CohortBatches, LocalWork
from mtl.data.federated_data import FederatedData
from mtl.data.ragged import Ragged
from mtl.data.transforms import Augmentation, Normalise
from mtl.federation.algorithms.fedavg import fedavg
from mtl.federation.algorithms.local_sgd import LocalSGD
from mtl.federation.clients.auto import AutoBackend, _stacked_seconds, make_backend
from mtl.federation.clients.batches import chunks
from mtl.federation.clients.block import block_size, bytes_of_client
from mtl.federation.clients.contract import Backend, Block, CohortJob, Training
from mtl.federation.clients.loop import LoopBackend
from mtl.federation.clients.stacked import CannotStack, StackedBackend
from mtl.federation.objective import Objective
from mtl.federation.population.sampling import Sampling
from mtl.federation.round import State, run_round
from mtl.federation.schedule import Schedule
from mtl.losses.bce import BCE
from mtl.losses.ldam import LDAM
from mtl.losses.sphereface2 import SphereFace2
from mtl.models import cnn, heads
from mtl.models.cnn import Trunk
from mtl.models.multi_task_model import MultiTaskModel
from mtl.models.norm import replace_batch_norm
from tests.conftest import make_federation
from tests.federation.small_federations import build_federation, initial_state

FACES = Augmentation(rotation=10.0, scale=0.1, shift=0.08, brightness=0.2, cutout=0.2)
LOOP, STACKED = LoopBackend, StackedBackend


def uneven(sizes: list[int], seed: int) -> FederatedData:
    """Clients of given sizes over random images, subtasks assigned and labels known at random."""
    rng = torch.Generator().manual_seed(seed)
    count = sum(sizes)
    data = make_federation(per_class=-(-count // 4) + 2)
    order = data.split.train[torch.randperm(len(data.split.train), generator=rng)]
    assignment = torch.rand(len(sizes), 4, generator=rng) < 0.6
    assignment[range(len(sizes)), torch.randint(4, (len(sizes),), generator=rng)] = True
    clients = list(order[:count].split(sizes))
    known_labels = torch.rand(data.known.shape, generator=rng) < 0.8
    labels = [(kind & known_labels)[images].sum(0) for kind in (data.targets, ~data.targets) for images in clients]
    return replace(
        data,
        clients=Ragged.of(clients),
        known=known_labels,
        assignment=assignment,
        positives=torch.stack(labels[: len(sizes)]),
        negatives=torch.stack(labels[len(sizes) :]),
    )


def local_norm_cnn(image_shape: tuple[int, int, int]) -> Trunk:
    layers = [nn.Conv2d(image_shape[0], 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.LazyLinear(8)]
    features = nn.Sequential(*layers)
    features(torch.zeros(2, *image_shape))
    return Trunk(replace_batch_norm(features, "local"), 8)


def model_of(kind: str, data: FederatedData, dtype: torch.dtype = torch.float32) -> MultiTaskModel:
    torch.manual_seed(0)
    trunk = {
        "flat": lambda: cnn.flat(data.image_shape),
        "deferred": lambda: cnn.flat(data.image_shape),
        "dropout": lambda: cnn.classic_cnn(data.image_shape, channels=(4,), width=8),
        "groupnorm": lambda: cnn.small_cnn(data.image_shape, channels=(8,), width=8),
        "localnorm": lambda: local_norm_cnn(data.image_shape),
    }[kind]()
    if kind == "deferred":
        return MultiTaskModel(trunk, heads.LinearHeads(trunk.width, 4), LDAM(4, scale=2.0, defer=0.3)).to(dtype)
    if kind.endswith("norm"):
        return MultiTaskModel(trunk, heads.CosineHeads(trunk.width, 4), SphereFace2(4)).to(dtype)
    return MultiTaskModel(trunk, heads.LinearHeads(trunk.width, 4), BCE(4, positive_weight="balanced")).to(dtype)


def three_rounds(
    make: Callable[[Training], Backend],
    data: FederatedData,
    model: MultiTaskModel,
    *,
    keep: str = "nothing",
    client: LocalSGD | None = None,
    work: LocalWork | None = None,
    sampling: Sampling | None = None,
    augmentation: Augmentation = FACES,
    rounds: int = 3,
) -> State:
    training = Training(model, Objective(augmentation, Normalise()), client or LocalSGD(), work or LocalWork(batch_size=3), 0)
    fed = build_federation(
        data, training, make, schedule=Schedule("cosine"), sampling=sampling, algorithm=fedavg(momentum=0.5), keep=keep
    )
    state = initial_state(fed)
    for r in range(rounds):
        state, _ = run_round(fed, state, r)
    return state


def assert_close(left: State, right: State, tolerance: float) -> None:
    for one, other in ((left.params, right.params), (left.bank.state_dict(), right.bank.state_dict())):
        assert one.keys() == other.keys()
        for name, value in one.items():
            scale = other[name].abs().max() if other[name].numel() else 0
            assert torch.allclose(value, other[name], rtol=tolerance, atol=float(tolerance * scale)), name


SIZES = st.lists(st.integers(1, 9), min_size=1, max_size=5)
CLIENTS = st.builds(
    LocalSGD,
    learning_rate=st.sampled_from([0.02, 0.1]),
    momentum=st.sampled_from([0.0, 0.9]),
    weight_decay=st.sampled_from([0.0, 1e-2]),
    head_scale=st.sampled_from([0.0, 0.1, 1.0]),
)
WORKS = st.builds(LocalWork, batch_size=st.integers(1, 4), steps=st.sampled_from([None, 1, 4]), epochs=st.integers(1, 2))


@given(
    SIZES,
    st.integers(0, 99),
    st.sampled_from(["flat", "deferred", "dropout", "groupnorm", "localnorm"]),
    st.sampled_from(["nothing", "heads", "all"]),
    CLIENTS,
    WORKS,
    st.sampled_from([0.0, 0.4]),
    st.sampled_from([None, 1, 2]),
)
@settings(max_examples=30, deadline=None)
def test_loop_and_stacked_agree(
    sizes: list[int],
    seed: int,
    kind: str,
    keep: str,
    client: LocalSGD,
    work: LocalWork,
    dropout: float,
    block: int | None,
) -> None:
    data = uneven(sizes, seed)
    model = model_of(kind, data, torch.float64)
    options = {"keep": keep, "client": client, "work": work, "sampling": Sampling(dropout=dropout)}
    one = three_rounds(LOOP, data, model, **options)  # type: ignore[arg-type]
    other = three_rounds(lambda training: STACKED(training, block=block), data, model, **options)  # type: ignore[arg-type]
    assert_close(one, other, 1e-10)


@pytest.mark.parametrize("kind", ["flat", "dropout", "groupnorm"])
@pytest.mark.parametrize("keep", ["nothing", "heads", "all"])
def test_loop_and_stacked_agree_in_single_precision(kind: str, keep: str) -> None:
    data = uneven([5, 1, 7, 3], 1)
    model = model_of(kind, data)
    client = LocalSGD(learning_rate=0.02)
    assert_close(
        three_rounds(LOOP, data, model, keep=keep, client=client),
        three_rounds(STACKED, data, model, keep=keep, client=client),
        1e-5,
    )


@pytest.mark.slow
def test_a_compiled_step_agrees() -> None:
    data = uneven([5, 1, 7, 3], 1)
    model = model_of("flat", data)
    compiled = three_rounds(lambda training: STACKED(training, compiled=True), data, model)
    assert_close(three_rounds(LOOP, data, model), compiled, 1e-5)


@given(st.permutations(range(4)), st.sampled_from([LOOP, STACKED]))
@settings(max_examples=12, deadline=None)
def test_order_of_clients_in_the_cohort_does_not_matter(order: list[int], make: Callable[[Training], Backend]) -> None:
    class Ordered(Sampling):
        def draw(self, num_clients: int, *, seed: int, round: int) -> tuple[list[int], list[int]]:
            return order, order

    data = uneven([4, 2, 6, 2], 3)
    model = model_of("dropout", data, torch.float64)
    assert_close(
        three_rounds(make, data, model, sampling=Ordered(), keep="heads"), three_rounds(make, data, model, keep="heads"), 1e-10
    )


@pytest.mark.parametrize("make", [LOOP, STACKED])
@pytest.mark.parametrize("kind", ["dropout", "groupnorm", "localnorm"])
def test_padding_content_does_not_matter(make: Callable[[Training], Backend], kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = uneven([5, 1, 7], 2)
    model = model_of(kind, data, torch.float64)
    one = three_rounds(make, data, model)
    plan = Training.plan
    padded: list[bool] = []

    def padded_with_others(self: Training, *arguments: object) -> CohortBatches:
        batches = plan(self, *arguments)  # type: ignore[arg-type]
        padded.append(not batches.valid.all())
        return replace(batches, index=torch.where(batches.valid, batches.index, len(data.images) - 1 - batches.index))

    monkeypatch.setattr(Training, "plan", padded_with_others)
    assert_close(one, three_rounds(make, data, model), 1e-12)
    assert any(padded)


@pytest.mark.parametrize("make", [LOOP, STACKED])
def test_a_broken_image_reaches_only_the_client_that_holds_it(make: Callable[[Training], Backend]) -> None:
    data = uneven([5, 1, 7], 2)
    data = replace(data, images=data.images.double() / 255)
    data.images[data.clients[0]] = torch.inf
    state = three_rounds(make, data, model_of("dropout", data, torch.float64), rounds=0)
    training = Training(model_of("dropout", data, torch.float64), Objective(FACES, Normalise()), LocalSGD(), LocalWork(3), 0)
    job = CohortJob([0, 1, 2], 0, lambda clients: state.bank.load(clients, training.slots(state.params, 4)), 0.1)
    finite = {
        client: all(bool(value[place].isfinite().all()) for value in trained.update.values())
        for trained in make(training)(job, data)
        for place, client in enumerate(trained.clients)
    }
    assert finite == {0: False, 1: True, 2: True}


@pytest.mark.parametrize("make", [LOOP, STACKED])
def test_clients_that_sit_out_are_not_touched(make: Callable[[Training], Backend]) -> None:
    data = uneven([4, 4, 4, 4], 0)
    state = three_rounds(make, data, model_of("flat", data), keep="heads", sampling=Sampling(cohort=1), rounds=1)
    assert len(state.bank.state_dict()["clients"]) == 1


def test_dropout_masks_are_those_of_the_key_and_hit_the_stated_share() -> None:
    from mtl.models.dropout import KeyedDropout

    layer, inputs = KeyedDropout(0.3), torch.ones(40, 16, 8, 8)
    layer.key = torch.tensor([123, 456], dtype=torch.int32)
    first = layer(inputs)
    assert torch.equal(first, layer(inputs))
    assert torch.equal(first, layer(inputs.contiguous(memory_format=torch.channels_last)))
    assert set(first.unique().tolist()) == {0.0, float(torch.tensor(1.0) / 0.7)}
    assert float((first == 0).float().mean()) == pytest.approx(0.3, abs=0.01)  # deviation .0023
    layer.key = torch.tensor([124, 456], dtype=torch.int32)
    assert float((layer(inputs) == first).float().mean()) == pytest.approx(0.3**2 + 0.7**2, abs=0.015)
    assert torch.equal(layer.eval()(inputs), inputs)
    whole = KeyedDropout(0.5, whole="channel")(inputs).flatten(2)
    assert ((whole == 0).all(2) | (whole == 2).all(2)).all()


class Branching(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        return inputs if inputs.sum() > 0 else -inputs


def branching(data: FederatedData) -> MultiTaskModel:
    torch.manual_seed(0)
    features = nn.Sequential(nn.Flatten(), nn.Sequential(nn.Linear(64, 8), Branching()))
    return MultiTaskModel(Trunk(features, 8), heads.LinearHeads(8, 4), BCE(4))


def test_a_trunk_that_cannot_be_stacked_is_refused_by_its_layer_and_auto_falls_to_the_loop(
    caplog: pytest.LogCaptureFixture,
) -> None:
    data = uneven([4, 4], 0)
    with pytest.raises(CannotStack, match=r"cannot stack trunk.features.1.1 \(Branching\): .*; use engine.backend=loop"):
        three_rounds(STACKED, data, branching(data))
    with caplog.at_level(logging.INFO):
        state = three_rounds(lambda training: AutoBackend(training, num_rounds=3), data, branching(data))
    assert "backend: loop (engine.backend=vmap cannot stack trunk.features.1.1" in caplog.text
    assert_close(state, three_rounds(LOOP, data, branching(data)), 0)


def test_out_of_memory_splits_the_cohort_and_goes_on(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    data = uneven([4, 2, 6, 2, 3], 0)
    model = model_of("flat", data)
    expected = three_rounds(LOOP, data, model)
    step = StackedBackend._eager_step

    def crowded(self: StackedBackend, slots: Slots, *rest: Tensor) -> None:
        if len(slots["params"]["heads.weight"]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        step(self, slots, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(StackedBackend, "_eager_step", crowded)
    assert_close(three_rounds(STACKED, data, model), expected, 1e-5)
    messages = [record.message for record in caplog.records]
    assert messages == [
        "out of memory with 5 clients stacked: going on with 3 at a time",
        "out of memory with 3 clients stacked: going on with 2 at a time",
    ]


def test_without_a_compiler_the_step_runs_eager_and_says_so_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._inductor import config

    monkeypatch.setattr(config.cpp, "cxx", ("/nonexistent/c++",))
    data = uneven([4, 2], 0)
    model = model_of("flat", data)
    state = three_rounds(lambda training: make_backend("compiled", training, num_rounds=3), data, model)
    assert_close(state, three_rounds(STACKED, data, model), 0)
    messages = [record.message for record in caplog.records if record.name.startswith("mtl.")]
    assert [message.partition("(")[0] for message in messages] == ["torch.compile failed "]
    assert "/nonexistent/c++" in messages[0]


def test_a_step_is_compiled_where_torch_warns_of_slow_guards(monkeypatch: pytest.MonkeyPatch) -> None:
    def compile_slowly(step: Callable[..., None]) -> Callable[..., None]:
        def run(*arguments: object) -> None:
            warnings.warn("Guards may run slower on Python 3.13.0. Consider ...", RuntimeWarning, stacklevel=2)
            step(*arguments)

        return run

    monkeypatch.setattr(torch, "compile", compile_slowly)
    monkeypatch.setattr(compiling, "AFFECTED", True)
    data = uneven([4, 2], 0)
    model = model_of("flat", data)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compiled = three_rounds(lambda training: make_backend("compiled", training, num_rounds=3), data, model)
    assert_close(compiled, three_rounds(STACKED, data, model), 0)


def test_auto_takes_the_faster_one_and_says_why(caplog: pytest.LogCaptureFixture) -> None:
    class Slow(LoopBackend):
        def __call__(self, job: CohortJob, data: FederatedData) -> Iterator[Block]:
            import time

            time.sleep(0.5)
            return super().__call__(job, data)

    data = uneven([4, 2], 0)
    with caplog.at_level(logging.INFO), pytest.MonkeyPatch.context() as patch:
        patch.setattr("mtl.federation.clients.auto.LoopBackend", Slow)
        three_rounds(lambda training: AutoBackend(training, num_rounds=3, compile="never"), data, model_of("flat", data))
    assert [record.message[:15] for record in caplog.records] == ["backend: vmap ("]
    assert "a round of 2 clients would take: loop " in caplog.text


class Nobody(Sampling):
    def draw(self, num_clients: int, *, seed: int, round: int) -> tuple[list[int], list[int]]:
        return [0, 1], [] if round == 0 else [0, 1]


def test_auto_waits_for_a_cohort_that_comes_back(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AutoBackend, "_choose", lambda *_: ("vmap", "said by the test"))
    data, made = uneven([4, 2], 0), []

    def make(training: Training) -> AutoBackend:
        made.append(AutoBackend(training, num_rounds=3))
        return made[0]

    three_rounds(make, data, model_of("flat", data), sampling=Nobody(), rounds=1)
    assert made[0].name == "auto"
    made.clear()
    three_rounds(make, data, model_of("flat", data), sampling=Nobody(), rounds=2)
    assert made[0].name == "vmap"


@pytest.mark.parametrize("block", [3, 40])
@pytest.mark.parametrize("sizes", [[90, *[3] * 19], [3] * 20, [30, 21, 12, 3]])
def test_auto_knows_what_the_steps_that_are_made_take(sizes: list[int], block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # A step of k stacked clients takes .5 + .1 k; batches of three, so that a client of n images makes n / 3 steps.
    def seconds(clients: list[int], most: float) -> float:
        steps = [min(sizes[client] // 3, most) for client in clients]
        return sum(0.5 + 0.1 * sum(n > s for n in steps) for s in range(int(max(steps))))

    def timed(backend: StackedBackend, job: CohortJob, data: FederatedData) -> float:
        assert job.max_steps is not None
        return seconds(list(job.clients), job.max_steps)

    monkeypatch.setattr("mtl.federation.clients.auto._seconds", timed)
    data = uneven(sizes, 0)
    training = Training(model_of("flat", data), Objective(FACES, Normalise()), LocalSGD(), LocalWork(batch_size=3), 0)
    job = CohortJob(list(range(len(sizes))), 0, lambda clients: {}, 0.1)
    longest_first = sorted(job.clients, key=lambda client: -sizes[client])
    real = sum(seconds(longest_first[at : at + block], math.inf) for at in range(0, len(sizes), block))
    assert _stacked_seconds(StackedBackend(training, block=block), job, data) == pytest.approx(real)


def test_a_block_has_room_for_what_a_step_saves_and_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    data = uneven([5, 2, 4], 0)
    model = model_of("dropout", data)
    training = Training(model, Objective(FACES, Normalise()), LocalSGD(), LocalWork(batch_size=16), 0)
    size = bytes_of_client(training, data)
    # Five images of 8 x 8: a convolution of four channels sees 6 x 6 places, saved before and after ReLU as float32, and so on; parameters
    # alone would be no more than this.
    images, parameters = 5 * 64 * 4, sum(value.numel() for value in model.params().values()) * 4
    assert size > 4 * parameters + 6 * images + 2 * 5 * (64 + 4 * 36) * 4
    assert bytes_of_client(replace(training, work=LocalWork(batch_size=1)), data) < size / 2
    monkeypatch.setattr("mtl.federation.clients.block.free_memory", lambda device: 2 * 11 * size)
    assert block_size(training, data) == 8
    backend = StackedBackend(training)
    assert backend.settle_block(data) == 8
    monkeypatch.setattr("mtl.federation.clients.block.free_memory", lambda device: 2 * size)
    assert backend.settle_block(data) == 8
    resumed = AutoBackend(training, num_rounds=3)
    resumed.load_state_dict(backend.state_dict())
    assert resumed.state_dict() == {"name": "vmap", "block": 8}


def test_wrong_engines_are_refused() -> None:
    data = uneven([2], 0)
    training = Training(model_of("flat", data), Objective(FACES, Normalise()), LocalSGD(), LocalWork(), seed=0)
    with pytest.raises(ValueError, match=r"engine.backend must be one of auto, loop, vmap, compiled, got ray"):
        make_backend("ray", training, num_rounds=1)
    with pytest.raises(ValueError, match=r"engine.compile must be one of auto, always, never, got maybe"):
        make_backend("vmap", training, num_rounds=1, compile="maybe")
    with pytest.raises(ValueError, match=r"engine.block must be >= 1, got 0"):
        make_backend("vmap", training, num_rounds=1, block=0)


def test_low_precision_sees_every_step() -> None:
    # Autocast may keep the low-precision copy of a weight; a local step must not use that of the step before.
    data = uneven([8, 8], 0)
    model = model_of("flat", data)
    client = LocalSGD(learning_rate=0.2, momentum=0.0)
    for make in (LOOP, STACKED):
        exact = three_rounds(make, data, model, client=client)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = three_rounds(make, data, model, client=client)
        moved = (exact.params["heads.weight"] - model.params()["heads.weight"]).abs().max()
        assert (rounded.params["heads.weight"] - exact.params["heads.weight"]).abs().max() < 0.02 * moved


@given(st.lists(st.integers(1, 5), min_size=1, max_size=30), st.integers(1, 2**21))
def test_chunks_cover_every_step_once(active: list[int], pixels: int) -> None:
    from types import SimpleNamespace

    active.sort(reverse=True)
    steps, end = [], 0
    for covered, rows in chunks(SimpleNamespace(active=active), pixels):  # type: ignore[arg-type]
        assert rows.start == end
        end = rows.stop
        assert end - rows.start == sum(active[s] for s in covered)
        assert len(covered) == 1 or (end - rows.start) * pixels <= 2**23
        steps += list(covered)
    assert steps == list(range(len(active)))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", ["flat", "dropout", "groupnorm"])
def test_a_captured_round_agrees_with_the_loop_on_the_cpu(kind: str) -> None:
    data = uneven([5, 5, 5, 5], 1)
    model = model_of(kind, data)
    expected = three_rounds(LOOP, data, model)
    on_device = data.to(torch.device("cuda"))
    state = three_rounds(STACKED, on_device, model.cuda())
    for name, value in expected.params.items():
        assert torch.allclose(state.params[name].cpu(), value, rtol=1e-3, atol=1e-4), name
