"""Many short runs that together reach most of what `mtl train` can do, for `experiments.same_numbers`.

A run is its overrides, separated by spaces. `<name>` in them stands for a folder: of made pictures (`FOLDERS`), or the run directory of
the run of that name.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

BASE = (
    "rounds=3 evaluate_every=2 checkpoint_every=1 work.steps=2 tracking.wandb=disabled write_report=false trainer.accelerator=cpu "
    "trainer.threads=1 engine.backend=loop"
)
# Four classes of grey pictures; two of each class for validation, two for test.
IMAGES = "data=folder data.root=<pictures> data.image_size=[16,16] data.grey=true split.train=5 split.val=2"
PICTURES = f"{IMAGES} partition.num_clients=2"
# Six people in colour with three attributes.
PEOPLE = "data=celeba data.root=<people> data.image_size=[16,16] partition.num_clients=3"
ATTRIBUTES = f"{PEOPLE} subtasks=attributes split=official partition=dirichlet heads=linear loss=bce"
VECTORS = "data=synthetic data.samples_per_client=30 data.dimension=12 data.num_classes=4 split=fractions partition=per_label"
VECTORS += " partition_by=owner assignment=all trunk=flat heads=linear loss=bce augmentation=none mirror=false"
SMALL = "trunk.channels=[8] trunk.width=8"
DEEPER = "trunk.channels=[8,8] trunk.width=8"
CLASSIC = "trunk=classic_cnn trunk.channels=[4,8] trunk.width=8"
PLAIN = f"{PICTURES} {SMALL}"
LINEAR = f"{PLAIN} heads=linear loss=bce"
CLIENTS = "partition=iid partition.num_clients=4 assignment=all"
DETECT = (
    f"+experiment=detect scenes.root=<pictures> scenes.scenes=[12,0,4] scenes.people=4 scenes.image_size=[64,64] scenes.max_faces=2 "
    f"scenes.face_height=[24,40] data.image_size=[20,16] {DEEPER} detector.width=8 detection.batch_size=3"
)
BATCH_NORM = "trunk=shufflenet_v2 trunk.multiplier=.1 trunk.width=8 rounds=2 evaluate_every=1 work.steps=1 work.batch_size=4"
TRUNKS = (
    "trunk=peers +trunk@trunk.trunks.plain=small_cnn +trunk@trunk.trunks.light=separable_cnn trunk.trunks.plain.channels=[8] "
    "trunk.trunks.light.channels=[8,8] trunk.trunks.plain.width=8 trunk.trunks.light.width=8 trunk.server=plain"
)
DEVICE = (
    "peak_flop_per_second:1e9,efficiency:.5,down_bit_per_second:1e6,up_bit_per_second:1e6,latency_seconds:0,compute_watts:2,"
    "radio_watts:1,idle_watts:1"
)

RUNS: dict[str, str] = {
    # Modes.
    "federated": PLAIN,
    "centralised": f"{PLAIN} mode=centralised",
    "local": f"{PLAIN} mode=local",
    "single_task": f"{PLAIN} mode=single_task",
    "detection": DETECT,
    "detection_balanced": f"{DETECT} balancer=mgda scene_augmentation=none heads=linear loss=bce",
    "detection_beside_people": f"{DETECT} scenes=orl_scenes {PEOPLE} data.grey=true partition.num_clients=1 "
    "subtasks=classes_and_attributes split=fractions loss=by_kind loss.attributes.scale=16",
    # Backends, precision, ranks.
    "vmap": f"{PLAIN} engine.backend=vmap partition=dirichlet partition.num_clients=4 work=epochs work.batch_size=4 engine.block=2",
    "compiled": f"{VECTORS} engine.backend=compiled data.num_clients=3",
    "auto_stacks": f"{VECTORS} engine.backend=auto data.num_clients=30",
    "bf16": f"{PLAIN} trainer.precision=bf16-mixed engine.backend=vmap",
    "two_ranks": f"{PLAIN} trainer.devices=2 {CLIENTS} keep=heads sampling.dropout=.3 balancer=famo",
    # What stays on the clients, and how their scores are joined.
    "keep_heads": f"{PLAIN} keep=heads sampling.dropout=.4 engine.bank_memory=100 fusion=platt",
    "keep_all": f"{LINEAR} keep=all {CLIENTS} balancer=dwa",
    "platt": f"{LINEAR} fusion=platt partition=shards partition.num_clients=3 assignment=overlapping engine.backend=vmap",
    # Servers.
    "fedavgm": f"{PLAIN} algorithm=fedavgm server.weighting=clients algorithm.learning_rate=.7 partition=quantity_skew assignment=all",
    "fedprox": f"{PLAIN} algorithm=fedprox algorithm.mu=.1 {CLIENTS}",
    "scaffold": f"{PLAIN} algorithm=scaffold {CLIENTS} sampling.dropout=.3 keep=heads",
    "scaffold_first": f"{PLAIN} algorithm=scaffold algorithm.option=I {CLIENTS} engine.backend=vmap",
    "fednova": f"{PLAIN} algorithm=fednova partition=quantity_skew assignment=all work=epochs",
    "feddyn": f"{PLAIN} algorithm=feddyn algorithm.alpha=.1 {CLIENTS} sampling.dropout=.3",
    "fedaws": f"{PLAIN} server=fedaws heads=linear loss=bce",
    "feddf": f"{PICTURES} {CLASSIC} server=feddf server.steps=3 server.num_images=20 algorithm.momentum=.5 sampling.dropout=.3",
    "feddf_images": f"{LINEAR} {CLIENTS} server=feddf +data@server.images=folder server.images.root=<others> "
    "server.images.image_size=[16,16] server.images.grey=true server.steps=3 server.num_images=20 engine.backend=vmap",
    "conflict_averse": f"{PLAIN} server=conflict_averse algorithm.momentum=.5 {CLIENTS}",
    "server_upgrad": f"{PLAIN} server=conflict_averse balancer@server.balancer=upgrad {CLIENTS} engine.backend=vmap keep=heads",
    # Clients, schedules, who takes part.
    "client_options": f"{PLAIN} client.momentum=0 client.weight_decay=.01 client.head_scale=1 schedule=linear schedule.warmup=1",
    "cohort": f"{PLAIN} partition=log_normal_labels partition.num_clients=5 partition.min_images=1 assignment=all sampling=cohort "
    "sampling.cohort=3 sampling.dropout=.3 schedule=constant engine.backend=vmap",
    "fleet_deadline": f"{PLAIN} {CLIENTS} fleet=mix fleet.mix={{raspberry_pi_4:2,phone_low:2}} fleet.deadline=.1",
    "fedbuff": f"{PLAIN} {CLIENTS} fleet=mix fleet.mix={{raspberry_pi_4:2,phone_low:2}} algorithm=fedbuff algorithm.buffer=2",
    "fedasync": f"{PLAIN} {CLIENTS} fleet=mix fleet.mix={{raspberry_pi_4:2,phone_low:2}} algorithm=fedasync keep=heads",
    "fleet_first_ones": f"{PLAIN} {CLIENTS} fleet=mix fleet.mix={{raspberry_pi_4:2,phone_low:2}} fleet.wait_for=2 sampling=cohort "
    "sampling.cohort=3 keep=heads",
    "fleet_shrinks": f"{PICTURES} {CLASSIC} {CLIENTS} fleet=mix fleet.mix={{large:1,little:3}} fleet.memory=shrink widths=levels "
    f"widths.levels=[1,.5] fleet.profiles={{large:{{{DEVICE},memory_bytes:200000}},little:{{{DEVICE},memory_bytes:72000}}}}",
    "widths": f"{PICTURES} {CLASSIC} widths=levels widths.shares=[1,1,1] partition=iid partition.num_clients=3 assignment=all "
    "algorithm=fedavgm sampling.dropout=.3",
    "widths_stacked": f"{PLAIN} {CLIENTS} widths=levels widths.levels=[1,.5] widths.shares=[2,2] widths.scale=false keep=heads "
    "balancer=famo engine.backend=vmap trunk.groups=2",
    "peers": f"{PICTURES} {TRUNKS} trunk.shares={{plain:1,light:2}} partition.num_clients=3 server=feddf server.steps=3 "
    "server.num_images=20",
    # Balancers: of losses, of their Gramian at both levels, of gradients; with state and without.
    "fixed": f"{PLAIN} mode=centralised balancer=fixed balancer.weights=[1,.5,2,1]",
    "rlw": f"{LINEAR} {CLIENTS} balancer=rlw balance.normalise=none engine.backend=vmap",
    "uw": f"{LINEAR} {CLIENTS} balancer=uw balance.normalise=weights",
    "famo": f"{LINEAR} {CLIENTS} balancer=famo balance.conflict=true balance.normalise=weights engine.backend=vmap",
    "stch": f"{LINEAR} mode=centralised balancer=stch",
    "gradnorm": f"{LINEAR} {CLIENTS} balancer=gradnorm",
    "mgda": f"{PLAIN} {CLIENTS} balancer=mgda balance.level=representation balance.gradient_scale=loss+ engine.backend=vmap",
    "pcgrad": f"{LINEAR} {CLIENTS} balancer=pcgrad balance.level=parameters balance.heads=true engine.backend=vmap",
    "cagrad": f"{LINEAR} mode=centralised balancer=cagrad balance.level=parameters balance.gradient_scale=l2 balance.conflict=true",
    "nash_mtl": f"{LINEAR} {CLIENTS} balancer=nash_mtl",
    "graddrop": f"{LINEAR} {CLIENTS} balancer=graddrop sampling.dropout=.3",
    "moco": f"{LINEAR} {CLIENTS} balancer=moco engine.backend=vmap",
    "cr_mogm": f"{LINEAR} mode=centralised balancer=cr_mogm balancer@balancer.of=upgrad",
    # Losses, labels.
    "sphereface2": f"{PLAIN} loss.weight=.5 normalise=per_image augmentation=flip client.head_scale=1",
    "uniface": f"{PLAIN} loss=uniface normalise=equalised engine.backend=vmap",
    "ldam": f"{PLAIN} loss=ldam loss.defer=.5 normalise=imagenet",
    "focal": f"{IMAGES} {SMALL} heads=linear loss=focal partition=sizes partition.sizes=[.7,.3] assignment=all",
    "asymmetric": f"{LINEAR} loss=asymmetric partition=dirichlet_clients assignment=all augmentation=none",
    "class_balanced": f"{LINEAR} loss=class_balanced assignment=disjoint mirror=false augmentation.cutout=.3",
    "logit_adjusted": f"{LINEAR} loss=logit_adjusted mode=centralised",
    "hinge": f"{LINEAR} loss=hinge mode=local engine.backend=vmap",
    "groups": f"{LINEAR} subtasks=groups subtasks.mapping={{low:[c0,c1],high:[c2,c3],odd:[c1,c3]}} partition=iid assignment=all",
    "by_kind": f"{PEOPLE} {SMALL} subtasks=classes_and_attributes split=fractions loss=by_kind loss.attributes.scale=16 "
    "known_labels.share=.5 reduction=known partition=iid assignment=all",
    "attributes": f"{ATTRIBUTES} {SMALL} assignment=random assignment.tasks_per_client=2 loss.positive_weight=balanced "
    "known_labels.share=.7 known_labels.by=image best_by=balanced_accuracy engine.backend=vmap",
    # What others have learned.
    "taught": f"{PLAIN} mode=centralised distil.teacher=<centralised>",
    "taught_inside": f"{PLAIN} engine.backend=auto distil=relations distil.teacher=<federated> distil.feature=1 distil.attention=1 "
    "distil.soft=.5 distil.exclusive=true",
    "features": f"{PICTURES} {DEEPER} weights=<deeper> transfer=features transfer.trained=1 transfer.cache=true augmentation=none "
    "mirror=false",
    "features_stacked": f"{PICTURES} {DEEPER} weights=<deeper> transfer=features transfer.cache=true augmentation=none mirror=false "
    "engine.backend=vmap engine.block=2",
    "deeper": f"{PICTURES} {DEEPER} data.root=<others>",
    "unfreezing": f"{PICTURES} {DEEPER} weights=<deeper> transfer=parameters transfer.unfreeze_every=1 algorithm=fedavgm",
    "relations": f"{PICTURES} {DEEPER} weights=<deeper> transfer=relations",
    "instances": f"{PICTURES} {DEEPER} weights=<deeper> transfer=instances transfer.source=<deeper> transfer.ratio=.5 "
    "transfer.disjoint=true keep=heads engine.backend=vmap",
    "start": f"{PICTURES} {DEEPER} data.root=<others> start=<deeper> mode=centralised",
    "prune_weights": f"{PLAIN} prune=weights prune.ratio=.7",
    "prune_channels": f"{PICTURES} {CLASSIC} start=<dropout> prune=channels",
    # Trunks and what becomes of their BatchNorm.
    "dropout": f"{PICTURES} {CLASSIC} engine.backend=vmap",
    "light": f"{PICTURES} trunk=separable_cnn trunk.channels=[8,8] trunk.width=8 mode=centralised",
    "sphereface": f"{PICTURES} trunk=sphereface_cnn trunk.depth=4 trunk.multiplier=.125 trunk.width=8",
    "norm_group": f"{PICTURES} {BATCH_NORM} norm=group",
    "norm_local": f"{PICTURES} {BATCH_NORM} norm=local",
    "norm_frozen": f"{PICTURES} {BATCH_NORM} norm=frozen transfer.trained=1 mode=centralised",
    # Architectures.
    "mmoe": f"{LINEAR} architecture=mmoe architecture.width=8 architecture.num_experts=3 keep=heads",
    "dselect_k": f"{LINEAR} architecture=dselect_k architecture.width=8 {CLIENTS}",
    "cgc": f"{LINEAR} architecture=cgc architecture.width=8 engine.backend=vmap",
    "ple": f"{LINEAR} architecture=ple architecture.width=8 mode=centralised",
    "cross_stitch": f"{LINEAR} architecture=cross_stitch architecture.groups=2 engine.backend=vmap",
    "soft_sharing": f"{PLAIN} architecture=soft_sharing architecture.groups=2",
    "grouped": f"{PLAIN} architecture=grouped architecture.groups=2 balancer=famo {CLIENTS}",
    "mtan": f"{PLAIN} architecture=mtan keep=heads",
}


def make_classes(folder: Path, *, seed: int) -> None:
    """Class folders of nine grey pictures of 16 x 16 for each of four classes, brighter in a row of the class's own."""
    draw = np.random.RandomState(seed)
    for number in range(4):
        (folder / f"c{number}").mkdir(parents=True)
        for i in range(9):
            pixels = draw.randint(0, 150, (16, 16)).astype(np.uint8)
            pixels[4 * number] += 80
            Image.fromarray(pixels).save(folder / f"c{number}" / f"{i}.png")


