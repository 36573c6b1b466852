"""`mtl study --list`: the studies, with what each takes and how far it is."""

import json

from rich.table import Table
from rich.text import Text

from mtl.cli.terminal import console
from mtl.studies.files import study_files
from mtl.studies.jobs import DONE
from mtl.studies.study import Study


def show_studies(data: str) -> None:
    """Print a line for each study.

    Args:
        data: folder of the data.
    """
    table = Table("study", "runs done", "hours", "data", "what")
    for name, file in study_files().items():
        try:
            study = Study(str(file), data=data)
        except ValueError as error:
            table.add_row(name, "", "", "", Text(str(error), style="red"))
            continue
        total = len({(study.grid.words_of(row), seed) for row in study.grid.rows for seed in row.seeds})
        done, hours = _progress(study, total)
        needs = ", ".join(study.definition.data) + (" (missing)" if study.missing_data() else "")
        table.add_row(Text(name), f"{done} of {total}", hours, needs, Text(study.definition.title))
    console().print(table)
    print("hours: of training, one run after the other, as stated, or by the runs that are done; --quick takes minutes")


def _progress(study: Study, total: int) -> tuple[int, str]:
    """The number of runs that are done, and the hours of the whole study."""
    stated = f"{study.definition.hours:g}"
    if not study.folder.is_dir():
        return 0, stated
    places = {job.run_dir for job in study.jobs() if job.state == DONE and job.run_dir is not None}
    summaries = [json.loads((place / "summary.json").read_text(encoding="utf-8")) for place in places]
    seconds = [float(summary["fit/seconds"]) for summary in summaries]
    if not seconds:
        return 0, stated
    return len(seconds), f"{sum(seconds) / len(seconds) * total / 3600:.2g} measured"
