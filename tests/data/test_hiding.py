from dataclasses import replace
from pathlib import Path
from statistics import mean

import pytest
import torch

from mtl.base.seeding import generator
from mtl.data.hiding import KnownLabels
from mtl.data.splits import Split
from mtl.data.subtasks import Subtasks
from mtl.run.train import train
from tests.composing import compose

N, T = 400, 5
SPLIT = Split(torch.arange(0, 300), torch.arange(300, 340), torch.arange(340, N))


def draw() -> Subtasks:
    rng = generator(0, "hiding-test")
    known = torch.rand(N, T, generator=rng) < 0.9
    return Subtasks(tuple("abcde"), torch.rand(N, T, generator=rng) < 0.5, known, num_exclusive=0)


def test_about_the_share_stays_known_and_nothing_else_changes() -> None:
    before = draw()
    after, split = KnownLabels(0.25)(before, SPLIT, 0)
    assert split is SPLIT
    assert torch.equal(after.targets, before.targets)
    assert not (after.known & ~before.known).any()
    monitored = torch.cat([SPLIT.val, SPLIT.test])
    assert torch.equal(after.known[monitored], before.known[monitored])
    share = after.known[SPLIT.train].sum() / before.known[SPLIT.train].sum()
    assert share == pytest.approx(0.25, abs=0.05)
    assert torch.equal(KnownLabels(0.25)(before, SPLIT, 0)[0].known, after.known)
    assert not torch.equal(KnownLabels(0.25)(before, SPLIT, 1)[0].known, after.known)


def test_by_image_leaves_whole_images_out() -> None:
    before = draw()
    after, split = KnownLabels(0.25, by="image")(before, SPLIT, 0)
    assert torch.equal(after.known, before.known)
    assert len(split.train) == 75
    assert set(split.train.tolist()) <= set(SPLIT.train.tolist())
    assert split.train.tolist() == sorted(split.train.tolist())


@pytest.mark.parametrize(
    ("share", "by", "message"),
    [
        (0.0, "label", r"known_labels.share must be in \(0, 1\], got 0.0"),
        (1.5, "label", r"known_labels.share must be in \(0, 1\], got 1.5"),
        (0.5, "task", r"known_labels.by must be one of label, image, got task"),
    ],
)
def test_other_options_are_refused(share: float, by: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        KnownLabels(share, by)


def test_nothing_left_is_refused() -> None:
    with pytest.raises(ValueError, match=r"share=0.001 leaves none of 300 training images"):
        KnownLabels(0.001, by="image")(draw(), SPLIT, 0)
    nothing = replace(draw(), known=torch.zeros(N, T, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"leaves no label on 300 training images"):
        KnownLabels(0.5)(nothing, SPLIT, 0)


def test_hidden_labels_cost_no_more_than_labels_that_were_never_made(tmp_path: Path) -> None:
    """A quarter of the labels spread over all images teaches as much as all labels of a quarter of the images, when as many labels are
    seen in a step.
    """
    words = ["+experiment=synthetic", "mode=centralised", "data.iid=true", "data.num_clients=5", "data.samples_per_client=400"]
    words += ["sampling=all", "partition=iid", "partition.num_clients=5", "partition_by=class", "rounds=4", "evaluate_every=4"]
    words += ["work=steps", "work.steps=20", "reduction=known", "known_labels.share=0.25", "client.learning_rate=0.1"]
    words += ["tracking.wandb=disabled", "write_report=false"]

    def auroc(by: str, batch_size: int) -> float:
        return mean(
            train(
                compose([*words, f"known_labels.by={by}", f"work.batch_size={batch_size}", f"seed={seed}"]),
                tmp_path / f"{by}{seed}",
            )["test/auroc"]
            for seed in (0, 1)
        )

    assert auroc("label", 40) > auroc("image", 10) - 0.01
