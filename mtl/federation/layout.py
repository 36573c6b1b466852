"""What each parameter of a model is, whether it travels, and in which rounds: the one place that reads the names of parameters.

A multi-task model names its parameters `trunk.*`, `heads.*`, `loss.*` and `detector.*` (see `models.multi_task_model`). A parameter of the
heads has the subtasks as its first axis: row t belongs to subtask t, and is sent, kept and averaged by the clients that train t.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from mtl.base.types import Params

Kind = Literal["trunk", "head", "loss", "detector"]
Keep = Literal["nothing", "heads", "all"]
KINDS: dict[str, Kind] = {"heads": "head", "loss": "loss", "detector": "detector"}
Frozen = Callable[[int], frozenset[str]]


def kind_of(name: str) -> Kind:
    """What the parameter of this name is; everything that the subtasks share, gates and experts among it, is of the trunk."""
    return KINDS.get(name.partition(".")[0], "trunk")


def is_head(name: str) -> bool:
    """Whether the first axis of the parameter is the subtasks."""
    return kind_of(name) == "head"


def never_frozen(round: int) -> frozenset[str]:
    """Every parameter is trained in every round."""
    return frozenset()


@dataclass(frozen=True)
class Layout:
    """Which parameters stay on the clients, and which rest.

    Args:
        keep: what stays on the clients: nothing, their heads (as in FedPer, Arivazhagan et al. 2019, turned to heads per subtask), or the
            whole model (each client alone). What stays is neither sent nor averaged, and lasts from round to round.
        frozen: the parameters that are neither trained nor sent in a round.

    Raises:
        ValueError: `keep` is unknown.
    """

    keep: str = "nothing"
    frozen: Frozen = never_frozen

    def __post_init__(self) -> None:
        if self.keep not in get_args(Keep):
            raise ValueError(f"keep must be one of {', '.join(get_args(Keep))}, got {self.keep}")

    def stays(self, name: str) -> bool:
        """Whether the parameter of this name stays on the clients."""
        return self.keep == "all" or (self.keep == "heads" and is_head(name))

    def sent(self, params: Params) -> Params:
        """The parameters that travel in some round."""
        return {name: value for name, value in params.items() if not self.stays(name)}

    def travelling(self, params: Params, round: int) -> Params:
        """The parameters that travel in this round."""
        resting = self.frozen(round)
        return {name: value for name, value in self.sent(params).items() if name not in resting}

    def kept(self, params: Params) -> Params:
        """The parameters that stay on the clients."""
        return {name: value for name, value in params.items() if self.stays(name)}


def split_frozen(params: Params, frozen: Iterable[str]) -> tuple[Params, Params]:
    """The parameters that train, and those that rest."""
    resting = set(frozen)
    return (
        {name: value for name, value in params.items() if name not in resting},
        {name: value for name, value in params.items() if name in resting},
    )


def shared(params: Params) -> list[str]:
    """The names of the parameters that the tasks share and whose gradients they may disagree on."""
    return [name for name in params if kind_of(name) == "trunk"]
