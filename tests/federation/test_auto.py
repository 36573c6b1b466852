"""What `auto` estimates, and what stacked clients of different sizes cost."""

from dataclasses import replace

import pytest
import torch

from mtl.data.client_batches import LocalWork, plan_batches
from mtl.data.transforms import Normalise
from mtl.federation import auto, stacked
from mtl.federation.auto import AutoBackend, make_backend
from mtl.federation.for_each_client import CohortJob, Training
from mtl.federation.local_sgd import LocalSGD
from mtl.federation.objective import Objective
from mtl.federation.stacked import SHARE_OF_MEMORY, StackedBackend
from mtl.federation.workload import training_cost
from tests.federation.test_backends import FACES, model_of, uneven


def training_of(data, batch_size: int = 2) -> Training:  # type: ignore[no-untyped-def]
    return Training(model_of("groupnorm", data), Objective(FACES, Normalise()), LocalSGD(), LocalWork(batch_size=batch_size), 0)


def a_job(training: Training, clients: list[int]) -> CohortJob:
    params = training.model.params()
    return CohortJob(
        clients, 0, lambda whom: {name: value.expand(len(whom), *value.shape) for name, value in params.items()}, 0.1
    )


def test_auto_waits_for_the_first_cohort_of_which_somebody_returns() -> None:
    data = uneven([4, 4], 3)
    backend = make_backend("auto", training_of(data), num_rounds=2)
    assert list(backend(a_job(backend.training, []), data)) == []  # type: ignore[attr-defined]
    assert backend.name == "auto"
    assert len(list(backend(a_job(backend.training, [0, 1]), data))) >= 1  # type: ignore[attr-defined]
    assert backend.name in ("loop", "vmap", "compiled")


def test_a_stacked_round_is_estimated_from_the_steps_that_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 9 clients one makes 50 steps and the others one each. With 3 s a step and 1 s for each further client in it: 50 * 3 + 8 * 1."""
    data = uneven([100, *[2] * 8], 3)
    training = training_of(data)
    steps = [50, *[1] * 8]

    def seconds(backend: object, job: CohortJob, data: object) -> float:
        made = [min(steps[client], job.max_steps or 10**9) for client in job.clients]
        return 3.0 * max(made) + 1.0 * (sum(made) - max(made))

    monkeypatch.setattr(auto, "_seconds", seconds)
    job = replace(a_job(training, list(range(9))), max_steps=auto.TRIED_STEPS)
    assert auto._stacked_seconds(StackedBackend(training), job, steps, data) == pytest.approx(50 * 3 + 8)
    assert isinstance(make_backend("auto", training, num_rounds=1), AutoBackend)


def test_batches_are_padded_to_the_largest_that_occurs_and_draw_the_same() -> None:
    data = uneven([1, 3, 2], 3)
    work = LocalWork(batch_size=16)
    few = plan_batches(data.clients, [0, 1, 2], work, seed=0, round=0)
    alone = plan_batches(data.clients, [0], work, seed=0, round=0)
    assert few.index.shape == (3, 3)
    assert alone.index.shape == (1, 1)
    row = int((few.client == 0).nonzero())
    assert torch.equal(few.draws(slice(row, row + 1))[:, :1], alone.draws(slice(0, 1)))
    longer = plan_batches(uneven([40, 3], 3).clients, [0], work, seed=0, round=0)
    assert longer.index.shape == (3, 16)


def test_a_block_counts_what_a_step_keeps_for_its_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    data = uneven([32, 32], 3)
    training = training_of(data, batch_size=32)
    saved = training_cost(training.model, training.objective, training.algorithm, training.work, data).step.saved(32)
    monkeypatch.setattr(stacked, "_free_memory", lambda device: int(100 * saved))
    block = StackedBackend(training)._room(data)
    assert block >= 1
    assert block * saved <= SHARE_OF_MEMORY * 100 * saved
