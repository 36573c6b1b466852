"""Face verification with the trunk of a run, compared with an untrained trunk and with the pixels themselves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from rich.table import Table
from torch import Tensor

from mtl.base.files import write_arrays, write_json
from mtl.data import faces
from mtl.data.pairs import Pairs, lfw_pairs, unseen_pairs
from mtl.metrics.verification import FARS, Verification, pair_scores, verify
from mtl.models.multi_task_model import MultiTaskModel
from mtl.report.style import GREY, figure_style, save_figure
from mtl.report.verification import draw_verification
from mtl.run.build import build_objective
from mtl.run.lineage import check_unseen
from mtl.run.load import load_run, untrained

PAIRS = ("lfw", "celeba")
BATCH = 500


@dataclass(frozen=True)
class VerifiedRun:
    """What `mtl verify` found and wrote.

    Attributes:
        pairs: the pairs of pictures.
        results: by score: "joined" with other runs where there are any, "trained", "untrained" as the run's seed draws the trunk, "pixels".
        file: the JSON.
        picture: the PNG.
        warnings: reasons to trust the numbers less.
    """

    pairs: Pairs
    results: dict[str, Verification]
    file: Path
    picture: Path
    warnings: tuple[str, ...]


def verify_run(
    run_dir: Path,
    pairs: str = "lfw",
    root: str = "data",
    *,
    crop: Sequence[int] | None = None,
    flip: bool = True,
    other_runs: Sequence[Path] = (),
    allow_unknown: bool = False,
) -> VerifiedRun:
    """Verify, and write `verification-<pairs>.json`, the scores and curves as `.npz`, and `figures/verification-<pairs>.png`.

    Args:
        run_dir: the run.
        pairs: lfw, ten folds of 600 pairs as its authors drew them; or celeba, ten folds of at most 600 drawn from the people of the test
            part of its official partition.
        root: folder that holds the pictures.
        crop: (top, left, height, width), cut from every picture before it is resized to the size that the run was trained on. None for the
            run's crop where it was trained on pictures of the same set; else whole pictures, with a warning where the run had a crop.
        flip: take the mean embedding of a picture and its mirror image.
        other_runs: further runs, whose cosine is averaged with the run's for each pair.
        allow_unknown: go on where it is not known whom a run was trained on.

    Raises:
        ValueError: the pictures are not there, or a run may have been trained on the people of the pairs, see `lineage`.
    """
    if pairs not in PAIRS:
        raise ValueError(f"--pairs must be one of {', '.join(PAIRS)}, got {pairs}")
    first, *others = [_Embedder(path, pairs, root, crop, flip, allow_unknown) for path in (run_dir, *other_runs)]
    scores = _scores(first, others)
    results = {name: verify(values, first.pairs.same, first.pairs.fold) for name, values in scores.items()}
    warnings = tuple(warning for embedder in (first, *others) for warning in embedder.warnings)
    stem = f"verification-{pairs}"
    _write_arrays(run_dir / f"{stem}.npz", first.pairs, scores, results)
    summary = {
        "pairs": pairs,
        **_pairs_facts(first.pairs),
        "crop": first.crop,
        "flip": flip,
        "beside": [{"run": str(path), "crop": other.crop} for path, other in zip(other_runs, others, strict=True)],
        "warnings": list(warnings),
        "checkpoint": first.run.checkpoint.name,
        "round": first.run.round,
        "results": {name: _plain(result, first.pairs) for name, result in results.items()},
    }
    write_json(run_dir / f"{stem}.json", summary)
    picture = run_dir / "figures" / f"{stem}.png"
    _draw(picture, first.pairs, results)
    return VerifiedRun(first.pairs, results, run_dir / f"{stem}.json", picture, warnings)


def verification_table(verified: VerifiedRun) -> Table:
    """Make the table of the results for the terminal."""
    table = Table(
        title=f"{_counted(verified.pairs)}; ± is the standard error of the mean over the folds",
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

    def __init__(self, run_dir: Path, pairs: str, root: str, crop: Sequence[int] | None, flip: bool, allow_unknown: bool) -> None:
        self.run = load_run(run_dir)
        self.crop, warnings = choose_crop(self.run.config.data, pairs, crop)
        channels, *image_size = self.run.image_shape
        self.pairs = _read(pairs, root, image_size, self.crop, grey=channels == 1)
        if self.pairs.images.shape[1] != channels:
            raise ValueError(f"the run must be trained on pictures of 1 or 3 channels, got {channels} in {run_dir}")
        warnings += check_unseen(run_dir, pairs, self.pairs.source, allow_unknown=allow_unknown).unknown
        self.warnings = tuple(f"{run_dir}: {warning}" for warning in warnings)
        self.objective = replace(build_objective(self.run.config), mirror=flip)

    def scores(self, model: MultiTaskModel) -> Tensor:
        """The cosine of each pair."""
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        embeddings = self.objective.embed(model.to(device), self.pairs.images)
        return pair_scores(embeddings, self.pairs.first, self.pairs.second)


def _scores(first: "_Embedder", others: Sequence["_Embedder"]) -> dict[str, Tensor]:
    """Scores [P] of the pairs by name, those of all runs joined first, where there are several."""
    pairs = first.pairs
    scores = {
        "trained": first.scores(first.run.model),
        "untrained": first.scores(untrained(first.run.config, first.run.image_shape, first.run.tasks, first.run.num_exclusive)),
        "pixels": pair_scores(
            torch.cat([first.objective.inputs(part).flatten(1) for part in pairs.images.split(BATCH)]),
            pairs.first,
            pairs.second,
        ),
    }
    if not others:
        return scores
    joined = torch.stack([scores["trained"], *(other.scores(other.run.model) for other in others)]).mean(0)
    return {"joined": joined} | scores


def _write_arrays(path: Path, pairs: Pairs, scores: Mapping[str, Tensor], results: Mapping[str, Verification]) -> None:
    arrays = {"same": pairs.same, "fold": pairs.fold} | {f"{name}_scores": values for name, values in scores.items()}
    for name, result in results.items():
        arrays |= {f"{name}_far": result.roc.far, f"{name}_frr": result.roc.frr}
    write_arrays(path, **{name: value.numpy() for name, value in arrays.items()})


def _draw(picture: Path, pairs: Pairs, results: Mapping[str, Verification]) -> None:
    picture.parent.mkdir(exist_ok=True)
    with figure_style():
        figure = draw_verification({name: (result.roc.far.numpy(), result.roc.frr.numpy()) for name, result in results.items()})
        figure.supxlabel(_counted(pairs), size=7, color=GREY)
        save_figure(figure, picture)


def _pairs_facts(pairs: Pairs) -> dict[str, Any]:
    return {
        "source": pairs.source,
        "num_pairs": len(pairs),
        "num_same": int(pairs.same.sum()),
        "num_different": int((~pairs.same).sum()),
        "num_folds": len(pairs.fold.unique()),
    }


def _read(pairs: str, root: str, image_size: Sequence[int], crop: Sequence[int] | None, *, grey: bool) -> Pairs:
    if pairs == "lfw":
        return lfw_pairs(root, image_size=image_size, crop=crop, grey=grey)
    height, width = image_size
    cut = None if crop is None else (crop[0], crop[1], crop[2], crop[3])
    return unseen_pairs(faces.celeba(root, image_size=(height, width), crop=cut, grey=grey, part="test"))


def choose_crop(data: DictConfig, pairs: str, crop: Sequence[int] | None) -> tuple[list[int] | None, tuple[str, ...]]:
    """Choose what to cut from the pictures of the pairs.

    Args:
        data: configuration of the data that the run was trained on.
        pairs: lfw or celeba.
        crop: what the user wants, None for a default.

    Returns:
        (top, left, height, width), None for whole pictures; and warnings.
    """
    sides = OmegaConf.select(data, "crop")
    run_crop = None if sides is None else [int(side) for side in sides]
    loader = str(data.get("_target_", "")).rpartition(".")[2]
    requested = None if crop is None else list(crop)
    if loader == pairs:
        if requested is None or requested == run_crop:
            return run_crop, ()
        cut = "from whole pictures" if run_crop is None else f"with data.crop={run_crop}"
        return requested, (f"the run was trained {cut} of {pairs}, and --crop {_spaced(requested)} shows it others",)
    if requested is not None or run_crop is None:
        return requested, ()
    return None, (
        f"the run was trained with data.crop={run_crop} of {loader}, and the pictures of {pairs} are taken whole: the face must fill both "
        "alike, say --crop TOP LEFT HEIGHT WIDTH",
    )


def _spaced(crop: Sequence[int]) -> str:
    return " ".join(map(str, crop))


def _counted(pairs: Pairs) -> str:
    same = int(pairs.same.sum())
    return f"n = {same:,} pairs of one person and {len(pairs) - same:,} of two, in {len(pairs.fold.unique())} folds"


def _plain(result: Verification, pairs: Pairs) -> dict[str, Any]:
    """Numbers of one score, each with the number of pairs that it is of: a fold's accuracy of its pairs, its threshold of all others."""
    folds = []
    for place, number in enumerate(pairs.fold.unique().tolist()):
        here = pairs.fold == number
        folds.append(
            {
                "accuracy": float(result.accuracy[place]),
                "num_same": int(pairs.same[here].sum()),
                "num_different": int((~pairs.same[here]).sum()),
                "threshold": float(result.threshold[place]),
                "num_threshold_pairs": int((~here).sum()),
            }
        )
    return {**result.summary(), "folds": folds}
