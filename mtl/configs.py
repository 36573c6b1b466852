"""The configuration: groups and their members, derived from the signatures of what they build, and the defaults of `mtl train`."""

import functools
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra import initialize
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra_zen import ZenField, ZenStore, builds, make_config
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mtl.balancing.aligned_mtl import AlignedMTL
from mtl.balancing.cagrad import CAGrad
from mtl.balancing.conflict_free import ConFIG
from mtl.balancing.cr_mogm import CRMOGM
from mtl.balancing.db_mtl import DBMTL
from mtl.balancing.dualproj import DualProj
from mtl.balancing.dwa import DWA
from mtl.balancing.excess_mtl import ExcessMTL
from mtl.balancing.fairgrad import FairGrad
from mtl.balancing.famo import FAMO
from mtl.balancing.graddrop import GradDrop
from mtl.balancing.gradnorm import GradNorm
from mtl.balancing.gradvac import GradVac
from mtl.balancing.imtl_g import IMTLG
from mtl.balancing.log_losses import GLS, SI
from mtl.balancing.mgda import MGDA
from mtl.balancing.moco import MoCo
from mtl.balancing.nash_mtl import NashMTL
from mtl.balancing.pcd import PCD
from mtl.balancing.pcgrad import PCGrad
from mtl.balancing.stch import STCH, LogSTCH
from mtl.balancing.uncertainty import IMTLL, UW
from mtl.balancing.upgrad import UPGrad
from mtl.balancing.weighting import RLW, Equal, Fixed
from mtl.data import assignment, cifar, faces, folders, partition, scenes, splits, subtasks, synthetic, widerface
from mtl.data.client_batches import LocalWork
from mtl.data.hiding import KnownLabels
from mtl.data.scene_transforms import SceneAugmentation
from mtl.data.transforms import Augmentation, Normalise
from mtl.edge.distil import Distilling
from mtl.edge.fleet import Fleet
from mtl.edge.prune import Pruning
from mtl.edge.widths import Widths
from mtl.face.finder import DetectionOptions
from mtl.federation.distil_ensemble import feddf
from mtl.federation.local_sgd import LocalSGD
from mtl.federation.sampling import Sampling
from mtl.federation.schedule import Schedule
from mtl.federation.server import fedavg
from mtl.federation.spread_heads import fedaws
from mtl.losses.asymmetric import Asymmetric
from mtl.losses.bce import BCE
from mtl.losses.by_kind import ByKind
from mtl.losses.class_balanced import ClassBalanced
from mtl.losses.focal import Focal
from mtl.losses.hinge import Hinge
from mtl.losses.ldam import LDAM
from mtl.losses.logit_adjusted import LogitAdjusted
from mtl.losses.sphereface2 import SphereFace2
from mtl.losses.uniface import UniFace
from mtl.models import cnn, heads, trunks
from mtl.models.centre import CentreHead
from mtl.models.cgc import cgc
from mtl.models.cross_stitch import cross_stitch
from mtl.models.dselect_k import dselect_k
from mtl.models.grouped import grouped
from mtl.models.hard_sharing import hard_sharing
from mtl.models.mmoe import mmoe
from mtl.models.mtan import mtan
from mtl.models.peers import peers
from mtl.models.ple import ple
from mtl.models.soft_sharing import soft_sharing
from mtl.models.sphereface import sphereface_cnn
from mtl.models.transfer import Transfer
from mtl.named_experiments import experiment_files
from mtl.options import checked, nearest

CONFIG_NAME = "train"
# Runs that start in the same second, as an array of jobs does, have names of their own.
OmegaConf.register_new_resolver("token", lambda: secrets.token_hex(4), use_cache=True, replace=True)

