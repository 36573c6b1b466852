"""What is accounted for is, to the byte, what a plain serialisation of the tensors that travel takes."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mtl.base.types import Params
from mtl.federation.fusion import fit_platt
from mtl.federation.layout import Layout
from mtl.federation.message import calibration_bytes, client_bytes, message, message_bytes, pack, unpack
from mtl.federation.population.sampling import Sampling
from tests.conftest import make_federation
from tests.federation.test_rounds import make_model, run

DTYPES = st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool, torch.uint8])
SHAPES = st.lists(st.integers(0, 4), max_size=3)


@st.composite
def params_of(draw: st.DrawFn, num_tasks: int) -> Params:
    """Shared tensors and heads of any shape and type."""
    params: Params = {}
    for number in range(draw(st.integers(0, 4))):
        heads = draw(st.booleans())
        shape = [num_tasks] * heads + draw(SHAPES)
        params[f"{'heads' if heads else 'trunk'}.{number}"] = (torch.rand(shape) * 100).to(draw(DTYPES))
    return params


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_the_account_is_the_length_of_the_packed_message(data: st.DataObject) -> None:
    num_clients, num_tasks = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 5))
    params = data.draw(params_of(num_tasks))
    rows = st.lists(st.booleans(), min_size=num_tasks, max_size=num_tasks)
    assignment = torch.tensor(data.draw(st.lists(rows, min_size=num_clients, max_size=num_clients)))
    lengths = [len(pack(message(params, tasks))) for tasks in assignment]
    assert client_bytes(params, assignment).tolist() == lengths
    clients = data.draw(st.lists(st.integers(0, num_clients - 1), unique=True))
    assert message_bytes(params, assignment, clients) == sum(lengths[client] for client in clients)


@given(st.data())
@settings(max_examples=50, deadline=None)
def test_a_message_comes_out_as_it_went_in(data: st.DataObject) -> None:
    params = data.draw(params_of(3))
    sent = message(params, torch.tensor([True, False, True]))
    received = unpack(pack(sent), sent)
    assert received.keys() == sent.keys()
    for name, value in sent.items():
        assert received[name].dtype == value.dtype
        assert torch.equal(received[name], value)


def test_a_message_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="the message must have 8 bytes, got 7"):
        unpack(b"1234567", {"trunk.w": torch.zeros(2)})


def test_pack_is_the_raw_bytes_one_after_the_other() -> None:
    assert pack({"a": torch.tensor([1, 256], dtype=torch.int16), "b": torch.tensor(True)}) == b"\1\0\0\1\1"


@pytest.mark.parametrize("keep", ["nothing", "heads", "all"])
@given(st.lists(st.lists(st.booleans(), min_size=4, max_size=4).filter(any), min_size=2, max_size=2), st.sampled_from([0.0, 0.5]))
@settings(max_examples=10, deadline=None)
def test_the_log_of_a_round_counts_what_was_sent(keep: str, assignment: list[list[bool]], dropout: float) -> None:
    data = replace(make_federation(), assignment=torch.tensor(assignment))
    model = make_model(data, dropout=True)
    _, logs = run(data, model, 2, keep, sampling=Sampling(dropout=dropout))
    sent = Layout(keep).sent(model.params())
    for log in logs:
        for clients, counted in ((log.cohort.drawn, log.bytes_down), (log.cohort.clients, log.bytes_up)):
            assert counted == sum(len(pack(message(sent, data.assignment[client]))) for client in clients)


def test_a_calibration_is_two_numbers_for_each_subtask_of_each_client() -> None:
    assignment = torch.tensor([[True, False, True], [True, False, False]])
    sent = 0
    for tasks in assignment:
        scores, labels = torch.randn(6, int(tasks.sum())), torch.rand(6, int(tasks.sum())) < 0.5
        scale, offset = fit_platt(scores, labels, torch.ones_like(labels))
        sent += len(pack({"scale": scale, "offset": offset}))
    assert calibration_bytes(assignment) == sent == 24
