"""What each parameter of a model is, and in which rounds it travels. Only this module interprets parameter names.

The parameters of a multi-task model are named `trunk.*`, `heads.*`, `loss.*` and `detector.*` (see `models.hard_sharing`). A parameter
under `heads.` has the subtasks as its first axis. Row t belongs to subtask t: it is sent, kept and averaged by the clients that train t.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from mtl.base.types import Params

Kind = Literal["trunk", "head", "loss", "detector"]
Keep = Literal["nothing", "heads", "norms", "all"]
KINDS: dict[str, Kind] = {"heads": "head", "loss": "loss", "detector": "detector"}
Frozen = Callable[[int], frozenset[str]]


def kind_of(name: str) -> Kind:
    """Return the kind of a parameter. Whatever the subtasks share, such as gates and experts, is of the trunk."""
    return KINDS.get(name.partition(".")[0], "trunk")


def is_head(name: str) -> bool:
    """Return whether the parameter belongs to the heads: its first axis is the subtasks."""
    return kind_of(name) == "head"


def never_frozen(round: int) -> frozenset[str]:
    """Return no names: every parameter is trained in every round."""
    return frozenset()


@dataclass(frozen=True)
class Layout:
    """Which parameters stay on the clients, and which are frozen.

    Args:
        keep: what stays on the clients: `nothing`, their `heads` (FedPer, Arivazhagan et al. 2019, here with a head per subtask), the
            `norms` (FedBN, Li et al. 2021), or `all` of the model (each client trains alone). What stays is neither sent nor averaged, and
            lasts from round to round.
        frozen: returns the names of the parameters that are neither trained nor sent in a round.
        norms: names of the parameters of the trunk's norm layers.

    Raises:
        ValueError: `keep` is unknown.
    """

    keep: str = "nothing"
    frozen: Frozen = never_frozen
    norms: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if self.keep not in get_args(Keep):
            raise ValueError(f"keep must be one of {', '.join(get_args(Keep))}, got {self.keep}")

    def stays(self, name: str) -> bool:
        """Return whether the parameter of this name stays on the clients."""
        return self.keep == "all" or (self.keep == "heads" and is_head(name)) or (self.keep == "norms" and name in self.norms)

    def sent(self, params: Params) -> Params:
        """Return the parameters that are not kept on the clients; each of them travels in some round."""
        return {name: value for name, value in params.items() if not self.stays(name)}

    def travelling(self, params: Params, round: int) -> Params:
        """Return the parameters that travel in this round, counted from 0."""
        frozen = self.frozen(round)
        return {name: value for name, value in self.sent(params).items() if name not in frozen}

    def client_params(self, params: Params) -> Params:
        """Return the parameters that stay on the clients."""
        return {name: value for name, value in params.items() if self.stays(name)}


def split_frozen(params: Params, frozen: Iterable[str]) -> tuple[Params, Params]:
    """Return the parameters that are trained, and those that are frozen."""
    names = set(frozen)
    return (
        {name: value for name, value in params.items() if name not in names},
        {name: value for name, value in params.items() if name in names},
    )


def shared(params: Params) -> list[str]:
    """Return the names of the parameters that all tasks share; on their gradients the tasks may conflict."""
    return [name for name in params if kind_of(name) == "trunk"]
