"""The rules on combinations of options, checked before any data are read.

A single option is checked by the class or function that takes it; options that must fit the data are checked when these are read.
"""

from collections.abc import Callable, Iterator
from typing import Any

from hydra_zen import instantiate
from omegaconf import DictConfig, OmegaConf

from mtl.balancing.weighting import Equal
from mtl.federation.aggregators.weighted_mean import WeightedMean
from mtl.federation.algorithms.contract import ClientAlgorithm
from mtl.federation.algorithms.fedrep import HeadsThenTrunk
from mtl.federation.algorithms.local_optimizer import LocalOptimizer
from mtl.federation.algorithms.local_sgd import LocalSGD
from mtl.federation.algorithms.scaffold import ControlledAtReceived
from mtl.federation.server_steps.distil_ensemble import DistilEnsemble
from mtl.federation.server_steps.spread_heads import SpreadHeads
from mtl.losses.by_kind import ByKind
from mtl.models.heads import FixedCodes
from mtl.models.peers import peers
from mtl.run.asynchronous import asynchronous_problems
from mtl.run.build import build_algorithm, resolve_keep
from mtl.run.config import check_keys
from mtl.run.objects import given
from mtl.run.options import check_options
from mtl.run.wandb_run import WANDB_MODES

MODES = ("federated", "centralised", "local", "single_task", "detection")
POOLED = ("centralised", "detection")
# 16-mixed needs a gradient scaler in every client's steps; bfloat16 does not.
PRECISIONS = ("32-true", "bf16-mixed")
# Groups whose members can be built without data and model.
PLAIN = (
    *(
        "augmentation",
        "normalise",
        "scene_augmentation",
        "detection",
        "work",
        "client",
        "transfer",
        "balancer",
        "schedule",
        "algorithm",
    ),
    *("sampling", "fleet", "widths", "distil", "prune"),
)
AT_LEAST_ONE = (
    *("rounds", "evaluate_every", "checkpoint_every", "tracking.log_every", "engine.block"),
    *("trainer.threads", "trainer.devices", "trainer.num_nodes"),
)


def check_rules(config: DictConfig) -> None:
    """Check a composed configuration, and convert numbers to words in place where words are expected.

    Raises:
        ValueError: An option is unknown, missing or of a wrong type, or options exclude each other.
    """
    check_keys(config)
    check_options(config)
    for group in PLAIN:
        instantiate(config[group])  # raises ValueError for wrong options of the group
    for rule in RULES:
        for problem in rule(config):
            raise ValueError(problem)


def _choices(config: DictConfig) -> Iterator[str]:
    choices = {"mode": MODES, "tracking.wandb": WANDB_MODES, "trainer.precision": PRECISIONS}
    for name, allowed in choices.items():
        if (value := OmegaConf.select(config, name)) not in allowed:
            yield f"{name} must be one of {', '.join(allowed)}, got {value}"
    if not isinstance(config.write_report, bool) and config.write_report != "auto":
        yield f"write_report must be auto, true or false, got {config.write_report}"
    for name in AT_LEAST_ONE:
        if (value := OmegaConf.select(config, name)) is not None and value < 1:
            yield f"{name} must be >= 1, got {value}"
    if config.target_accuracy is not None and not 0 < config.target_accuracy <= 1:
        yield f"target_accuracy must be in (0, 1], got {config.target_accuracy}"


def _processes(config: DictConfig) -> Iterator[str]:
    for name in ("devices", "num_nodes"):
        if config.trainer[name] > 1 and config.mode in POOLED:
            yield f"mode={config.mode} trains on one device: trainer.{name} must be 1, got {config.trainer[name]}"


def _client(config: DictConfig) -> Iterator[str]:
    if config.transfer.decay != 1 and not isinstance(instantiate(config.client), LocalOptimizer):
        yield (
            "transfer.decay needs a client whose learning rate it can scale by parameter (sgd, adam, adamw), got client "
            f"{_member(config.client)}"
        )


def _algorithm(config: DictConfig) -> Iterator[str]:
    """Federated algorithms other than FedAvg."""
    algorithm, optimizer = build_algorithm(config), instantiate(config.client)
    server, name = algorithm.server, f"algorithm={_member(config.algorithm)}"
    if type(algorithm.client) is ClientAlgorithm and not server.needs_mean:
        return
    if config.mode != "federated" or config.keep == "all":
        yield f"{name} needs mode=federated and keep=nothing or heads, got mode={config.mode} keep={config.keep}"
    if isinstance(algorithm.client, ControlledAtReceived) and config.keep != "nothing":
        yield f"{name} algorithm.option=I needs keep=nothing, as it computes gradients at the received model; got {config.keep}"
    if server.needs_sgd and type(optimizer) is not LocalSGD:
        yield f"{name} reads gradients out of the updates of SGD: client must be sgd, got {_member(config.client)}"
    elif server.needs_sgd and optimizer.clip is not None:
        yield f"{name} reads gradients out of the updates, which clipping changes: client.clip must be null, got {optimizer.clip}"
    if not server.needs_mean:
        return
    aggregator = _aggregator(config)
    if aggregator is not None and not isinstance(aggregator, WeightedMean):
        yield f"{name} needs the weighted mean of the updates: server.balancer must be null, got {type(aggregator).__name__}"
    if len(config.widths.levels) > 1 or _is(config.trunk, peers):
        yield f"{name} needs clients that train the whole model: widths=whole, and not trunk=peers"


