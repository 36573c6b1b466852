import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mtl.data.client_batches import LocalWork, plan_batches


@given(st.integers(1, 40), st.integers(1, 17), st.integers(1, 4), st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_an_epoch_sees_every_image_once(num_images: int, batch_size: int, epochs: int, seed: int) -> None:
    plan = plan_batches(num_images, LocalWork(batch_size=batch_size, epochs=epochs), seed=seed, round=0, client=0)
    per_epoch = -(-num_images // batch_size)
    assert len(plan) == epochs * per_epoch
    for start in range(0, len(plan), per_epoch):
        rows = slice(start, start + per_epoch)
        assert sorted(plan.index[rows][plan.valid[rows]].tolist()) == list(range(num_images))


def test_steps_cut_the_last_epoch_short() -> None:
    plan = plan_batches(25, LocalWork(batch_size=16, steps=3), seed=0, round=0, client=0)
    assert plan.valid.sum(1).tolist() == [16, 9, 16]
    assert plan.draw.shape[:2] == (3, 16)


def test_a_plan_depends_on_seed_round_and_client_alone() -> None:
    work = LocalWork(batch_size=4, epochs=1)
    first = plan_batches(30, work, seed=1, round=2, client=3)
    assert torch.equal(first.index, plan_batches(30, work, seed=1, round=2, client=3).index)
    for other in ((0, 2, 3), (1, 0, 3), (1, 2, 0)):
        plan = plan_batches(30, work, seed=other[0], round=other[1], client=other[2])
        assert not torch.equal(first.index, plan.index)
        assert not torch.equal(first.draw, plan.draw)


def test_no_work_is_refused() -> None:
    with pytest.raises(ValueError, match=r"work.steps must be >= 1, got 0"):
        LocalWork(steps=0)
