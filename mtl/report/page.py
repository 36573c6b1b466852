"""Write the report of one run, or the comparison of several, as one HTML page without other files.

Everything that comes from a file is escaped. The pictures are embedded in the page, and written as PNGs for a paper.
"""

import json
import os
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path

from mtl.report import curves, style, tradeoff, verification
from mtl.report.choice import Choice, choose
from mtl.report.description import describe
from mtl.report.groups import Group, flatten, mixed_code, read_groups
from mtl.report.html import write_figure, write_page, write_table
from mtl.report.runs import Run
from mtl.report.sections import COSTS_CAPTION, SECTIONS
from mtl.report.tables import UNKNOWN, columns_of, comparison_rows, scaled_unit
from mtl.report.target import ROUND

MAX_DETAILED_GROUPS = 6

TRADEOFF = (
    "Each group at its end, means over the seeds; filled where no other is both cheaper and better. The worst clients are the tenth of "
    "them whose subtasks are served worst. Seconds and joules are modelled from device profiles, not measured."
)


def write_report(runs: Sequence[Path], output: Path | None = None, *, by: str | None = None) -> Path:
    """Write `report.html` and `figures/*.png` from run directories, and return the path of the page.

    Args:
        runs: run directories.
        output: folder of the report; None for the directory of the only run, or the common parent of several.
        by: validation metric that orders the groups and marks the best, such as `val/rank1`; None for no choice.

    Raises:
        ValueError: `runs` is empty, or none of them can be read; of several, the page says which could not. Or none has the metric `by`.
    """
    groups, left_out = read_groups(runs)
    choice = None if by is None else choose(groups, by)
    if choice is not None:
        groups, left_out = choice.order(groups), [*left_out, *choice.left_out]
    # Where the runs were named, which is not where links to them lead.
    places = [Path(os.path.abspath(path)) for path in runs]  # noqa: PTH100  (resolve() follows links)
    alone = len({place.resolve() for place in places}) == 1
    if output is None:
        output = places[0] if alone else Path(os.path.commonpath([place.parent for place in places]))
    folder = output / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    with style.figure_style():
        if alone:
            title, body = _write_run(groups[0], folder, choice)
        else:
            title, body = _write_comparison(groups, left_out, folder, choice)
    page = output / "report.html"
    write_page(page, title, body)
    return page


def _write_run(group: Group, folder: Path, choice: Choice | None) -> tuple[str, str]:
    run = group.runs[0]
    parts = [
        f"<h1>{escape(run.label)}</h1>",
        f"<p>{describe([group])}</p>",
        _write_notes([group]),
        _write_choice(choice),
        _write_facts(group),
        _write_sections(group, folder, "", "h2"),
        "<h2>Details</h2>",
        _write_details(run),
    ]
    return f"{run.label}: report", "\n".join(parts)


def _write_comparison(groups: Sequence[Group], left_out: Sequence[str], folder: Path, choice: Choice | None) -> tuple[str, str]:
    num_runs = sum(len(group.runs) for group in groups)
    title = f"{num_runs} runs in {len(groups)} group{'s'[: len(groups) != 1]}"
    dots = "One dot per run; the upright mark is the mean, the line reaches one sample standard deviation to either side."
    lines = "Lines are means over the seeds at the rounds they all have, bands their range. Monitored metrics are never used to choose."
    profiles = "The AUROC of every task, sorted in each group from worst to best. A flat line serves all tasks alike."
    parts = [
        f"<h1>{title}</h1>",
        f"<p>{describe(groups)} Runs that differ only in their seed, name or place form one group.</p>",
        _write_notes(groups, left_out),
        _write_choice(choice),
        "<h2>Side by side</h2>",
        _write_comparison_table(groups),
        write_figure(folder / "comparison.png", curves.draw_comparison(groups), "Metrics and cost of each group", dots),
        f"<details><summary>Mean, standard deviation and range of each metric</summary>{_write_spreads(groups)}</details>",
        _write_settings(groups),
    ]
    if len(groups) > 1:
        parts += [
            "<h2>Learning</h2>",
            write_figure(folder / "learning.png", curves.draw_learning_by_group(groups), "Learning curves by group", lines),
            "<h2>What it costs</h2>",
            write_figure(folder / "costs.png", curves.draw_costs(groups), "Judged rate against cost by group", COSTS_CAPTION),
            "<h2>What accuracy costs</h2>",
            write_figure(
                folder / "tradeoff.png",
                tradeoff.draw_tradeoff(tradeoff.models_of(groups)),
                "Accuracy against cost",
                TRADEOFF,
                missing="no two groups are known to differ in a cost and in a rate",
            ),
            "<h2>How evenly the tasks are served</h2>",
            write_figure(folder / "profiles.png", curves.draw_profiles(groups), "Sorted AUROC of the tasks by group", profiles),
        ]
    if len(groups) > style.MAX_GROUPS:
        parts.append(
            f"<p class=soft>These figures show the first {style.MAX_GROUPS} of {len(groups):,} groups, the tables all.</p>"
        )
    for index, group in enumerate(groups[:MAX_DETAILED_GROUPS], start=1):
        parts += [f"<h2>{escape(group.name)}</h2>", _write_sections(group, folder, f"{index}-{_slug(group.name)}-", "h3")]
    if len(groups) > MAX_DETAILED_GROUPS:
        rest = len(groups) - MAX_DETAILED_GROUPS
        parts.append(
            f"<p class=soft>The figures of {rest} more groups are left out; a report of one of their runs shows them.</p>"
        )
    parts.append("<h2>Details of each run</h2>")
    for group in groups:
        for run in group.runs:
            summary = f"{run.label} · {group.name} · seed {run.config.get('seed', UNKNOWN)}"
            parts.append(f"<details><summary>{escape(summary)}</summary>{_write_details(run)}</details>")
    return title, "\n".join(parts)


