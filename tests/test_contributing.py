"""The examples of CONTRIBUTING.md work as they stand there."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mtl.balancing.contract import Balancer, State
from mtl.losses.pairs import PairLoss, PerTask, TaskCounts, constant, per_task

GIVEN = {
    "torch": torch,
    "Tensor": Tensor,
    "dataclass": dataclass,
    "Balancer": Balancer,
    "State": State,
    "PairLoss": PairLoss,
    "PerTask": PerTask,
    "TaskCounts": TaskCounts,
    "constant": constant,
    "per_task": per_task,
}


def example(name: str) -> Any:
    text = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text()
    blocks = re.findall(r"^ *```python\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE)
    (block,) = (block for block in blocks if f"class {name}" in block)
    indent = len(block) - len(block.lstrip(" "))
    namespace: dict[str, Any] = dict(GIVEN)
    exec("\n".join(line[indent:] for line in block.splitlines()), namespace)
    return namespace[name]


def test_the_loss_of_the_example() -> None:
    """At z = 0, p = 1/2: both terms are (1/2)^2, the positive one times its weight."""
    loss = example("Brier")(2, positive_weight=[1.0, 2.0])
    positive, negative = loss.terms(torch.zeros(1, 2), TaskCounts(torch.ones(2), torch.ones(2)))
    assert positive.tolist() == [[0.25, 0.5]]
    assert negative.tolist() == [[0.25, 0.25]]


def test_the_balancer_of_the_example() -> None:
    losses, active = torch.tensor([[1.0, 3.0, 9.0], [5.0, 2.0, 1.0]]), torch.tensor([[True, True, False], [True, True, True]])
    weights, state = example("Worst")().weigh({}, losses, None, active, torch.zeros(0))
    assert weights.tolist() == [[0, 1, 0], [1, 0, 0]]
    assert state == {}
