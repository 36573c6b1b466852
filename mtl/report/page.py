"""Write the report of one run, or the comparison of several, as one HTML page that needs nothing but itself.

Everything that comes from a file is escaped; the pictures are embedded, and lie beside the page as PNGs for a paper.
"""

import base64
import json
import os
import re
import struct
from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template

from mtl.report import curves, maps, multitask, style, tradeoff
from mtl.report.groups import Group, flatten, group_runs
from mtl.report.runs import Run, read_run
from mtl.report.tables import UNKNOWN, columns_of, comparison_rows, scaled_unit

MAX_DETAILED_GROUPS = 6

COSTS_CAPTION = (
    "The judged rate against what it had cost until then. Bytes are counted; seconds and joules are modelled from device profiles, "
    "not measured."
)

TRADEOFF = (
    "Each group at its end, means over the seeds; filled where no other is both cheaper and better. The worst clients are the tenth of "
    "them whose subtasks are served worst. Seconds and joules are modelled from device profiles, not measured."
)

# File name, title, drawing, caption, and what the caption adds where there are several seeds.
_SECTIONS = (
    (
        "learning",
        "Learning",
        curves.draw_learning,
        "Every task's loss is the sum of a positive and a negative part.",
        "Lines are means over the seeds at the rounds they all have, bands their range.",
    ),
    (
        "costs",
        "What it costs",
        lambda group: curves.draw_costs([group]),
        COSTS_CAPTION,
        "Lines are means over the seeds, bands their range.",
    ),
    (
        "tasks",
        "Tasks",
        maps.draw_tasks,
        "Each panel has its own order, the worst task first and in vermilion.",
        "Bars are means over the seeds, whiskers their range.",
    ),
    (
        "holdings",
        "Who holds and who trains what",
        maps.draw_holdings,
        "Positive training labels that each client holds, white where none; outlined where the client trains the task. "
        "Tasks are ordered by the first client that trains them.",
        "Shown for the first run.",
    ),
    (
        "confusion",
        "Who is taken for whom",
        maps.draw_confusion,
        "How the test images of each identity are spread over the answers. Images of nobody known are left out.",
        "Pooled over the seeds.",
    ),
    (
        "conflict",
        "Tasks against one another",
        multitask.draw_conflict,
        "How far the tasks' gradients point the same way: red pairs pull against each other. Tasks in most conflict come first.",
        "The map is that of the first run.",
    ),
    (
        "separation",
        "Separation of scores",
        maps.draw_separation,
        "How far the scores of a task's positives lie from those of its negatives; the least separated task comes first.",
        "Pooled over the seeds.",
    ),
)

_PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
:root { color-scheme: light dark;
  --text: #1c1e21; --soft: #5c636b; --line: #dfe3e8; --back: #fff; --card: #f6f7f9; --mark: #b34700; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e4e6e9; --soft: #a2a9b1; --line: #383d43; --back: #16181b; --card: #1f2226; --mark: #ff9d57; }
  figure img { padding: .5rem; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 68rem; background: var(--back); color: var(--text);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.75rem; line-height: 1.25; margin: 0 0 .5rem; }
h2 { font-size: 1.25rem; margin: 2.75rem 0 .5rem; padding-top: 1rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 2rem 0 .25rem; }
h1, h2, pre, .notes { overflow-wrap: anywhere; }
p, figcaption { max-width: 46rem; margin: .5rem 0; }
figure { margin: 1rem 0 1.5rem; }
figure img { display: block; max-width: 100%; height: auto; background: #fff; border-radius: 4px; }
figcaption, .soft { color: var(--soft); font-size: .875rem; }
.wide { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .9rem .35rem 0; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { font-weight: 600; vertical-align: bottom; white-space: normal; max-width: 8rem; }
th:first-child, td:first-child, table.text td, table.text th { text-align: left; }
td:first-child { min-width: 8rem; }
td:first-child, table.text td { white-space: normal; overflow-wrap: break-word; vertical-align: top; }
.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(11.5rem, 1fr)); gap: .6rem; margin: 1.25rem 0; }
.facts div, .notes, pre { background: var(--card); border-radius: 6px; padding: .6rem .9rem; }
.facts dt { color: var(--soft); font-size: .8rem; }
.facts dd { margin: 0; font-size: 1.3rem; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.notes { border-left: 3px solid var(--mark); margin: 1.25rem 0; font-size: .875rem; }
.notes ul { margin: .25rem 0; padding-left: 1.1rem; }
pre { font-size: .8rem; line-height: 1.45; white-space: pre-wrap; }
@media (max-width: 45rem) { figure { overflow-x: auto; } figure img { max-width: 45rem; } }
details { margin: .75rem 0; }
summary { cursor: pointer; }
@media print {
  body { max-width: none; padding: 0; font-size: 11pt; }
  figure, tr { break-inside: avoid; }
  h2, h3 { break-after: avoid; } }
</style>
</head>
<body>
<main>
$body
</main>
</body>
</html>
""")


def write_report(runs: Sequence[Path], output: Path | None = None) -> Path:
    """Write `report.html` and `figures/*.png` from run directories, and return the path of the page.

    They go into `output`; by default into the directory of the only run, or the common parent of several.
    Raises ValueError where `runs` is empty or one of them holds no `config.yaml`.
    """
    if not runs:
        raise ValueError("runs must name at least one run directory, got none")
    paths = list(dict.fromkeys(Path(path).resolve() for path in runs))
    groups = group_runs([read_run(path) for path in paths])
    if output is None:
        output = paths[0] if len(paths) == 1 else Path(os.path.commonpath([path.parent for path in paths]))
    folder = output / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    with style.figure_style():
        title, body = _write_run(groups[0], folder) if len(paths) == 1 else _write_comparison(groups, folder)
    page = output / "report.html"
    page.write_text(_PAGE.substitute(title=escape(title), body=body), encoding="utf-8")
    return page


def _write_run(group: Group, folder: Path) -> tuple[str, str]:
    run = group.runs[0]
    parts = [
        f"<h1>{escape(run.label)}</h1>",
        f"<p>{_describe([group])}</p>",
        _write_notes([group]),
        _write_facts(group),
        _write_sections(group, folder, "", "h2"),
        "<h2>Details</h2>",
        _write_details(run),
    ]
    return f"{run.label}: report", "\n".join(parts)


def _write_comparison(groups: Sequence[Group], folder: Path) -> tuple[str, str]:
    num_runs = sum(len(group.runs) for group in groups)
    title = f"{num_runs} runs in {len(groups)} group{'s'[: len(groups) != 1]}"
    dots = "One dot per run; the upright mark is the mean, the line reaches one sample standard deviation to either side."
    lines = "Lines are means over the seeds at the rounds they all have, bands their range. Monitored metrics are never used to choose."
    profiles = "The AUROC of every task, sorted in each group from worst to best. A flat line serves all tasks alike."
    parts = [
        f"<h1>{title}</h1>",
        f"<p>{_describe(groups)} Runs that differ only in their seed, name or place form one group.</p>",
        _write_notes(groups),
        "<h2>Side by side</h2>",
        _write_comparison_table(groups),
        _write_figure(folder / "comparison.png", curves.draw_comparison(groups), "Metrics and cost of each group", dots),
        f"<details><summary>Mean, standard deviation and range of each metric</summary>{_write_spreads(groups)}</details>",
        _write_settings(groups),
    ]
    if len(groups) > 1:
        parts += [
            "<h2>Learning</h2>",
            _write_figure(folder / "learning.png", curves.draw_learning_by_group(groups), "Learning curves by group", lines),
            "<h2>What it costs</h2>",
            _write_figure(folder / "costs.png", curves.draw_costs(groups), "Judged rate against cost by group", COSTS_CAPTION),
            "<h2>What accuracy costs</h2>",
            _write_figure(
                folder / "tradeoff.png", tradeoff.draw_tradeoff(tradeoff.models_of(groups)), "Accuracy against cost", TRADEOFF
            ),
            "<h2>How evenly the tasks are served</h2>",
            _write_figure(folder / "profiles.png", curves.draw_profiles(groups), "Sorted AUROC of the tasks by group", profiles),
        ]
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


def _write_sections(group: Group, folder: Path, prefix: str, heading: str) -> str:
    """The figures of one group; one that its files cannot give is said to be missing."""
    parts = []
    for name, title, draw, caption, over_seeds in _SECTIONS:
        if name == "confusion" and not _has_identities(group):
            continue
        text = f"{caption} {over_seeds}" if len(group.runs) > 1 else caption
        figure = _write_figure(folder / f"{prefix}{name}.png", draw(group), f"{title}, {group.name}", text)
        parts += [f"<{heading}>{title}</{heading}>", figure]
        if name == "tasks":
            parts.append(_write_undefined(group))
    return "\n".join(parts)


def _has_identities(group: Group) -> bool:
    return any(run.predictions is not None and (run.predictions.identity >= 0).any() for run in group.runs)


def _write_undefined(group: Group) -> str:
    tasks = [task for task, spread in group.task_spreads("auroc").items() if spread is None]
    if not tasks:
        return ""
    listed = ", ".join(tasks[:20]) + (f" and {len(tasks) - 20:,} more" if len(tasks) > 20 else "")
    return f"<p class=soft>No AUROC, for want of test positives or negatives: {escape(listed)}.</p>"


def _write_figure(path: Path, figure: style.Drawing, alt: str, caption: str) -> str:
    if figure is None:
        path.unlink(missing_ok=True)  # an older report's figure must not pass for this one's
        return "<p class=soft>Not shown: the run directories hold no data for this figure.</p>"
    style.save_figure(figure, path)
    data = path.read_bytes()
    width, height = (size * 96 // style.DPI for size in struct.unpack(">II", data[16:24]))  # of the PNG's header
    source = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    image = f'<img src="{source}" width="{width}" height="{height}" alt="{escape(alt)}">'
    return f"<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>"


def _describe(groups: Sequence[Group]) -> str:
    runs = [run for group in groups for run in group.runs]
    modes = list(dict.fromkeys(str(run.config["mode"]) for run in runs if "mode" in run.config))
    data = list(dict.fromkeys(target.rsplit(".", 1)[-1] for run in runs if (target := flatten(run.config).get("data._target_"))))
    shapes = {(*run.federation.positives.shape, int(run.federation.images.sum())) for run in runs if run.federation is not None}
    size = ""
    if len(shapes) == 1:
        ((num_clients, num_tasks, num_images),) = shapes
        clients = f"{num_clients:,} client{'s'[: num_clients != 1]}"
        size = f" Data: {num_tasks:,} task{'s'[: num_tasks != 1]} and {num_images:,} training images on {clients}."
    trained = f" ({', '.join(modes)} training)" if modes else ""
    source = f" on {', '.join(data)}" if data else ""
    text = (
        f"One shared trunk with one head per subtask was trained{source}{trained}, by the summed positive and negative "
        f"loss of every subtask.{size} This page is made from the run director{'y' if len(runs) == 1 else 'ies'} alone."
    )
    return escape(text)


def _write_notes(groups: Sequence[Group]) -> str:
    notes = [note for group in groups for note in group.notes]
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
    return _write_table(["Group", "n", *(column.title for column in columns_of(groups))], rows) + f"<p class=soft>{note}</p>"


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
    return _write_table(["Metric", "Group", "Mean", "Standard deviation", "Minimum", "Maximum", "n"], rows)


def _write_settings(groups: Sequence[Group]) -> str:
    if len(groups) < 2:
        return ""
    rows = [[key, *(group.settings[key] for group in groups)] for key in groups[0].settings]
    table = _write_table(["Key", *(group.name for group in groups)], rows, kind="text")
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
            for label, key in (("Started", "started"), ("Machine", "machine"), ("Python", "python"))
        ),
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
        f"{_write_table([], rows, kind='text')}{reproduce}"
        f"<details><summary>Config ({len(flatten(run.config))} keys)</summary><pre>{escape(config)}</pre></details>"
    )


def _write_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, kind: str = "numbers") -> str:
    head = f"<thead><tr>{''.join(f'<th>{escape(cell)}</th>' for cell in header)}</tr></thead>" if header else ""
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="wide"><table class="{kind}">{head}<tbody>{body}</tbody></table></div>'


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40] or "group"
