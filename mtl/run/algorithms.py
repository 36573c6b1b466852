"""The members of the group `algorithm`."""

from typing import Any

from mtl.federation.algorithms.ditto import ditto
from mtl.federation.algorithms.fedasync import fedasync
from mtl.federation.algorithms.fedavg import fedavg
from mtl.federation.algorithms.fedbn import fedbn
from mtl.federation.algorithms.fedbuff import fedbuff
from mtl.federation.algorithms.feddyn import feddyn
from mtl.federation.algorithms.fednova import fednova
from mtl.federation.algorithms.fedopt import FedAdagrad, FedAdam, FedYogi
from mtl.federation.algorithms.fedper import fedper
from mtl.federation.algorithms.fedprox import fedprox
from mtl.federation.algorithms.fedrep import fedrep
from mtl.federation.algorithms.finetune import finetune
from mtl.federation.algorithms.pfedme import pfedme
from mtl.federation.algorithms.scaffold import scaffold

ALGORITHMS: dict[str, Any] = {
    "fedavg": fedavg,
    "fedavgm": (fedavg, {"momentum": 0.9}),
    "fedprox": fedprox,
    "scaffold": scaffold,
    "fednova": fednova,
    "feddyn": feddyn,
    "fedadagrad": FedAdagrad,
    "fedadam": FedAdam,
    "fedyogi": FedYogi,
    "fedbuff": fedbuff,
    "fedasync": fedasync,
    "ditto": ditto,
    "pfedme": pfedme,
    "fedper": fedper,
    "fedrep": fedrep,
    "fedbn": fedbn,
    "finetune": finetune,
}
