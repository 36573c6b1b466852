"""Multi-task learning of binary subtasks over simulated edge devices.

    types, tree, files, seeding, tracking, run_directory   the words and tools that everything shares
    data          images in memory, subtasks, splits, partitions, assignments, batches
    models        trunks, heads, and how they share
    losses        the positive and the negative term of a subtask
    metrics       rank-1, AUROC, balanced accuracy
    edge          device profiles, and what a round would cost on them
    verification  do two pictures show the same person: ten folds, ROC, equal error rate
    federation    one round: broadcast, local training, aggregation; personal parts; fusion
    edge          what runs on a device: export, quantisation, distillation, pruning, latency
    face          faces found in pictures, galleries, photos
    learning      the LightningModules
    configs, options, words, train, launch, cli   a run from its configuration; the command line
    help, meanings, named_experiments       what the command line says of itself
    build, trained                          data and model of a configuration; a run's model from its directory
    verify, enrol, recognise                `mtl verify`; a gallery of people; who is in a photo
    deploy, compress                        a file for a device; a smaller model
    report        pages, pictures and tables from run directories

The same run as `mtl train rounds=2`:

    from pathlib import Path
    from mtl.configs import compose
    from mtl.train import train

    summary = train(compose(["rounds=2"]), Path("runs/first"))
    print(summary["test/rank1"])
"""

import os
import sys

__version__ = "0.1.0"


def _import_matplotlib() -> None:
    """Import matplotlib where MPLBACKEND is set. A notebook leaves its own backend in there for the programs that it starts; where these
    do not have it, matplotlib, which torchmetrics imports too, refuses to be imported. Such a backend is passed over: figures are drawn
    by Agg.
    """
    backend = os.environ.get("MPLBACKEND")
    if not backend or "matplotlib" in sys.modules:
        return
    del os.environ["MPLBACKEND"]
    try:
        import matplotlib
        from matplotlib.backends.registry import backend_registry

        if backend_registry.is_valid_backend(backend):
            matplotlib.rcParams["backend"] = backend
    finally:
        os.environ["MPLBACKEND"] = backend


_import_matplotlib()
