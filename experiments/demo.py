"""The main job in one command: 40 faces, eight devices, no image ever shared.

    python -m experiments.demo [--output DIR] [--rounds R]

Trains three times with the same number of gradient steps: federated, each client alone, and all data in one place; prints one table,
and writes one report. The federated run is what `mtl train` does without arguments.
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from rich.console import Console

from mtl.report.page import write_report
from mtl.report.tables import comparison_table
from mtl.run.config import compose
from mtl.run.train import train

MODES = ("federated", "local", "centralised")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.demo", description="Train 40 face subtasks on eight devices.")
    parser.add_argument("--output", type=Path, help="folder of the three runs; default runs/demo-<time>")
    parser.add_argument("--rounds", type=int, help="rounds; default as in mtl train")
    options = parser.parse_args(arguments)
    output = options.output or Path("runs") / f"demo-{datetime.now():%Y-%m-%d_%H-%M-%S}"
    began = time.monotonic()
    print("40 people of the AT&T/ORL faces, 5 images each for training and 5 for test; 8 devices hold 5 people each.")
    print("Each device trains 5 subtasks (is this person s7?) on its own 25 images; the server averages and fuses.\n", flush=True)
    runs = []
    for mode in MODES:
        overrides = [f"mode={mode}", "engine.backend=loop", "tracking.group=demo", f"name=demo-{mode}"]
        overrides += [f"rounds={options.rounds}"] if options.rounds else []
        # A process for each of two cores is the fastest way to train clients one by one; what is trained is the same.
        overrides += (
            ["trainer.accelerator=cpu", "trainer.devices=2"] if mode != "centralised" and (os.cpu_count() or 1) > 1 else []
        )
        runs.append(output / mode)
        train(compose(overrides), runs[-1])
    page = write_report(runs, output)
    print()
    Console(width=None if sys.stdout.isatty() else 150).print(comparison_table(runs))
    print(f"\nrun directories   {output}/{{{','.join(MODES)}}}")
    print(f"report            {page}")
    offline = sorted(output.glob("*/wandb/offline-run-*"))
    if offline:
        print(f"W&B, offline      {output}/*/wandb; to send it: wandb login && wandb sync {output}/*/wandb/offline-run-*")
    print(f"{time.monotonic() - began:.0f} s in all; the same federated run by hand: mtl train")


if __name__ == "__main__":
    main()