# group -> (how it is built, members). A new loss, trunk, rule or data set is one line here.
WHOLE: dict[str, dict[str, Any]] = {
    "data": {
        "orl": faces.orl,
        "cifar10": cifar.cifar10,
        "celeba": faces.celeba,
        "lfw": faces.lfw,
        "folder": folders.folder,
        "synthetic": synthetic.synthetic,
        "scene_faces": (scenes.scene_faces, {"scenes": "${scenes}", "margin": "${detection.margin}"}),
    },
    "scenes": {"orl_scenes": scenes.orl_scenes, "widerface": widerface.widerface},
    "scene_augmentation": {
        "none": (SceneAugmentation, {"flip": False, "scale": 0.0, "shift": 0.0, "brightness": 0.0}),
        "boxes": SceneAugmentation,
    },
    "detection": {"beside": DetectionOptions},
    "augmentation": {
        "none": (Augmentation, {"flip": False}),
        "flip": Augmentation,
        "faces": (Augmentation, {"rotation": 10.0, "scale": 0.1, "shift": 0.08, "brightness": 0.2}),
    },
    "normalise": {
        "fixed": Normalise,
        "per_image": (Normalise, {"per_image": True}),
        "equalised": (Normalise, {"equalise": True}),
        # What torchvision's published weights were trained with.
        "imagenet": (Normalise, {"mean": [0.485, 0.456, 0.406], "deviation": [0.229, 0.224, 0.225]}),
    },
    "work": {"steps": (LocalWork, {"steps": 8}), "epochs": LocalWork},
    "client": {"sgd": (LocalSGD, {"zen_exclude": ["scales"]})},
    "transfer": {
        "none": Transfer,
        "parameters": (Transfer, {"decay": 0.38}),
        "features": (Transfer, {"trained": 0}),
        # The weights of the paper for embeddings that are compared.
        "relations": (Transfer, {"distance": 1.0, "angle": 2.0}),
        "instances": (Transfer, {"source": MISSING}),
    },
    "balancer": {
        "equal": Equal,
        "fixed": (Fixed, {"weights": MISSING}),
        "rlw": RLW,
        "uw": UW,
        "imtl_l": IMTLL,
        "dwa": DWA,
        "gls": GLS,
        "si": SI,
        "stch": STCH,
        "log_stch": LogSTCH,
        "famo": FAMO,
        "gradnorm": GradNorm,
        "mgda": MGDA,
        "pcgrad": PCGrad,
        "gradvac": GradVac,
        "cagrad": CAGrad,
        "imtl_g": IMTLG,
        "aligned_mtl": AlignedMTL,
        "nash_mtl": NashMTL,
        "fairgrad": FairGrad,
        "upgrad": UPGrad,
        "dualproj": DualProj,
        "config": ConFIG,
        "db_mtl": DBMTL,
        "pcd": PCD,
        "graddrop": GradDrop,
        "excess_mtl": ExcessMTL,
        "moco": MoCo,
        # Around another with balancer@balancer.of=NAME.
        "cr_mogm": (CRMOGM, {"of": MISSING, "hydra_defaults": ["_self_", {"/balancer@of": "mgda"}]}),
    },
    "schedule": {shape: (Schedule, {"shape": shape}) for shape in ("constant", "cosine", "linear")},
    "sampling": {"all": Sampling, "cohort": (Sampling, {"cohort": 10})},
    "fleet": {
        "none": Fleet,
        "mix": (Fleet, {"mix": MISSING}),
        "boards": (Fleet, {"mix": {"raspberry_pi_4": 0.4, "raspberry_pi_5": 0.3, "jetson_nano": 0.3}}),
        "phones": (Fleet, {"mix": {"phone_low": 0.3, "phone_mid": 0.5, "phone_high": 0.2}}),
    },
    "widths": {"whole": Widths, "levels": (Widths, {"levels": [1.0, 0.5, 0.25]})},
    "server": {
        "fedavg": fedavg,
        "fedavgm": (fedavg, {"momentum": 0.9}),
        "fedaws": fedaws,
        "feddf": feddf,
        # Another with balancer@server.balancer=NAME.
        "conflict_averse": (fedavg, {"balancer": MISSING, "hydra_defaults": ["_self_", {"/balancer@balancer": "cagrad"}]}),
    },
    # Nothing without distil.teacher; the weights are those of RepDistiller.
    "distil": {
        "soft": Distilling,
        "identity": (Distilling, {"exclusive": True}),
        "feature": (Distilling, {"hard": 1.0, "soft": 0.0, "feature": 100.0}),
        "attention": (Distilling, {"hard": 1.0, "soft": 0.0, "attention": 1000.0}),
        "relations": (Distilling, {"hard": 1.0, "soft": 0.0, "distance": 25.0, "angle": 50.0}),
    },
    "prune": {kind: (Pruning, {"kind": kind}) for kind in ("nothing", "weights", "channels")},
}
# These wait for what is known only at run time: the data, the seed, the number of subtasks.
PARTIAL: dict[str, dict[str, Any]] = {
    "split": {"auto": splits.auto, "per_class": splits.per_class, "fractions": splits.fractions, "official": splits.official},
    "subtasks": {
        "one_vs_rest": subtasks.one_vs_rest,
        "attributes": subtasks.attributes,
        "classes_and_attributes": subtasks.classes_and_attributes,
        "groups": (subtasks.groups, {"mapping": MISSING}),
    },
    "partition": {
        "iid": partition.iid,
        "by_class": partition.by_class,
        "sizes": (partition.sizes, {"sizes": MISSING}),
        "dirichlet": partition.dirichlet,
        "dirichlet_clients": partition.dirichlet_clients,
        "shards": partition.shards,
        "log_normal_labels": partition.log_normal_labels,
        "quantity_skew": partition.quantity_skew,
        "per_label": partition.per_label,
    },
    "assignment": {
        "all": assignment.all_to_all,
        "owner": assignment.owner,
        "disjoint": assignment.disjoint,
        "overlapping": assignment.overlapping,
        "random": assignment.random,
    },
    "trunk": {
        "small_cnn": cnn.small_cnn,
        "classic_cnn": cnn.classic_cnn,
        "separable_cnn": cnn.separable_cnn,
        "lenet": cnn.lenet,
        "peers": (peers, {"trunks": {}, "server": MISSING}),
        "sphereface_cnn": sphereface_cnn,
        "flat": cnn.flat,
        "vgg": trunks.vgg,
        "resnet": trunks.resnet,
        "inception_v3": trunks.inception_v3,
        "mobilenet_v2": trunks.mobilenet_v2,
        "mobilenet_v3": trunks.mobilenet_v3,
        "shufflenet_v2": trunks.shufflenet_v2,
        "squeezenet": trunks.squeezenet,
        "efficientnet": trunks.efficientnet,
    },
    "heads": {"linear": heads.LinearHeads, "cosine": heads.CosineHeads, "codes": heads.FixedCodes},
    "architecture": {
        "hard_sharing": hard_sharing,
        "cross_stitch": cross_stitch,
        "soft_sharing": soft_sharing,
        "grouped": grouped,
        "mtan": mtan,
        "mmoe": mmoe,
        "dselect_k": dselect_k,
        "cgc": cgc,
        "ple": ple,
    },
    "detector": {"centre": CentreHead},
    "loss": {
        "bce": BCE,
        "class_balanced": ClassBalanced,
        "focal": Focal,
        "asymmetric": Asymmetric,
        "logit_adjusted": LogitAdjusted,
        "ldam": LDAM,
        "hinge": Hinge,
        "sphereface2": SphereFace2,
        "uniface": UniFace,
        # Others with loss@loss.classes=NAME and loss@loss.attributes=NAME.
        "by_kind": (
            ByKind,
            {
                "classes": MISSING,
                "attributes": MISSING,
                "zen_exclude": ["num_exclusive"],
                "hydra_defaults": ["_self_", {"/loss@classes": "sphereface2"}, {"/loss@attributes": "bce"}],
            },
        ),
    },
}
DEFAULTS = {
    "data": "orl",
    "subtasks": "one_vs_rest",
    "split": "auto",
    "partition": "by_class",
    "assignment": "owner",
    "trunk": "small_cnn",
    "heads": "cosine",
    "architecture": "hard_sharing",
    "loss": "sphereface2",
    "balancer": "equal",
    "augmentation": "faces",
    "normalise": "fixed",
    "work": "steps",
    "client": "sgd",
    "transfer": "none",
    "schedule": "cosine",
    "sampling": "all",
    "fleet": "none",
    "widths": "whole",
    "server": "fedavg",
    "distil": "soft",
    "prune": "nothing",
    "scenes": "orl_scenes",
    "scene_augmentation": "boxes",
    "detector": "centre",
    "detection": "beside",
}


