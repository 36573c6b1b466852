import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mtl.data.client_batches import CohortBatches, LocalWork, plan_batches
from mtl.data.ragged import Ragged


def images_of_clients(*sizes: int) -> Ragged:
    """Clients that hold so many images, numbered one after the other."""
    return Ragged.of(list(torch.arange(sum(sizes)).split(list(sizes))))


def plan_one(num_images: int, work: LocalWork, *, seed: int = 0, round: int = 0, client: int = 0) -> CohortBatches:
    client_images = Ragged.of([torch.arange(num_images)] * (client + 1))
    return plan_batches(client_images, [client], work, seed=seed, round=round)


@given(st.integers(1, 40), st.integers(1, 17), st.integers(1, 4), st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_an_epoch_sees_every_image_once(num_images: int, batch_size: int, epochs: int, seed: int) -> None:
    work = LocalWork(batch_size=batch_size, epochs=epochs)
    plan = plan_one(num_images, work, seed=seed)
    per_epoch = -(-num_images // batch_size)
    assert plan.active == (1,) * (epochs * per_epoch)
    for start in range(0, len(plan.index), per_epoch):
        rows = slice(start, start + per_epoch)
        assert sorted(plan.index[rows][plan.valid[rows]].tolist()) == list(range(num_images))
    assert int(plan.filled.sum()) == work.num_samples(num_images)


def test_steps_cut_the_last_epoch_short() -> None:
    work = LocalWork(batch_size=16, steps=3)
    plan = plan_one(25, work)
    assert plan.filled.tolist() == [16, 9, 16]
    assert plan.valid.sum(1).tolist() == [16, 9, 16]
    assert plan.draws(slice(0, 3)).shape[:2] == (3, 16)
    assert work.num_samples(25) == 41


def test_a_plan_depends_on_seed_round_and_client_alone() -> None:
    work = LocalWork(batch_size=4, epochs=1)
    every = slice(0, None)
    first = plan_one(30, work, seed=1, round=2, client=3)
    assert torch.equal(first.index, plan_one(30, work, seed=1, round=2, client=3).index)
    for other in ((0, 2, 3), (1, 0, 3), (1, 2, 0)):
        plan = plan_one(30, work, seed=other[0], round=other[1], client=other[2])
        assert not torch.equal(first.index, plan.index)
        assert not torch.equal(first.draws(every), plan.draws(every))
        assert not torch.equal(first.dropout_keys(every, 2), plan.dropout_keys(every, 2))


@given(st.lists(st.integers(1, 12), min_size=1, max_size=6), st.integers(1, 5), st.integers(1, 3))
@settings(max_examples=40, deadline=None)
def test_a_client_has_the_same_batches_in_any_cohort(sizes: list[int], batch_size: int, epochs: int) -> None:
    work, client_images = LocalWork(batch_size=batch_size, epochs=epochs), images_of_clients(*sizes)
    cohort = sorted(range(len(sizes)), key=lambda client: -work.num_steps(sizes[client]))
    cohort_batches = plan_batches(client_images, cohort, work, seed=3, round=1)
    assert list(cohort_batches.active) == [sum(work.num_steps(n) > s for n in sizes) for s in range(len(cohort_batches.active))]
    every = slice(0, None)
    for place, client in enumerate(cohort):
        alone = plan_batches(client_images, [client], work, seed=3, round=1)
        rows = (cohort_batches.client == place).nonzero().flatten()
        assert cohort_batches.step[rows].tolist() == list(range(len(rows)))
        size = alone.index.shape[1]  # beyond it all is padding
        assert not cohort_batches.valid[rows][:, size:].any()
        assert torch.equal(cohort_batches.index[rows][:, :size], alone.index)
        for name in ("filled", "step"):
            assert torch.equal(getattr(cohort_batches, name)[rows], getattr(alone, name))
        assert torch.equal(cohort_batches.draws(every)[rows][:, :size], alone.draws(every))
        assert torch.equal(cohort_batches.dropout_keys(every, 2)[rows], alone.dropout_keys(every, 2))


def test_batches_are_as_large_as_the_largest_that_occurs_and_the_draws_do_not_know() -> None:
    # A client of one image beside one of nine, at a batch size of 16: nothing but the padding differs.
    client_images, work, every = images_of_clients(9, 1), LocalWork(batch_size=16, epochs=2), slice(0, None)
    cohort_batches, alone = (plan_batches(client_images, clients, work, seed=3, round=1) for clients in ([0, 1], [1]))
    assert cohort_batches.index.shape == (4, 9)
    assert alone.index.shape == (2, 1)
    rows = (cohort_batches.client == 1).nonzero().flatten()
    assert torch.equal(cohort_batches.index[rows][:, :1], alone.index)
    assert torch.equal(cohort_batches.draws(every)[rows][:, :1], alone.draws(every))
    # The draws of an image are those of its place among full batches: a hash of step * 16 + place in the batch.
    full = plan_batches(images_of_clients(9, 16), [1], work, seed=3, round=1)
    assert torch.equal(full.draws(every)[:, :1], alone.draws(every))


def test_orders_are_uniform() -> None:
    # Where the first image ends up over many epochs: ten places, 400 expected in each, deviation 19.
    plan = plan_one(10, LocalWork(batch_size=10, epochs=4000))
    places = (plan.index == 0).nonzero()[:, 1].bincount(minlength=10)
    assert (places - 400).abs().max() < 80


def test_no_work_is_refused() -> None:
    with pytest.raises(ValueError, match=r"work.steps must be >= 1, got 0"):
        LocalWork(steps=0)
