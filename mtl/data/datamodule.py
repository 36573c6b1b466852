"""What the Trainer iterates over.

The images stay in memory on the compute device: a batch is the number of a step, or the indices of the images to evaluate.
"""

import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mtl.data.federated_data import FederatedData


class FederatedDataModule(LightningDataModule):
    """What the Trainer trains on, validates and tests.

    Args:
        data: the images and labels.
        steps: training steps in a round, 1 where a step is a whole round.
    """

    def __init__(self, data: FederatedData, *, steps: int = 1) -> None:
        super().__init__()
        self.federated_data, self.steps = data, steps

    def train_dataloader(self) -> "DataLoader[Tensor]":
        """The numbers of the steps of a round."""
        return _loader(torch.arange(self.steps))

    def val_dataloader(self) -> "DataLoader[Tensor]":
        """The validation images; without any, the test images, to monitor but never to select a round."""
        split = self.federated_data.split
        return _loader((split.val if len(split.val) else split.test)[None])

    def test_dataloader(self) -> "DataLoader[Tensor]":
        """The test images."""
        return _loader(self.federated_data.split.test[None])


def _loader(items: Tensor) -> "DataLoader[Tensor]":
    return DataLoader(_Items(items), batch_size=None)


class _Items(Dataset[Tensor]):
    def __init__(self, items: Tensor) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, place: int) -> Tensor:
        return self.items[place]