@functools.cache
def register(experiments: Path | None = None) -> Mapping[str, str]:
    """Fill Hydra's store with the groups, the defaults and the experiments: the YAML files of the package, and of a folder of the user's.

    Returns what is wrong with those of the folder that cannot be read, by name.
    """
    store = ZenStore("mtl", overwrite_ok=True)
    for groups, partial in ((WHOLE, False), (PARTIAL, True)):
        for group, members in groups.items():
            for name, member in members.items():
                target, changed = member if isinstance(member, tuple) else (member, {})
                config: Any = builds(target, populate_full_signature=True, zen_partial=partial, hydra_convert="all", **changed)
                store(config, group=group, name=name)
    store(top_level(), name=CONFIG_NAME)
    store.add_to_hydra_store(overwrite_ok=True)
    broken = {}
    for name, path in experiment_files(experiments).items():
        try:
            ConfigStore.instance().store(group="experiment", name=name, node=_read_experiment(path), package="_global_")
        except (ValueError, OSError) as error:
            broken[name] = f"{path} cannot be used: {error}"
    return broken


def _read_experiment(path: Path) -> DictConfig:
    try:
        node = OmegaConf.load(path)
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise ValueError(str(error)) from error
    if not isinstance(node, DictConfig):
        raise ValueError("it must hold options by name")
    return node


