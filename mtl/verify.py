"""`mtl verify`: face verification with the trunk of a run, beside an untrained trunk and the pixels themselves."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from rich.table import Table
from torch import Tensor

from mtl.build import build_objective
from mtl.data import faces
from mtl.data.pairs import Pairs, lfw_pairs, unseen_pairs
from mtl.files import write_arrays, write_json
from mtl.models.hard_sharing import HardSharing
from mtl.report.style import figure_style, save_figure
from mtl.report.verification import draw_verification
from mtl.trained import load_run, untrained
from mtl.verification import FARS, Verification, pair_scores, verify

PAIRS = ("lfw", "celeba")
BATCH = 500


@dataclass(frozen=True)
class VerifiedRun:
    """results: of the trained trunk joined with those of other runs, where there are any, of the trained trunk, of one as drawn by the
    run's seed, and of the pixels; file, picture: what was written.
    """

    pairs: Pairs
    results: dict[str, Verification]
    file: Path
    picture: Path


def verify_run(
    run_dir: Path,
    pairs: str = "lfw",
    root: str = "data",
    *,
    crop: Sequence[int] | None = None,
    flip: bool = True,
    beside: Sequence[Path] = (),
) -> VerifiedRun:
    """Verify, and write `verification-<pairs>.json`, the scores and curves beside it as `.npz`, and `figures/verification-<pairs>.png`.

    pairs: lfw, ten folds of 600 pairs as its authors drew them; or celeba, ten folds of at most 600 drawn from the people of the test
    part of its official partition. crop: (top, left, height, width), cut from every picture before it is brought to the size that the
    run was trained on. flip: the embedding is the mean over a picture and its mirror image. beside: runs whose embeddings, each brought to
    length 1, are set beside the run's own, so that a pair scores the mean of their cosines. Raises ValueError where the pictures are
    not there, and where a run may have been trained on the people of the pairs.
    """
    if pairs not in PAIRS:
        raise ValueError(f"--pairs must be one of {', '.join(PAIRS)}, got {pairs}")
    first, *others = [_Embedder(path, pairs, root, crop, flip) for path in (run_dir, *beside)]
    run, at_hand = first.run, first.at_hand
    start = untrained(run.config, run.image_shape, run.tasks, run.num_exclusive)
    scores = {
        "trained": first.scores(run.model),
        "untrained": first.scores(start),
        "pixels": pair_scores(
            torch.cat([first.objective.inputs(part).flatten(1) for part in at_hand.images.split(BATCH)]),
            at_hand.first,
            at_hand.second,
        ),
    }
    if others:
        joined = torch.stack([scores["trained"], *(other.scores(other.run.model) for other in others)]).mean(0)
        scores = {"joined": joined} | scores
    results = {name: verify(values, at_hand.same, at_hand.fold) for name, values in scores.items()}
    stem = f"verification-{pairs}"
    arrays = {"same": at_hand.same, "fold": at_hand.fold} | {f"{name}_scores": values for name, values in scores.items()}
    for name, result in results.items():
        arrays |= {f"{name}_far": result.roc.far, f"{name}_frr": result.roc.frr}
    write_arrays(run_dir / f"{stem}.npz", **{name: value.numpy() for name, value in arrays.items()})
    told = {
        "pairs": pairs,
        "source": at_hand.source,
        "num_pairs": len(at_hand),
        "num_folds": len(at_hand.fold.unique()),
        "crop": None if crop is None else list(crop),
        "flip": flip,
        "beside": [str(path) for path in beside],
        "checkpoint": run.checkpoint.name,
        "round": run.round,
        "results": {name: _plain(result) for name, result in results.items()},
    }
    write_json(run_dir / f"{stem}.json", told)
    picture = run_dir / "figures" / f"{stem}.png"
    picture.parent.mkdir(exist_ok=True)
    with figure_style():
        curves = {name: (result.roc.far.numpy(), result.roc.frr.numpy()) for name, result in results.items()}
        save_figure(draw_verification(curves), picture)
    return VerifiedRun(at_hand, results, run_dir / f"{stem}.json", picture)


def verification_table(verified: VerifiedRun) -> Table:
    """For the terminal."""
    folds = len(verified.pairs.fold.unique())
    table = Table(
        title=f"{len(verified.pairs)} pairs in {folds} folds; ± is the standard error of the mean over the folds",
        title_style="dim",
    )
    table.add_column("Score", min_width=9)
    fars = [far for far in FARS if far in verified.results["trained"].tar]
    for title in ("Accuracy %", "EER %", "AUC", *(f"TAR % at FAR {far:g}" for far in fars)):
        table.add_column(title, justify="right")
    for name, result in verified.results.items():
        values = result.summary()
        table.add_row(
            name,
            f"{100 * values['accuracy']:.2f} ± {100 * values['accuracy_standard_error']:.2f}",
            f"{100 * values['eer']:.2f}",
            f"{values['auc']:.4f}",
            *(f"{100 * values[f'tar@far={far:g}']:.1f}" for far in fars),
        )
    return table


class _Embedder:
    """A run, and the pictures of the pairs as its trunk takes them."""

    def __init__(self, run_dir: Path, pairs: str, root: str, crop: Sequence[int] | None, flip: bool) -> None:
        self.run = load_run(run_dir)
        _check_unseen(self.run.config, pairs)
        channels, *image_size = self.run.image_shape
        self.at_hand = _read(pairs, root, image_size, crop, grey=channels == 1)
        if self.at_hand.images.shape[1] != channels:
            raise ValueError(f"the run must be trained on pictures of 1 or 3 channels, got {channels} in {run_dir}")
        self.objective = replace(build_objective(self.run.config), mirror=flip)

    def scores(self, model: HardSharing) -> Tensor:
        """The cosine of each pair."""
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        embeddings = self.objective.embed(model.to(device), self.at_hand.images)
        return pair_scores(embeddings, self.at_hand.first, self.at_hand.second)


def _read(pairs: str, root: str, image_size: Sequence[int], crop: Sequence[int] | None, *, grey: bool) -> Pairs:
    if pairs == "lfw":
        return lfw_pairs(root, image_size=image_size, crop=crop, grey=grey)
    height, width = image_size
    cut = None if crop is None else (crop[0], crop[1], crop[2], crop[3])
    return unseen_pairs(faces.celeba(root, image_size=(height, width), crop=cut, grey=grey, part="test"))


def _check_unseen(config: DictConfig, pairs: str) -> None:
    """Who was trained on is not who is verified on."""
    loader = str(config.data.get("_target_", "")).rpartition(".")[2]
    if loader != pairs:
        return
    if pairs == "lfw":
        raise ValueError("verification is of people never seen, and this run was trained on data=lfw; train on other data")
    if config.data.get("part") not in ("train", "val"):
        raise ValueError(
            f"verification is of people never seen, and this run was trained on data.part={config.data.get('part')}; use data.part=train"
        )


def _plain(result: Verification) -> dict[str, Any]:
    folds = [
        {"accuracy": accuracy, "threshold": threshold}
        for accuracy, threshold in zip(result.accuracy.tolist(), result.threshold.tolist(), strict=True)
    ]
    return {**result.summary(), "folds": folds}
