"""FedAvg with fine-tuning: before its own model is tested, each client trains the global one on its own training images.

    v_i = x after `steps` local steps on client i

v_i is tested on the client's own test images (`test/finetuned/...`) beside x (`test/global/...`) and is kept nowhere. All clients are
tuned, those that never took part too, with an optimiser that starts at zero.
"""

from mtl.federation.algorithms.algorithm import Algorithm, FineTuning
from mtl.federation.algorithms.fedavg import FedAvg


def finetune(steps: int = 10, tuning_rate: float | None = None, learning_rate: float = 1.0, momentum: float = 0.0) -> Algorithm:
    """FedAvg; each client's own model is the global one after some local steps before the test.

    Args:
        steps: local steps before the test
        tuning_rate: their learning rate, null for client.learning_rate
        learning_rate: factor of the mean update
        momentum: momentum over the rounds
    """
    if steps < 1:
        raise ValueError(f"algorithm.steps must be >= 1, got {steps}")
    if tuning_rate is not None and not tuning_rate > 0:
        raise ValueError(f"algorithm.tuning_rate must be > 0 or null, got {tuning_rate}")
    return Algorithm(FedAvg(learning_rate, momentum), tuning=FineTuning(steps, tuning_rate))
