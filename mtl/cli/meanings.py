"""What each group, key and preset of a configuration means, in a line each: what `mtl train --help` says of things without a docstring.

A preset is a member of a group that differs from another one by its settings alone, so that both share the docstring of what they build.
"""

GROUPS = {
    "data": "where the images and their labels come from",
    "subtasks": "which yes-or-no questions about an image are learned",
    "split": "which images train, validate and test",
    "partition": "which client holds which training images",
    "assignment": "which client trains which subtasks",
    "trunk": "the shared network, from an image to features",
    "heads": "from features to one score for each subtask",
    "architecture": "what the subtasks share, and what each has for itself",
    "loss": "the positive and the negative loss of a subtask",
    "balancer": "how much each subtask counts in a gradient step",
    "augmentation": "random changes of the training images",
    "normalise": "how pixel values are scaled for the trunk",
    "work": "how much a client trains in a round",
    "client": "the optimiser of the clients",
    "transfer": "how a trunk that starts from `weights` is trained on",
    "schedule": "the clients' learning rate over the rounds",
    "sampling": "which clients take part in a round",
    "fleet": "which device each client is, for modelled time, energy and memory",
    "widths": "whether some clients train a narrower model",
    "algorithm": "the federated algorithm: what clients do besides their optimiser's steps, and how the server moves the model",
    "server": "how the clients' updates become one, and what the server does after that",
    "distil": "how a smaller model learns from a trained one; acts only where distil.teacher is given",
    "prune": "whether weights or channels of the model are removed",
    "scenes": "pictures with faces and their boxes; for mode=detection and data=scene_faces",
    "scene_augmentation": "random changes of the training scenes; for mode=detection",
    "detector": "the head that finds faces; for mode=detection",
    "detection": "settings of finding faces; for mode=detection",
}

KEYS = {
    "mode": "federated, local (each client alone), centralised (all images in one place), single_task (a model for each subtask) or "
    "detection (centralised, and faces are found in scenes)",
    "partition_by": "what `partition` splits the images by: class, owner (the device that made an image, if known) or an attribute",
    "norm": "what replaces a trunk's BatchNorm: group (GroupNorm), frozen (fixed statistics), local (those of the batch); refuse: an error",
    "known_labels": "hides training labels at random",
    "weights": "what the trunk starts from: a run directory, a weights file, or a name of torchvision's such as DEFAULT; null: random",
    "keep": "what stays on a client and is never sent: nothing, heads, norms (of the trunk) or all",
    "fusion": "how the subtasks' scores become one decision: argmax, or platt (each client calibrates its scores first)",
    "reduction": "how losses are combined: mean, sum, or known (mean over the known labels of each subtask)",
    "mirror": "score each image by the mean over itself and its mirror image; false where left and right matter",
    "rounds": "number of rounds",
    "evaluate_every": "rounds from one evaluation to the next",
    "checkpoint_every": "rounds from one checkpoint to the next",
    "best_by": "validation metric that chooses the round to test, such as auroc; null: rank1, auroc, or named or ap50 for mode=detection",
    "objective": "validation metric that a search maximises, of the chosen round, such as val/auroc; null: the one that chooses the round",
    "target_accuracy": "value of the validation metric that chooses the round; the summary says when it was first reached, in rounds, "
    "modelled seconds and joules",
    "seed": "seed of every random draw",
    "start": "run directory whose whole model training starts from; null: a new model",
    "name": "name of the run in W&B and in reports; null: the name of its directory",
    "output_dir": "the run directory; of a sweep, the folder of its run directories",
    "resume": "continue the run in output_dir from its last checkpoint",
    "balance": "how every balancer is applied",
    "engine": "how clients are simulated",
    "trainer": "processes, accelerator and precision",
    "profile": "measure where the time of a few rounds goes; writes profile/table.txt and a trace",
    "write_report": "write report.html and figures/ at the end: auto (of a run, or of a whole sweep), true (of each job), false",
    "tracking": "what is logged, and to W&B",
}

PRESETS = {
    "augmentation": {
        "none": "No change.",
        "flip": "Mirror left and right with probability one half.",
        "faces": "Mirror, and small rotations, scalings, shifts and changes of brightness: for aligned faces.",
    },
    "scene_augmentation": {
        "none": "No change.",
        "boxes": "Mirror, scale, shift and change the brightness of a scene together with its boxes.",
    },
    "normalise": {
        "fixed": "Subtract `mean` and divide by `deviation`, the same numbers for all images.",
        "per_image": "Use each image's own mean and deviation.",
        "equalised": "Equalise each image's histogram first, for light that differs from picture to picture.",
        "imagenet": "Use the numbers that torchvision's published weights were trained with.",
    },
    "work": {
        "steps": "A number of optimiser steps in a round.",
        "epochs": "A number of passes over the client's images in a round.",
    },
    "transfer": {
        "none": "Train the whole trunk.",
        "parameters": "Train all stages, those nearer to the input at lower learning rates (discriminative rates, Howard & Ruder 2018).",
        "features": "Freeze the trunk, or all but its last `trained` stages.",
        "relations": "Keep the distances and angles between images that the source trunk has (RKD, Park et al. 2019).",
        "instances": "Also train on the images of the run `source`, those most similar to the client's own more often.",
    },
    "schedule": {
        "constant": "The same learning rate in every round.",
        "cosine": "Fall to zero along a cosine.",
        "linear": "Fall to zero along a line.",
    },
    "sampling": {
        "all": "All clients take part in every round.",
        "cohort": "Some clients, drawn at random, take part in a round.",
    },
    "fleet": {
        "none": "No devices are modelled.",
        "mix": "Devices of the kinds in `mix`; mtl/devices/devices.yaml names the kinds.",
        "boards": "Raspberry Pi 4, Raspberry Pi 5 and Jetson Nano, as 4 : 3 : 3.",
        "phones": "Low-end, mid-range and high-end phones, as 3 : 5 : 2.",
    },
    "widths": {
        "whole": "All clients train the whole model.",
        "levels": "Clients train the whole, half or a quarter of the channels of every hidden layer (HeteroFL, Diao et al. 2021).",
    },
    "algorithm": {
        "fedavg": "FedAvg (McMahan et al. 2017): the model moves by the mean of the clients' updates.",
        "fedavgm": "FedAvgM (Hsu et al. 2019): FedAvg with momentum at the server.",
    },
    "server": {
        "mean": "The weighted mean of the clients' updates.",
        "conflict_averse": "Clients' updates are combined by a balancer, CAGrad unless another is chosen.",
    },
    "distil": {
        "soft": "Match the teacher's scores, each subtask by itself (Hinton et al. 2015).",
        "identity": "Match the teacher's scores as one distribution over people who exclude one another.",
        "feature": "Match the teacher's embeddings (FitNets, Romero et al. 2015).",
        "attention": "Match the teacher's attention maps (Zagoruyko & Komodakis 2017).",
        "relations": "Match the distances and angles between images in the teacher's embedding (RKD, Park et al. 2019).",
    },
    "prune": {
        "nothing": "Remove nothing.",
        "weights": "Set the smallest weights to zero, gradually during training.",
        "channels": "Cut out whole channels of the run in `start`, once, and train on; needs the extra `edge`.",
    },
}