def _asynchronous(config: DictConfig) -> Iterator[str]:
    name, has_ensemble = f"algorithm={_member(config.algorithm)}", _has_step(config, "feddf", DistilEnsemble)
    return asynchronous_problems(config, build_algorithm(config), name, has_ensemble=has_ensemble)


def _personal(config: DictConfig) -> Iterator[str]:
    """Algorithms with a model for each client."""
    algorithm, name = build_algorithm(config), f"algorithm={_member(config.algorithm)}"
    keep, tuning, own = algorithm.keep, algorithm.tuning.steps > 0, algorithm.client.answers != "params"
    if config.mode != "federated" and (tuning or own or keep != "nothing"):
        yield f"{name} needs mode=federated, got {config.mode}"
    if keep != "nothing" and config.keep not in ("nothing", keep):
        yield f"{name} is keep={keep}: keep must be {keep}, or nothing, which leaves it to the algorithm; got {config.keep}"
    if own and config.keep != "nothing":
        yield f"{name} has a second, whole model on each client: keep must be nothing, got {config.keep}"
    if (tuning or own) and (len(config.widths.levels) > 1 or _is(config.trunk, peers)):
        yield f"{name} needs clients that train the whole model: widths=whole, and not trunk=peers"
    if own and (balancer := _remembers_gradients(config)):
        yield f"{name} takes gradients at two models, and balancer {balancer} remembers those of one"
    if isinstance(algorithm.client, HeadsThenTrunk) and _is(config.heads, FixedCodes):
        yield f"{name} trains heads and trunk in turn: heads must have parameters, and heads=codes has none"


def _views(config: DictConfig) -> Iterator[str]:
    """Clients that train several widths or architectures."""
    narrower, mixed = len(config.widths.levels) > 1, _is(config.trunk, peers)
    shrink = config.fleet.memory == "shrink"
    if mixed:
        yield from _whole_updates(config, "trunk=peers needs")
        if narrower:
            yield "trunk=peers gives each client a trunk as it is: widths.levels must be [1], as widths=whole has"
    elif narrower:
        yield from _whole_updates(config, "widths.levels below 1 need")
    if not mixed and not narrower:
        if shrink:
            yield "fleet.memory=shrink needs trunk=peers, or widths.levels below 1, such as widths=levels has"
        return
    option, shares = ("trunk.shares", config.trunk.shares) if mixed else ("widths.shares", config.widths.shares)
    if shrink and shares is not None:
        yield f"{option} must be null where fleet.memory=shrink says who trains which, got {list(shares)}"
    if not shrink and shares is None:
        yield f"{option} must say how many clients have which, or a fleet with fleet.memory=shrink; got null"
    if name := _remembers_gradients(config):
        yield f"widths.levels below 1 and trunk=peers change what is trained, and balancer {name} remembers the gradients of all of it"


def _whole_updates(config: DictConfig, needs: str) -> Iterator[str]:
    if config.mode != "federated":
        yield f"{needs} mode=federated, got {config.mode}"
    if (keep := resolve_keep(config)) in ("norms", "all"):
        yield f"{needs} a trunk that is sent: keep=nothing or heads, got {keep}"
    if config.transfer.trained is not None:
        yield f"{needs} a trunk that is trained whole: transfer.trained must be null, got {config.transfer.trained}"
    if OmegaConf.select(config, "server.balancer") is not None:
        yield f"{needs} a server that need not compare whole updates: server.balancer must be null"
    if config.fusion != "argmax":
        yield f"{needs} fusion=argmax, as no client could score with the models of others, got {config.fusion}"


def _start(config: DictConfig) -> Iterator[str]:
    if config.start and config.weights is not None:
        yield f"weights must be null where start={config.start} gives the whole model, got {config.weights}"
    if config.prune.kind == "weights" and resolve_keep(config) != "nothing":
        yield f"prune.kind=weights prunes what travels: it needs keep=nothing, got mode={config.mode} keep={config.keep}"
    if config.prune.kind == "channels" and not config.start:
        yield "prune.kind=channels needs start, the run whose model is cut: a new model has no channels to choose by"