def make_people(folder: Path) -> None:
    """Pictures in the layout of CelebA: eight of each of six people, with three attributes and all parts of the split."""
    draw = np.random.RandomState(0)
    pictures = folder / "img_align_celeba"
    pictures.mkdir(parents=True)
    identities, splits, attributes = [], [], ["48", "Smiling Young Hat"]
    for i in range(48):
        name, values = f"{i:06d}.jpg", draw.randint(0, 2, 3)
        pixels = draw.randint(0, 150, (16, 16, 3))
        pixels[2 * (i // 8)] += 80
        pixels[:, 12:15] += 40 * values[None, :, None]
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(pictures / name, quality=95)
        identities.append(f"{name} {i // 8 + 1}")
        splits.append(f"{name} {max(i % 8 - 4, 0) // 2 + (i % 8 > 4)}")
        attributes.append(f"{name} " + " ".join("1" if value else "-1" for value in values))
    for file, lines in (("identity_CelebA", identities), ("list_eval_partition", splits), ("list_attr_celeba", attributes)):
        (folder / f"{file}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


FOLDERS: Mapping[str, Callable[[Path], None]] = {
    "pictures": lambda folder: make_classes(folder, seed=0),
    "others": lambda folder: make_classes(folder, seed=1),
    "people": make_people,
}
