"""Options that exclude each other are refused before data are read."""

from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig

import mtl
from mtl.balancing.cagrad import CAGrad
from mtl.balancing.weighting import Equal
from mtl.federation.algorithms.fednova import fednova
from mtl.federation.algorithms.local_adam import LocalAdamW
from mtl.federation.algorithms.local_sgd import LocalSGD
from mtl.federation.algorithms.scaffold import scaffold
from mtl.federation.server import mean
from mtl.federation.server_steps.distil_ensemble import feddf
from mtl.federation.server_steps.spread_heads import fedaws
from mtl.run import train as run_train
from mtl.run.rules import check_rules
from mtl.run.train import train
from tests.composing import compose

PEERS = [
    "trunk=peers",
    "+trunk@trunk.trunks.a=flat",
    "+trunk@trunk.trunks.b=small_cnn",
    "trunk.server=a",
    "+trunk.shares={a:4,b:4}",
]
BUFFERED = ["algorithm=fedbuff", "fleet=phones"]
LEVELS = ["widths=levels", "widths.shares=[2,3,3]"]
CACHE = ["transfer=features", "transfer.trained=1", "transfer.cache=true", "augmentation=none", "mirror=false"]
SOURCE = ["transfer=instances", "transfer.source=runs/a", "weights=runs/a"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["mode=alone"], "mode must be one of federated, centralised, local, single_task, detection, got alone"),
        (["trainer.precision=16-mixed"], "trainer.precision must be one of 32-true, bf16-mixed, got 16-mixed"),
        (["trainer.threads=0"], "trainer.threads must be >= 1, got 0"),
        (["mode=detection", "trainer.num_nodes=2"], "mode=detection trains on one device: trainer.num_nodes must be 1, got 2"),
        (["client.learning_rate=-1"], "client.learning_rate must be > 0, got -1"),
        (["sampling.dropout=1.5"], r"sampling.dropout must be in \[0, 1\), got 1.5"),
        ([*PEERS, "widths=levels"], "trunk=peers gives each client a trunk as it is"),
        ([*PEERS, "mode=local"], "trunk=peers needs mode=federated, got local"),
        ([*PEERS, "balancer=moco"], "change what is trained, and balancer MoCo remembers the gradients of all of it"),
        (["algorithm=fedprox", "algorithm.mu=-1"], "algorithm.mu must be >= 0, got -1"),
        (["algorithm=scaffold", "algorithm.option=III"], "algorithm.option must be I or II, got III"),
        (["algorithm=feddyn", "algorithm.alpha=0"], "algorithm.alpha must be > 0, got 0"),
        (
            ["algorithm=scaffold", "mode=local"],
            "algorithm=scaffold needs mode=federated and keep=nothing or heads, got mode=local",
        ),
        (["algorithm=fedprox", "mode=centralised"], "algorithm=fedprox needs mode=federated"),
        (["algorithm=fednova", "keep=all"], "needs mode=federated and keep=nothing or heads, got mode=federated keep=all"),
        (["algorithm=feddyn", "server=conflict_averse"], "server.balancer must be null, got ConflictAverse|CAGrad"),
        (["algorithm=scaffold", "client.clip=1"], "which clipping changes: client.clip must be null, got 1"),
        ([*LEVELS, "algorithm=scaffold"], "algorithm=scaffold needs clients that train the whole model: widths=whole"),
        ([*PEERS, "algorithm=fednova"], "algorithm=fednova needs clients that train the whole model"),
        (["algorithm=scaffold", "algorithm.option=I", "keep=heads"], "algorithm.option=I needs keep=nothing"),
        ([*LEVELS, "keep=all"], "widths.levels below 1 need a trunk that is sent: keep=nothing or heads, got all"),
        ([*LEVELS, "server=conflict_averse"], "server.balancer must be null"),
        (["widths=levels"], "widths.shares must say how many clients have which, or a fleet with fleet.memory=shrink; got null"),
        (["fleet=boards", "fleet.memory=shrink"], "fleet.memory=shrink needs trunk=peers, or widths.levels below 1"),
        (["start=runs/a", "weights=runs/b"], "weights must be null where start=runs/a gives the whole model, got runs/b"),
        (["prune=weights", "mode=local"], "it needs keep=nothing, got mode=local keep=nothing"),
        (["prune=channels"], "prune.kind=channels needs start"),
        ([*SOURCE, "mode=single_task"], "use mode=local, federated or centralised"),
        ([*SOURCE, "loss=by_kind"], "loss=by_kind takes what comes last for attributes"),
        (["transfer=relations"], "weights must say which, got null"),
        (["transfer=relations", "weights=a", "distil.teacher=b"], "distil.teacher must be null, got b"),
        (
            ["transfer=relations", "weights=a", "architecture=mmoe"],
            "need an architecture with one trunk: architecture=hard_sharing",
        ),
        (
            ["distil.teacher=a", "engine.backend=vmap"],
            "distil.teacher needs engine.backend=loop, or auto, which takes it; got vmap",
        ),
        (["distil.teacher=a", *CACHE], "distil.teacher needs the images: transfer.cache must be false, got true"),
        (["distil.teacher=a", "balance.conflict=true"], "needs balancer=equal, without balance.conflict"),
        (["transfer.unfreeze_every=2", "balancer=moco"], "transfer.unfreeze_every changes what is trained, and balancer MoCo"),
        ([*CACHE, "mirror=true"], "augmentation=none and mirror=false, got augmentation that keeps them and mirror=true"),
        ([*CACHE, "mode=detection"], "mode=detection trains on scenes too"),
        ([*CACHE, "server=feddf"], "server=feddf needs images that are not features"),
        (["algorithm=fedbuff"], "algorithm=fedbuff needs a fleet, whose modelled seconds say who arrives when: fleet=phones"),
        ([*BUFFERED, "algorithm.concurrency=3"], r"algorithm.buffer must be in \[1, 3\].*algorithm.concurrency.*got 4"),
        ([*BUFFERED, "algorithm.staleness=-1"], "algorithm.staleness must be >= 0, got -1"),
        ([*BUFFERED, "algorithm.buffer=0"], "algorithm.buffer must be >= 1, got 0"),
        ([*BUFFERED, "fleet.deadline=3"], "algorithm=fedbuff waits for 4 arrivals: fleet.deadline must be null, got 3"),
        ([*BUFFERED, "fleet.wait_for=3"], "fleet.wait_for must be null, got 3"),
        ([*BUFFERED, "sampling=cohort"], "draws clients as others arrive: sampling=all and algorithm.concurrency"),
        ([*BUFFERED, "server=feddf"], "of which server=feddf would make one ensemble"),
        ([*BUFFERED, "server=conflict_averse"], "algorithm=fedbuff needs the weighted mean of the updates"),
        ([*BUFFERED, *LEVELS], "algorithm=fedbuff needs clients that train the whole model"),
        ([*BUFFERED, "mode=local"], "algorithm=fedbuff needs mode=federated"),
        ([*BUFFERED, "keep=heads"], "train twice in a round, and no state may stay on it .*: keep must be nothing, got heads"),
        ([*BUFFERED, "balancer=famo"], "train twice in a round, .*: balancer must be one without memory, got FAMO"),
        ([*BUFFERED, "transfer.unfreeze_every=2"], "transfer.unfreeze_every must be null, got 2"),
        (["algorithm=fedasync", "fleet=phones", "algorithm.alpha=2"], r"algorithm.alpha must be in \(0, 1\], got 2"),
        (["target_accuracy=1.5"], r"target_accuracy must be in \(0, 1\], got 1.5"),
        (["server=feddf", "keep=heads"], "mode=federated and keep=nothing, got clients that keep heads"),
        (["server=fedaws", "heads=codes"], "needs heads that the clients send: heads=cosine or linear, and keep=nothing"),
    ],
)
def test_a_rule_is_told_before_data_are_read(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_train, "build_data", None)
    with pytest.raises(Exception, match=message):
        train(compose(words), tmp_path / "run")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "words",
    [[], PEERS, LEVELS, CACHE, ["server=fedaws"], ["mode=detection"], [*LEVELS, "algorithm=fedprox"], ["distil.teacher=a"]],
)
def test_what_goes_together_passes(words: list[str]) -> None:
    check_rules(compose(words))


def pictures(**choices: Any) -> DictConfig:
    images = torch.arange(40, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 16, 16)
    return mtl.configure(images, torch.arange(40) % 4, clients=2, **choices)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        (
            {"algorithm": scaffold(), "client": LocalAdamW(0.001)},
            "reads gradients out of the updates of SGD: client must be sgd, got",
        ),
        ({"algorithm": fednova(), "client": LocalAdamW(0.001)}, "client must be sgd, got"),
        ({"algorithm": scaffold(), "server": mean(balancer=CAGrad())}, "server.balancer must be null, got ConflictAverse"),
        ({"server": feddf(), "keep": "heads"}, "mode=federated and keep=nothing, got clients that keep heads"),
        ({"server": fedaws(), "keep": "heads"}, "server=fedaws needs heads that the clients send"),
    ],
)
def test_a_rule_reaches_objects_too(choices: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_rules(pictures(**choices))


def test_objects_that_a_rule_admits_by_name_pass() -> None:
    check_rules(pictures(client=LocalSGD(0.01), transfer={"decay": 0.5}))
    check_rules(pictures(balancer=Equal(), distil={"teacher": "a"}))