def _source(config: DictConfig) -> Iterator[str]:
    """Images of a source run that are trained on too."""
    if config.transfer.source is None:
        return
    if config.weights is None:
        yield "transfer.source compares images by the embedding of a source trunk: weights must say which, got null"
    if _is(config.loss, ByKind):
        yield "transfer.source adds people after all other subtasks, and loss=by_kind takes what comes last for attributes"
    if config.mode == "single_task":
        yield "transfer.source adds subtasks, and mode=single_task trains one alone: use mode=local, federated or centralised"


def _teacher(config: DictConfig) -> Iterator[str]:
    relations = bool(config.transfer.distance or config.transfer.angle)
    names = "transfer.distance and transfer.angle"
    if relations:
        if config.weights is None:
            yield f"{names} keep the relations of a source trunk: weights must say which, got null"
        if config.distil.teacher:
            yield f"{names} make the source trunk the teacher: distil.teacher must be null, got {config.distil.teacher}"
        if _member(config.architecture) != "hard_sharing" or _is(config.trunk, peers):
            yield f"{names} need an architecture with one trunk: architecture=hard_sharing, and not trunk=peers"
    if not relations and not config.distil.teacher:
        return
    needs = f"{names} need" if relations else "distil.teacher needs"
    if config.mode not in POOLED and config.engine.backend not in ("auto", "loop"):
        # torch 2.15 crashes on the teacher's convolutions, whose weights are not stacked, inside the stacked step.
        yield f"{needs} engine.backend=loop, or auto, which takes it; got {config.engine.backend}"
    if config.transfer.cache:
        yield f"{needs} the images: transfer.cache must be false, got true"
    if not isinstance(instantiate(config.balancer), Equal) or config.balance.conflict:
        yield (
            "a teacher (distil.teacher, transfer.distance, transfer.angle) needs balancer=equal, without balance.conflict: its "
            "loss belongs to no task"
        )


def _features(config: DictConfig) -> Iterator[str]:
    """Features of a frozen trunk in place of images."""
    if config.transfer.unfreeze_every is not None and (name := _remembers_gradients(config)):
        yield f"transfer.unfreeze_every changes what is trained, and balancer {name} remembers the gradients of all of it"
    if not config.transfer.cache:
        return
    if config.mode == "detection":
        yield "transfer.cache=true keeps features in place of pictures, and mode=detection trains on scenes too"
    changes = instantiate(config.augmentation).changes
    if changes or config.mirror:
        yield (
            "transfer.cache=true needs pictures that never change: augmentation=none and mirror=false, got "
            f"augmentation that {'changes' if changes else 'keeps'} them and mirror={str(config.mirror).lower()}"
        )
    if _has_step(config, "feddf", DistilEnsemble):
        yield "server=feddf needs images that are not features: transfer.cache must be false, got true"


def _server(config: DictConfig) -> Iterator[str]:
    keep = resolve_keep(config)
    if config.mode in POOLED:
        return
    if _has_step(config, "feddf", DistilEnsemble) and keep != "nothing":
        yield f"server=feddf needs the clients' whole models: mode=federated and keep=nothing, got clients that keep {keep}"
    if _has_step(config, "fedaws", SpreadHeads) and (keep != "nothing" or _is(config.heads, FixedCodes)):
        yield "server=fedaws needs heads that the clients send: heads=cosine or linear, and keep=nothing"


RULES: tuple[Callable[[DictConfig], Iterator[str]], ...] = (
    _choices,
    _processes,
    _client,
    _algorithm,
    _asynchronous,
    _personal,
    _views,
    _start,
    _source,
    _teacher,
    _features,
    _server,
)


def _member(node: Any) -> str:
    """The name of what the chosen member of a group builds."""
    return str(node._target_).rpartition(".")[2]


def _is(node: Any, target: Any) -> bool:
    """Whether the chosen member of a group builds `target`."""
    return str(node._target_) == f"{target.__module__}.{target.__qualname__}"


def _has_step(config: DictConfig, member: str, step: type) -> bool:
    """Whether the server has a step, by the name of its member or as an object; to build a member may take its data."""
    if _is(config.server, given):
        return any(isinstance(options, step) for options in instantiate(config.server).options)
    return _member(config.server) == member


def _aggregator(config: DictConfig) -> Any:
    """The server's aggregator; None where it is the mean, as in all members without a balancer."""
    if _is(config.server, given):
        return instantiate(config.server).aggregator
    return instantiate(config.server.balancer)


def _remembers_gradients(config: DictConfig) -> str | None:
    """The name of the balancer, where it remembers gradients."""
    balancer = instantiate(config.balancer)
    return None if "representation" in balancer.levels else type(balancer).__name__
