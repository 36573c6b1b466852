"""The groups of options, the members of each group, and their defaults."""

from typing import Any

from omegaconf import MISSING

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
from mtl.data.scene_transforms import SceneAugmentation
from mtl.data.transforms import Augmentation, Normalise
from mtl.devices.fleet import Fleet
from mtl.devices.widths import Widths
from mtl.edge.distil import Distilling
from mtl.edge.prune import Pruning
from mtl.faces.finder import DetectionOptions
from mtl.federation.algorithms.local_adam import LocalAdam, LocalAdamW
from mtl.federation.algorithms.local_sgd import LocalSGD
from mtl.federation.population.sampling import Sampling
from mtl.federation.schedule import Schedule
from mtl.federation.server import mean
from mtl.federation.server_steps.distil_ensemble import feddf
from mtl.federation.server_steps.spread_heads import fedaws
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
from mtl.run.algorithms import ALGORITHMS

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
    "client": {
        "sgd": (LocalSGD, {"zen_exclude": ["scales", "stacked"]}),
        "adam": (LocalAdam, {"zen_exclude": ["scales", "stacked"]}),
        "adamw": (LocalAdamW, {"zen_exclude": ["scales", "stacked"]}),
    },
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
    "algorithm": ALGORITHMS,
    "server": {
        "mean": mean,
        "fedaws": fedaws,
        "feddf": feddf,
        # Another with balancer@server.balancer=NAME.
        "conflict_averse": (mean, {"balancer": MISSING, "hydra_defaults": ["_self_", {"/balancer@balancer": "cagrad"}]}),
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
# Built as functions of arguments that are known only at run time: the data, the seed, the number of subtasks.
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
    "algorithm": "fedavg",
    "server": "mean",
    "distil": "soft",
    "prune": "nothing",
    "scenes": "orl_scenes",
    "scene_augmentation": "boxes",
    "detector": "centre",
    "detection": "beside",
}
