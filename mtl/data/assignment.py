"""Which client trains which subtasks.

Every rule gives a bool matrix [C, T]. `positives` is int64 [C, T], the training positives of each subtask that each client has.
`check_assignment` refuses what cannot be learned, with the reason.
"""

import torch
from torch import Tensor

from mtl.base.seeding import generator


def all_to_all(positives: Tensor, seed: int) -> Tensor:
    """Every client trains every subtask; where it has no positives it still gives negatives."""
    return torch.ones_like(positives, dtype=torch.bool)


def owner(positives: Tensor, seed: int) -> Tensor:
    """A client trains the subtasks that it holds positives of."""
    return positives > 0


def disjoint(positives: Tensor, seed: int) -> Tensor:
    """Each subtask on exactly one client, evenly.

    A subtask goes to the holder of its positives that has the fewest so far.
    """
    return _spread(positives, 1, seed, "assignment")


def overlapping(positives: Tensor, seed: int, *, clients_per_task: int = 2) -> Tensor:
    """Each subtask on the same number of clients, evenly, holders of its positives first.

    Args:
        positives: int64 [C, T].
        seed: of the random draws.
        clients_per_task: that number.
    """
    if not 1 <= clients_per_task <= len(positives):
        raise ValueError(
            f"assignment.clients_per_task must be in [1, {len(positives)}], the number of clients, got {clients_per_task}"
        )
    return _spread(positives, clients_per_task, seed, "assignment")


def random(positives: Tensor, seed: int, *, tasks_per_client: int = 10) -> Tensor:
    """Each client trains the same number of subtasks, drawn at random.

    Args:
        positives: int64 [C, T].
        seed: of the random draws.
        tasks_per_client: that number. Subtasks that nobody drew are refused by `check_assignment`.
    """
    num_clients, num_tasks = positives.shape
    if not 1 <= tasks_per_client <= num_tasks:
        raise ValueError(
            f"assignment.tasks_per_client must be in [1, {num_tasks}], the number of subtasks, got {tasks_per_client}"
        )
    draw = torch.rand(num_clients, num_tasks, generator=generator(seed, "assignment"))
    return draw.argsort(1).argsort(1) < tasks_per_client


def check_assignment(assignment: Tensor, positives: Tensor, images: Tensor, names: tuple[str, ...]) -> None:
    """Refuse a client without images, subtasks or positives, and a subtask that nobody trains or has positives of.

    Args:
        assignment: bool [C, T].
        positives: int64 [C, T].
        images: int64 [C], training images of each client.
        names: of the subtasks.

    Raises:
        ValueError: with the first reasons.
    """
    trained = assignment & (positives > 0)
    reasons = [
        *(f"client {c} holds no training image" for c in torch.nonzero(images == 0).flatten().tolist()),
        *(f"client {c} trains no subtask" for c in torch.nonzero(~assignment.any(1)).flatten().tolist()),
        *(
            f"client {c} holds no positive of any subtask that it trains"
            for c in torch.nonzero(assignment.any(1) & ~trained.any(1)).flatten().tolist()
        ),
        *(f"subtask {names[t]} is trained by no client" for t in torch.nonzero(~assignment.any(0)).flatten().tolist()),
        *(
            f"subtask {names[t]} has no training positive on the clients that train it"
            for t in torch.nonzero(assignment.any(0) & ~trained.any(0)).flatten().tolist()
        ),
    ]
    if reasons:
        more = f" (and {len(reasons) - 5} more)" if len(reasons) > 5 else ""
        raise ValueError(f"this partition with this assignment cannot be trained: {'; '.join(reasons[:5])}{more}")


def _spread(positives: Tensor, clients_per_task: int, seed: int, purpose: str) -> Tensor:
    num_clients, num_tasks = positives.shape
    rng = generator(seed, purpose)
    assignment = torch.zeros(num_clients, num_tasks, dtype=torch.bool)
    load = torch.zeros(num_clients)
    for t in torch.randperm(num_tasks, generator=rng).tolist():
        tie = torch.rand(num_clients, generator=rng)
        # Holders first, then the least loaded, then by lot.
        cost = (positives[:, t] == 0) * (2.0 * num_tasks) + load + tie
        chosen = cost.argsort()[:clients_per_task]
        assignment[chosen, t] = True
        load[chosen] += 1
    return assignment