def _write_choice(choice: Choice | None) -> str:
    """The groups in the order of a validation metric, with their test numbers, and how the choice was made."""
    if choice is None:
        return ""
    table = write_table(choice.header, choice.rows)
    return f"<h2>Choice by {escape(choice.by)}</h2><p>{escape(choice.sentence)}</p>{table}"


def _write_sections(group: Group, folder: Path, prefix: str, heading: str) -> str:
    """The figures of one group; one that its files cannot give is said to be missing."""
    parts = []
    for section in SECTIONS:
        if not section.needed(group):
            continue
        text = f"{section.caption} {section.over_seeds}" if len(group.runs) > 1 else section.caption
        picture = folder / f"{prefix}{section.name}.png"
        figure = write_figure(picture, section.draw(group), f"{section.title}, {group.name}", text)
        parts += [f"<{heading}>{section.title}</{heading}>", figure]
        if section.name == "tasks":
            parts.append(_write_undefined(group))
    parts += _write_verification(group, folder, prefix, heading)
    return "\n".join(parts)


def _write_verification(group: Group, folder: Path, prefix: str, heading: str) -> list[str]:
    """What `mtl verify` has left in the runs: a table for each set of pairs, and the curves of the first run."""
    parts = []
    for pairs in dict.fromkeys(pairs for run in group.runs for pairs in run.verified):
        runs = [run for run in group.runs if pairs in run.verified]
        header, rows = verification.verification_rows([(run.config.get("seed"), run.verified[pairs]) for run in runs])
        verified = runs[0].verified[pairs]
        figure = verification.draw_verification(verified.curves) if verified.curves else None
        caption = "Joined, trained and untrained are the cosines of embeddings, pixels those of the pictures themselves."
        if len(group.runs) > 1:
            caption += " Shown for the first run that was verified."
        parts += [
            f"<{heading}>The same person or not: {escape(pairs)}</{heading}>",
            f"<p class=soft>{escape(verification.describe_pairs(verified.about))}</p>",
            write_table(header, rows),
            write_figure(folder / f"{prefix}verification-{_slug(pairs)}.png", figure, f"ROC and DET, {pairs}", caption),
        ]
    return parts


def _write_undefined(group: Group) -> str:
    tasks = [task for task, spread in group.task_spreads("auroc").items() if spread is None]
    if not tasks:
        return ""
    listed = ", ".join(tasks[:20]) + (f" and {len(tasks) - 20:,} more" if len(tasks) > 20 else "")
    return f"<p class=soft>No AUROC, for want of test positives or negatives: {escape(listed)}.</p>"


def _write_notes(groups: Sequence[Group], left_out: Sequence[str] = ()) -> str:
    """What is missing; and where the code was not the same: in some groups, or, said once, in all of them or between them."""
    by_group = [mixed_code(group.name, group.runs) for group in groups]
    mixed = [note for notes in by_group for note in notes]
    if len(groups) > 1 and (not mixed or all(by_group)):
        mixed = mixed_code("The groups", [run for group in groups for run in group.runs])
    notes = [*left_out, *mixed, *(note for group in groups for note in group.notes)]
    if not notes:
        return ""
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return f'<div class="notes"><strong>Missing or doubtful</strong> (what can be read is shown)<ul>{items}</ul></div>'


