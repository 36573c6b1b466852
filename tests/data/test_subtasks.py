import csv
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from mtl.base.types import ImageData
from mtl.data import subtasks
from mtl.data.assignment import all_to_all
from mtl.data.federated_data import federate
from mtl.data.partition import iid, sizes
from mtl.data.splits import Split
from mtl.run.tracking import Tracker
from mtl.run.wandb_run import WandbOptions


def test_one_vs_rest_asks_each_class_once(images: ImageData) -> None:
    made = subtasks.one_vs_rest(images)
    assert made.names == ("c0", "c1", "c2", "c3")
    assert torch.equal(made.targets.sum(1), torch.ones(24, dtype=torch.long))
    assert torch.equal(made.identity, images.classes)
    assert made.known.all()


def test_chosen_classes_keep_their_order_and_the_others_are_negatives(images: ImageData) -> None:
    made = subtasks.one_vs_rest(images, classes=["c2", "c0"])
    assert made.targets[images.classes == 2].tolist() == [[True, False]] * 6
    assert not made.targets[images.classes == 1].any()
    assert made.identity[images.classes == 3].tolist() == [-1] * 6


def test_an_image_of_unknown_class_is_masked_and_not_a_negative(images: ImageData) -> None:
    images.classes[3] = -1
    made = subtasks.one_vs_rest(images)
    assert not made.known[3].any()
    assert made.known[:3].all()


def test_unknown_attributes_are_masked(images: ImageData) -> None:
    made = subtasks.attributes(images)
    values = images.attributes[:, 1]
    assert torch.equal(made.known[:, 1], values != -1)
    assert torch.equal(made.targets[:, 1], values == 1)
    assert made.num_exclusive == 0
    assert (made.identity == -1).all()


def test_groups_join_classes(images: ImageData) -> None:
    made = subtasks.groups(images, mapping={"low": ["c0", "c1"], "high": ["c3"]})
    assert made.targets.sum(0).tolist() == [12, 6]
    assert made.num_exclusive == 2
    assert made.identity[images.classes == 2].tolist() == [-1] * 6


def test_groups_that_overlap_are_not_exclusive(images: ImageData) -> None:
    assert not subtasks.groups(images, mapping={"a": ["c0", "c1"], "b": ["c1"]}).num_exclusive


def test_classes_and_attributes_stand_side_by_side_and_only_the_classes_exclude_one_another(images: ImageData) -> None:
    who, how = subtasks.one_vs_rest(images, classes=["c2", "c0"]), subtasks.attributes(images, names=["some"])
    made = subtasks.classes_and_attributes(images, classes=["c2", "c0"], names=["some"])
    assert made.names == ("c2", "c0", "some")
    assert torch.equal(made.targets, torch.cat([who.targets, how.targets], 1))
    assert torch.equal(made.known, torch.cat([who.known, how.known], 1))
    assert made.num_exclusive == 2
    assert torch.equal(made.identity, who.identity)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda d: subtasks.one_vs_rest(d, classes=["c0", "c9"]), r"subtasks.classes must be among c0, c1, c2, c3, got c9"),
        (lambda d: subtasks.one_vs_rest(d, classes=["c0"]), "at least 2"),
        (lambda d: subtasks.one_vs_rest(d, classes=["c0", "c0"]), "twice"),
        (
            lambda d: subtasks.classes_and_attributes(replace(d, attribute_names=("c1", "some"))),
            "must have different names, got c1 as both",
        ),
        (
            lambda d: subtasks.one_vs_rest(d, classes=["c0", 1.5]),
            r"subtasks.classes must hold names, got 1.5 \(float\); .* quotes",
        ),
        (lambda d: subtasks.attributes(d, names=[True]), r"subtasks.names must hold names, got True \(bool\)"),
        (lambda d: subtasks.groups(d, mapping={"a": [7]}), "subtasks.mapping.a must be among .* got 7"),
        (lambda d: subtasks.attributes(d, names=["smiling"]), "must be among odd, some, got smiling"),
        (lambda d: subtasks.groups(d, mapping={}), "at least one group"),
        (lambda d: subtasks.groups(d, mapping={"a": ["cat"]}), r"subtasks.mapping.a must be among .* got cat"),
    ],
)
def test_wrong_names_are_refused_with_the_choices(images: ImageData, make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(images)  # type: ignore[operator]


def test_whole_numbers_are_names(images: ImageData) -> None:
    people = replace(images, class_names=("1", "2", "10", "007"), attribute_names=("5", "some"))
    assert subtasks.one_vs_rest(people, classes=[10, "007", 1]).names == ("10", "007", "1")
    assert subtasks.attributes(people, names=[5]).names == ("5",)
    made = subtasks.groups(people, mapping={1: [1, 2], 2: ["10"]})
    assert made.names == ("1", "2")
    assert made.targets.sum(0).tolist() == [12, 6]


@pytest.mark.parametrize("name", ["two\nlines", "tab\tbed", "a\x85b", "a\u2028b", "bell\a", "\udcff", ""])
def test_names_that_would_tear_a_line_are_refused(images: ImageData, name: str) -> None:
    torn = replace(images, class_names=("c0", name, "c2", "c3"), attribute_names=("odd", name))
    makers = [
        lambda: subtasks.one_vs_rest(torn),
        lambda: subtasks.attributes(torn),
        lambda: subtasks.groups(images, mapping={name: ["c0"]}),
    ]
    for make in makers:
        with pytest.raises(ValueError, match="names without line breaks and other control characters, got ") as error:
            make()
        assert ascii(name) in str(error.value)


def test_every_name_that_is_accepted_survives_metrics_csv(images: ImageData, tmp_path: Path) -> None:
    names = ('Zoë, or "Z"', "7", "김 철수", "' = +1;")
    made = subtasks.one_vs_rest(replace(images, class_names=names))
    for last_round in (None, 1):  # a resumed run copies the lines
        tracker = Tracker(tmp_path, {}, wandb=WandbOptions("disabled"), last_round=last_round)
        tracker.log(1 if last_round is None else 2, {f"test/{name}/auroc": 0.5 for name in made.names})
        tracker.abandon()
    lines = (tmp_path / "metrics.csv").read_text(encoding="utf-8").splitlines()
    assert [next(csv.reader([line])) for line in lines[1:]] == [
        [str(round), f"test/{name}/auroc", "0.5"] for round in (1, 2) for name in names
    ]


def test_a_split_that_shows_nothing_is_refused(images: ImageData) -> None:
    place = torch.arange(24) % 6
    split = Split(torch.nonzero(place < 4).flatten(), torch.tensor([4]), torch.nonzero(place == 5).flatten())
    rules = {"partition": iid, "partition_by": "class", "assignment": all_to_all, "seed": 0}
    with pytest.raises(ValueError, match=r"split.val must leave a positive and a negative of some subtask among its 1 images"):
        federate(images, subtasks.one_vs_rest(images), split, **rules)  # type: ignore[arg-type]


def test_images_that_are_on_no_client_do_not_train(images: ImageData) -> None:
    place = torch.arange(24) % 6
    split = Split(torch.nonzero(place < 4).flatten(), torch.zeros(0, dtype=torch.long), torch.nonzero(place >= 4).flatten())
    rules = {"partition": partial(sizes, sizes=[7, 5]), "partition_by": "class", "assignment": all_to_all, "seed": 0}
    data = federate(images, subtasks.one_vs_rest(images), split, **rules)  # type: ignore[arg-type]
    assert data.clients.sizes == [7, 5]
    assert data.split.train.tolist() == sorted(data.clients.values.tolist())