# Words at the top whose kind Hydra does not check.
WORDS = ("weights", "best_by", "start", "name")


def check_keys(config: DictConfig) -> None:
    """Raises ValueError for a name at the top that is no option, and for a value there of a wrong kind; a number may be a word."""
    known = [str(option.name) for option in fields(top_level())]
    plain: dict[str, Any] = OmegaConf.to_container(config)  # type: ignore[assignment]
    for key in map(str, config):
        if key not in known:
            hint = nearest(key, [*known, "experiment"])
            raise ValueError(f"unknown option {key}{hint}; the configuration has the keys {', '.join(known)}")
        if key in DEFAULTS or key in OPTIONS:
            if not isinstance(config[key], DictConfig):
                raise ValueError(f"{key} must be a group of options, got {config[key]}")
        elif key in WORDS:
            config[key] = checked(plain[key], str | None, key)


@dataclass
class TrainerOptions:
    """Processes, accelerator and precision.

    accelerator: cpu, gpu or auto, as pytorch-lightning's Trainer takes it; devices: number of processes that share a round, each on a GPU
    or some cores; num_nodes: machines, where torchrun or srun starts the processes; precision: 32-true or bf16-mixed; threads: threads of
    torch on the CPU, null for all cores, shared by the processes.
    """

    accelerator: str = "auto"
    devices: int = 1
    num_nodes: int = 1
    precision: str = "32-true"
    threads: int | None = None


@dataclass
class EngineOptions:
    """How clients are simulated.

    backend: auto (the fastest, tried on the first cohort), loop (one by one), vmap (stacked) or compiled (stacked and compiled); compile:
    whether torch.compile makes the stacked step: auto (where it pays), always, never; block: clients stacked at most, null for as many as
    fit; bank_memory: bytes of memory for what stays on the clients; beyond that it lies in a file.
    """

    backend: str = "auto"
    compile: str = "auto"
    block: int | None = None
    bank_memory: int = 2**32


