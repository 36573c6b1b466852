from dataclasses import replace

import pytest
import torch

from mtl.base.types import Params, Slots
from mtl.federation.aggregators.contract import Update
from mtl.federation.algorithms.fedavg import MOMENTUM, FedAvg
from mtl.federation.clients.contract import Block
from mtl.federation.layout import Layout
from mtl.federation.population.sampling import Sampling
from mtl.federation.server import Server, mean
from tests.federation.small_federations import make_orders

START: Params = {"trunk.w": torch.tensor([1.0, 2.0]), "heads.w": torch.tensor([[1.0], [2.0], [3.0]])}
# Client a trains subtasks 0 and 1 on 1 image, client b subtask 1 on 3 images; nobody trains subtask 2.
UPDATES = [
    ({"trunk.w": torch.tensor([4.0, 0.0]), "heads.w": torch.tensor([[8.0], [8.0], [99.0]])}, 1, [True, True, False]),
    ({"trunk.w": torch.tensor([0.0, 4.0]), "heads.w": torch.tensor([[99.0], [4.0], [99.0]])}, 3, [False, True, False]),
]


def mean_of(server: Server, updates: list[tuple[Params, int, list[bool]]] = UPDATES, *, as_one_block: bool = False) -> Update:
    """as_one_block: all updates stacked, as one block."""
    tasks = torch.tensor([trained for *_, trained in updates], dtype=torch.bool).view(-1, 3)
    mean = server.aggregator.collect(make_orders(START, tasks, [images for _, images, _ in updates]))
    for clients in [list(range(len(updates)))] if as_one_block else [[client] for client in range(len(updates))]:
        update = {name: torch.stack([updates[client][0][name] for client in clients]) for name in START}
        mean.add(Block(clients, {}, update, torch.zeros(len(clients), 2, 3)), torch.tensor(clients))
    return mean


def apply(server: Server, state: Slots, mean: Update) -> Slots:
    """Where all parameters travel."""
    return server.algorithm.apply(state, state["params"], mean)


@pytest.mark.parametrize(
    ("weighting", "trunk", "heads"), [("samples", [2.0, 5.0], [9.0, 7.0, 3.0]), ("clients", [3.0, 4.0], [9.0, 8.0, 3.0])]
)
def test_trunk_and_heads_by_hand(weighting: str, trunk: list[float], heads: list[float]) -> None:
    server = mean(weighting)
    for as_one_block in (False, True):
        params = apply(server, server.init(START, Layout()), mean_of(server, as_one_block=as_one_block))["params"]
        assert params["trunk.w"].tolist() == trunk
        assert params["heads.w"].flatten().tolist() == heads


def test_order_of_clients_does_not_matter() -> None:
    server = mean()
    one, other = mean_of(server).value(), mean_of(server, UPDATES[::-1]).value()
    assert all(torch.allclose(one[name], other[name]) for name in START)


def test_server_momentum_by_hand_and_untrained_heads_stay() -> None:
    server = replace(mean("clients"), algorithm=FedAvg(learning_rate=0.5, momentum=0.5))
    state = apply(server, server.init(START, Layout()), mean_of(server))
    assert state["params"]["trunk.w"].tolist() == [2.0, 3.0]  # start + .5 x (2, 2)
    state = apply(server, state, mean_of(server, UPDATES[:1]))
    params = state["params"]
    # v = .5 x (2, 2) + (4, 0) = (5, 1); head 0: v = .5 x 8 + 8 = 12, head 2 was never trained.
    assert params["trunk.w"].tolist() == [4.5, 3.5]
    assert params["heads.w"].flatten().tolist() == [1 + 4 + 6, 2 + 3 + 0.5 * (0.5 * 6 + 8), 3.0]
    before = params["heads.w"].clone()
    params = apply(server, state, mean_of(server, [UPDATES[1]]))["params"]
    assert torch.equal(params["heads.w"][[0, 2]], before[[0, 2]])
    assert not torch.equal(params["heads.w"][1], before[1])


def test_a_round_that_nobody_came_back_from_changes_nothing() -> None:
    server = replace(mean(), algorithm=FedAvg(momentum=0.9))
    before = apply(server, server.init(START, Layout()), mean_of(server))
    after = apply(server, before, mean_of(server, []))
    for slot in ("params", MOMENTUM):
        assert all(torch.equal(after[slot][name], before[slot][name]) for name in START)


def test_cohorts_are_drawn_without_replacement_and_by_name() -> None:
    sampling = Sampling(cohort=5)
    cohorts = [sampling.draw(20, seed=0, round=r)[0] for r in range(200)]
    assert all(len(set(cohort)) == 5 for cohort in cohorts)
    assert cohorts[3] == sampling.draw(20, seed=0, round=3)[0]
    counts = torch.tensor(cohorts).flatten().bincount(minlength=20)
    assert counts.min() > 25  # 50 expected, deviation 6.1


def test_dropout_keeps_the_stated_share_and_only_of_the_cohort() -> None:
    drawn = [Sampling(cohort=10, dropout=0.3).draw(30, seed=1, round=r) for r in range(300)]
    assert all(set(returned) <= set(cohort) for cohort, returned in drawn)
    assert sum(len(returned) for _, returned in drawn) / 3000 == pytest.approx(0.7, abs=0.035)


def test_wrong_options_are_refused() -> None:
    with pytest.raises(ValueError, match=r"server.weighting must be one of samples, clients, got size"):
        mean(weighting="size")
    with pytest.raises(ValueError, match=r"sampling.cohort must be in \[1, 3\], the number of clients, got 4"):
        Sampling(cohort=4).draw(3, seed=0, round=0)
    with pytest.raises(ValueError, match=r"sampling.dropout must be in \[0, 1\), got 1.0"):
        Sampling(dropout=1.0)
