"""How many clients are stacked: as many as memory holds, from the modelled memory of a step of one client.

    parameters x 4 (start, values, gradients, momenta)  +  what autograd saves for a batch, x 2  +  a batch of prepared images, x 6
    +  the tasks' gradients of the trunk, x 2, where a balancer compares them one by one
    +  parameters x 1 for each further slot of the algorithm

What autograd saves is counted on a step of the model (`models.flops`). The factors cover the rest: gradients of activations, the copies in
which the convolutions of many clients become one, and images while they are gathered, augmented and normalised.
"""

import os

import torch

from mtl.base import tree
from mtl.data.federated_data import FederatedData
from mtl.federation.algorithms.contract import STEPS
from mtl.federation.clients.contract import Training
from mtl.federation.ranks import Ranks
from mtl.federation.workload import training_cost

SHARE_OF_MEMORY = 0.5  # of the free memory
COPIES, ACTIVATIONS, PREPARED = 4, 2, 6


def block_size(training: Training, data: FederatedData) -> int:
    """Return how many clients' steps fit in a share of the free memory, at least one.

    It is a power of two, so that small differences in free memory do not change the order of the sums. The ranks on this machine share its
    host memory.
    """
    device = data.images.device
    available = SHARE_OF_MEMORY * free_memory(device) / (1 if device.type == "cuda" else Ranks().num_local)
    fitting = max(int(available / bytes_of_client(training, data)), 1)
    return int(2 ** (fitting.bit_length() - 1))


def bytes_of_client(training: Training, data: FederatedData) -> int:
    """Return the bytes that a step of one client of a stack takes, with the largest batch that occurs."""
    params, client = training.model.params(), training.client
    batch = min(training.work.batch_size, max(data.clients.sizes))
    dtype = next(iter(params.values())).dtype
    cost = training_cost(training.model, training.objective, training.optimizer, training.work, data)
    copies = COPIES + len({*client.reads, *client.keeps} - {STEPS}) + len(client.sends)
    size = copies * tree.num_bytes(params) + ACTIVATIONS * cost.step.saved(batch)
    size += PREPARED * batch * data.images[0].numel() * dtype.itemsize
    size += training.rule.bytes_of_step(params, data.num_tasks)
    return int(size)


def free_memory(device: torch.device) -> int:
    """Return the free bytes of a device's memory; of the host for the CPU."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
