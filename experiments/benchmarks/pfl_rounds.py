"""The yardstick: FedAvg on pfl-research 0.6.0, in an environment of its own without mtl. Prints the median seconds of a round.

The CIFAR-10 schedule of pfl-research's own benchmark (Granqvist et al., NeurIPS 2024): users of 50 images, one local epoch, batch 10,
SGD .1 on the clients and 1.0 at the server, users weighted alike, the network of 1,626,442 parameters. Or logistic regression of 60 inputs
and ten classes on users of 100 samples, 20 local epochs, batch 10.
"""

import argparse
import statistics
import time
import types

import numpy as np
import torch
import torch.nn.functional as F
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByUser
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data import FederatedDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
from pfl.internal.ops.pytorch_ops import to_tensor
from pfl.metrics import Weighted
from pfl.model.pytorch import PyTorchModel
from torch import nn


class Marks(TrainingProcessCallback):
    """When each round ended."""

    def __init__(self):
        self.times = []

    def after_central_iteration(self, aggregate_metrics, model, *, central_iteration):
        self.times.append(time.perf_counter())
        return False, type(aggregate_metrics)()


def network(kind):
    if kind == "logistic":
        return nn.Linear(60, 10)
    features = [nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.25)]
    return nn.Sequential(*features, nn.Flatten(), nn.Linear(12544, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, 10))


def loss(self, inputs, targets, eval=False):
    self.train(not eval)
    return F.cross_entropy(self(inputs), targets.long())


def metrics(self, inputs, targets, eval=True):
    self.train(not eval)
    return {"loss": Weighted(F.cross_entropy(self(inputs), targets.long(), reduction="sum").item(), len(inputs))}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=["cifar10", "logistic"])
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--cohort", type=int, default=20)
    parser.add_argument("--users", type=int, default=100)
    options = parser.parse_args()
    held, epochs, shape = (50, 1, (3, 32, 32)) if options.kind == "cifar10" else (100, 20, (60,))
    model = network(options.kind)
    model.loss, model.metrics = types.MethodType(loss, model), types.MethodType(metrics, model)
    draw = np.random.default_rng(0)
    inputs = to_tensor(draw.standard_normal((options.users * held, *shape), dtype=np.float32))
    targets = to_tensor(draw.integers(0, 10, options.users * held))
    users = [(inputs[u * held : (u + 1) * held], targets[u * held : (u + 1) * held]) for u in range(options.users)]
    data = FederatedDataset.from_slices(users, get_user_sampler("random", range(options.users)))
    marks = Marks()
    FederatedAveraging().run(
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=options.rounds,
            evaluation_frequency=10**9,
            train_cohort_size=options.cohort,
            val_cohort_size=0,
        ),
        backend=SimulatedBackend(training_data=data, val_data=None, postprocessors=[WeightByUser()]),
        model=PyTorchModel(
            model=model,
            local_optimizer_create=torch.optim.SGD,
            central_optimizer=torch.optim.SGD(model.parameters(), 1.0),
        ),
        model_train_params=NNTrainHyperParams(local_learning_rate=0.1, local_num_epochs=epochs, local_batch_size=10),
        model_eval_params=NNEvalHyperParams(local_batch_size=10_000),
        callbacks=[marks],
    )
    print(statistics.median(np.diff(marks.times[1:])))


if __name__ == "__main__":
    main()