@dataclass
class BalanceOptions:
    """How every balancer is applied.

    level: gradients that are compared: those by the features (representation) or of the trunk (parameters), auto for the cheapest that
    serves; heads: whether the task weights also reach the heads, null as the method's authors do it; normalise: how long the update is:
    length (as the plain sum's part along it, so that a learning rate means the same with every method), weights (the task weights sum to
    the number of tasks) or none (as the method gives it); gradient_scale: what the gradients are divided by before a method that works on
    their Gramian sees them: none, l2 (their length), loss (their task's) or loss+ (both); conflict: log how far the tasks' gradients
    point against each other, and draw the map of it.
    """

    level: str = "auto"
    heads: bool | None = None
    normalise: str = "length"
    gradient_scale: str = "none"
    conflict: bool = False


@dataclass
class TrackingOptions:
    """What is logged, in files and in W&B.

    wandb: auto (online where an account is set up, else offline), online, offline or disabled; project: W&B's project, or ENTITY/PROJECT;
    group: W&B's group, null for the folder of a sweep; tags: W&B's tags; job_type: W&B's job type; log_model: keep the tested model at
    W&B as an artifact; per_task: log losses and metrics of
    every subtask in every round; log_every: rounds after which the numbers are read from the compute device, all at once.
    """

    wandb: str = "auto"
    project: str = "mtl"
    group: str | None = None
    tags: list[str] = field(default_factory=list)
    job_type: str | None = None
    log_model: bool = False
    per_task: bool = True
    log_every: int = 1


# Groups of options without members.
OPTIONS: dict[str, type] = {
    "known_labels": KnownLabels,
    "balance": BalanceOptions,
    "engine": EngineOptions,
    "trainer": TrainerOptions,
    "tracking": TrackingOptions,
}


def top_level() -> Any:
    """The dataclass of all keys at the top, with their defaults."""
    return make_config(
        *(ZenField(Any, MISSING, name=group) for group in DEFAULTS),
        hydra_defaults=[
            "_self_",
            *({group: member} for group, member in DEFAULTS.items()),
            {"override hydra/job_logging": "stdout"},
        ],
        mode=ZenField(str, "federated"),
        partition_by=ZenField(str, "class"),
        norm=ZenField(str, "refuse"),
        known_labels=ZenField(KnownLabels, builds(KnownLabels, populate_full_signature=True)()),
        weights=ZenField(str | None, None),
        keep=ZenField(str, "nothing"),
        fusion=ZenField(str, "argmax"),
        reduction=ZenField(str, "mean"),
        mirror=ZenField(bool, True),
        rounds=ZenField(int, 80),
        evaluate_every=ZenField(int, 10),
        checkpoint_every=ZenField(int, 5),
        best_by=ZenField(str | None, None),
        seed=ZenField(int, 0),
        start=ZenField(str | None, None),
        name=ZenField(str | None, None),
        output_dir=ZenField(str, "runs/${now:%Y-%m-%d_%H-%M-%S}_${token:}"),
        resume=ZenField(bool, False),
        balance=ZenField(BalanceOptions, BalanceOptions()),
        engine=ZenField(EngineOptions, EngineOptions()),
        trainer=ZenField(TrainerOptions, TrainerOptions()),
        profile=ZenField(bool, False),
        write_report=ZenField(bool, True),
        tracking=ZenField(TrackingOptions, TrackingOptions()),
        hydra={
            "run": {"dir": "${output_dir}"},
            "sweep": {"dir": "${output_dir}", "subdir": "${hydra.job.num}"},
            "output_subdir": None,
            "callbacks": {"sweep": {"_target_": "mtl.launch.Sweep"}},
            "help": {"app_name": "mtl train"},
            "job": {"config": {"override_dirname": {"exclude_keys": ["output_dir", "resume", "data.root"]}}},
        },
    )


def compose(overrides: Sequence[str] = (), *, experiments: Path | None = None) -> DictConfig:
    """The configuration that `mtl train OVERRIDES` would run with. experiments: a folder of more of them, beside those of the package."""
    register(experiments)
    # A program of Hydra's, or another in a notebook, has a global state of its own.
    hydra_state, GlobalHydra.instance().hydra = GlobalHydra.instance().hydra, None
    try:
        with initialize(version_base="1.3", config_path=None):
            return hydra.compose(CONFIG_NAME, overrides=list(overrides))
    finally:
        GlobalHydra.instance().hydra = hydra_state
