"""Multi-task learning of binary subtasks over simulated edge devices.

    base          types, arithmetic on parameters, named randomness, whole files
    data          images in memory, subtasks, splits, partitions, assignments, batches
    models        trunks, heads, architectures
    losses        the positive and the negative term of a subtask
    balancing     loss weights and update directions of many tasks
    metrics       rank-1, AUROC, balanced accuracy; face verification
    devices       device profiles, and what a round would cost on them
    edge          distillation, pruning, int8, export, latency
    federation    one round: broadcast, local training, aggregation
    faces         faces found in pictures, galleries, photos
    learning      the LightningModules
    run           one run, from its configuration to its run directory and back
    studies       published tables: grids of runs, what is read from them, and the numbers they state
    trained       what is done with a trained run
    report        pages, pictures and tables from run directories alone
    cli           the command line

The same run as `mtl train rounds=2`:

    import mtl

    run = mtl.fit(data="orl", rounds=2, output_dir="runs/first")
    print(run.summary["test/rank1"])
"""

import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mtl.run.fit import Run, configure, fit, lightning_modules
    from mtl.studies.study import Study

__all__ = ["Run", "Study", "configure", "fit", "lightning_modules"]

__version__ = "0.1.0"


def _import_matplotlib() -> None:
    """Import matplotlib where MPLBACKEND is set, without a backend that is not installed.

    A notebook leaves its own backend in MPLBACKEND for the programs that it starts; where these do not have it, matplotlib, which
    torchmetrics imports too, cannot be imported. Such a backend is ignored: figures are drawn by Agg.
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


def __getattr__(name: str) -> Any:
    """What takes torch, imported when it is first asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "Study":
        from mtl.studies.study import Study

        return Study
    from mtl.run import fit as module

    return getattr(module, name)


_import_matplotlib()
