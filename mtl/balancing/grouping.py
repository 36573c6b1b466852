"""Which subtasks, or clients, to train together: groups by the cosines of their gradients.

Agglomerative clustering with average linkage (Sokal & Michener 1958): at first each is a group, and the two groups with the highest mean
cosine between the members of one and of the other become one, until k are left. Gradients that point apart are why tasks should not
share a trunk (Standley et al., ICML 2020); on the cosines of clients' updates this is how clustered federated learning tells them apart
(Sattler, Mueller & Samek, IEEE TNNLS 2020, who part in two by the lowest highest cosine instead).

    cosine, _ = cosines(HeadGeometry(heads.weight, features, cosine=False).gramian(errors))
    group_tasks(cosine, 4)    # [[0, 3], [1], [2, 4, 5], [6]]: the groups of architecture=grouped and its like
"""

import torch
from torch import Tensor


def group_tasks(cosines: Tensor, k: int) -> list[list[int]]:
    """Group tasks by the mean cosine of their gradients; of equal pairs the first is joined.

    Args:
        cosines: [T, T], symmetric.
        k: number of groups.

    Returns:
        k groups of task numbers from 0, each in order, sorted by their first.

    Raises:
        ValueError: where `cosines` is not a finite symmetric matrix or k not in [1, T].
    """
    number = len(cosines)
    if cosines.shape != (number, number) or not torch.allclose(cosines, cosines.mT, atol=1e-5):
        raise ValueError(f"cosines must be a finite symmetric matrix [T, T], got one of {list(cosines.shape)} that is not")
    if not 1 <= k <= number:
        raise ValueError(f"k must be in [1, {number}], got {k}")
    groups = [[task] for task in range(number)]
    means = cosines.double().clone()
    while len(groups) > k:
        pairs = means.triu(1) + torch.full_like(means, -torch.inf).tril()
        first, second = divmod(int(pairs.argmax()), len(groups))
        sizes = len(groups[first]), len(groups[second])
        joined = (sizes[0] * means[first] + sizes[1] * means[second]) / sum(sizes)
        means[first], means[:, first] = joined, joined
        left = torch.arange(len(groups)) != second
        means = means[left][:, left]
        groups[first] = sorted(groups[first] + groups.pop(second))
    return sorted(groups)