def _write_facts(group: Group) -> str:
    """The summary of one run: a tile per column of the table, then the worst task by name."""
    (row,) = comparison_rows([group])
    tiles = [(column.title, cell) for column, cell in zip(columns_of([group]), row.cells, strict=True)]
    for title, metric in (("Worst task by AUROC", "auroc"), ("Worst task by balanced accuracy", "balanced_accuracy")):
        tiles.append((title, next((task for task, spread in group.task_spreads(metric).items() if spread is not None), UNKNOWN)))
    for title, metric in (
        ("Rounds", "fit/rounds"),
        ("Best round", "fit/best_round"),
        ("Samples per second", "fit/samples_per_second"),
    ):
        spread = group.spread(metric)
        tiles.append((title, UNKNOWN if spread is None else f"{spread.mean:,.0f}"))
    if (target := group.runs[0].target) is not None:
        first = group.spread(ROUND)
        reached = "not reached" if first is None else f"reached in round {first.mean:,.0f}"
        tiles.append((f"Target: {100 * target:g} % on validation images", reached))
    for title, metric, unit in (
        ("Parameters", "cost/parameters", ""),
        ("FLOPs per image, forward", "cost/flops_forward", ""),
        ("FLOPs per image, training", "cost/flops_training", ""),
        ("Modelled memory of a training step", "cost/modelled_memory_bytes", "B"),
    ):
        spread = group.spread(metric)
        tiles.append((title, UNKNOWN if spread is None else scaled_unit(unit)(spread)))
    shown = "".join(f"<div><dt>{escape(title)}</dt><dd>{escape(value)}</dd></div>" for title, value in tiles)
    return f'<dl class="facts">{shown}</dl>'


def _write_comparison_table(groups: Sequence[Group]) -> str:
    rows = [[row.name, str(row.num_runs), *row.cells] for row in comparison_rows(groups)]
    note = "Mean ± sample standard deviation over the n runs of a group; – is unknown or undefined."
    return write_table(["Group", "n", *(column.title for column in columns_of(groups))], rows) + f"<p class=soft>{note}</p>"


def _write_spreads(groups: Sequence[Group]) -> str:
    metrics = dict.fromkeys(key for group in groups for run in group.runs for key in run.summary if key.count("/") == 1)
    rows = []
    for metric in metrics:
        for group in groups:
            spread = group.spread(metric)
            if spread is None:
                rows.append([metric, group.name, *[UNKNOWN] * 4, "0"])
            else:
                numbers = (spread.mean, spread.deviation, spread.minimum, spread.maximum)
                rows.append([metric, group.name, *(UNKNOWN if x is None else f"{x:,.5g}" for x in numbers), str(spread.count)])
    return write_table(["Metric", "Group", "Mean", "Standard deviation", "Minimum", "Maximum", "n"], rows)


def _write_settings(groups: Sequence[Group]) -> str:
    if len(groups) < 2:
        return ""
    rows = [[key, *(group.settings[key] for group in groups)] for key in groups[0].settings]
    table = write_table(["Key", *(group.name for group in groups)], rows, kind="text")
    return f"<details><summary>All config keys in which the groups differ ({len(rows)})</summary>{table}</details>"


def _write_details(run: Run) -> str:
    environment = run.environment
    commit = environment.get("commit")
    dirty = " with changes that were not committed" if environment.get("dirty") else ""
    versions = environment.get("versions")
    listed = (
        ", ".join(f"{name} {version}" for name, version in versions.items() if version) if isinstance(versions, dict) else UNKNOWN
    )
    rows = [
        ["Directory", str(run.path)],
        ["Commit", f"{commit}{dirty}" if commit else UNKNOWN],
        *(
            [label, str(environment.get(key) or UNKNOWN)]
            for label, key in (("Started", "started"), ("Machine", "machine"), ("Processor", "cpu"), ("Python", "python"))
        ),
        *([["GPUs", ", ".join(map(str, gpus))]] if isinstance(gpus := environment.get("gpus"), list) and gpus else []),
        ["Versions", listed],
    ]
    steps = [f"git checkout {commit}{f'   #{dirty}, which the commit lacks' if dirty else ''}"] if commit else []
    if environment.get("command"):
        steps.append(str(environment["command"]))
    reproduce = f"<h3>How to reproduce</h3><pre>{escape(chr(10).join(steps))}</pre>" if steps else ""
    config = "\n".join(
        f"{key}: {json.dumps(value, ensure_ascii=False, default=str)}" for key, value in flatten(run.config).items()
    )
    return (
        f"{write_table([], rows, kind='text facts-of-run')}{reproduce}"
        f"<details><summary>Config ({len(flatten(run.config))} keys)</summary><pre>{escape(config)}</pre></details>"
    )


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40] or "group"
