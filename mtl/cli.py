"""The command line: `mtl train`, `mtl report`, and what is done with a trained run."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

HELP = """\
mtl: multi-task learning of binary subtasks over simulated edge devices

  mtl train [GROUP=MEMBER] [KEY=VALUE] ...   train, by default the ORL faces on eight devices
  mtl train --help [GROUP|GROUP=MEMBER|KEY]  what can be chosen and set, with defaults
  mtl train --cfg job ...                    print the configuration of a run and do not train
  mtl train -m seed=0,1,2 loss=bce,sphereface2   a sweep: every combination, one run directory each
  mtl experiments [NAME]                     the named experiments, which mtl train +experiment=NAME runs; NAME prints its file
  mtl report RUN...                          one page and pictures from run directories; several runs stand side by side
  mtl verify RUN --pairs lfw --root DIR      face verification of a run's trunk: ten folds, equal error rate, ROC and DET
  mtl enrol --gallery DIR --model RUN        a gallery of people from a folder of photos for each; --add, --remove, --list
  mtl recognise PHOTO... --gallery FILE      find the faces in photos and say whose they are
  mtl export RUN --to onnx [--int8]          one file for a device from a run directory, checked against the model on the run's images
  mtl latency FILE [--threads 1]             how long an exported file takes for one image
  mtl compress RUN --recipe distil prune int8   a smaller model step by step, and what each step costs and saves

  --version                                  the version
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 0 done, 1 failed, 2 wrong input, 130 stopped by Ctrl-C."""
    # Pictures are written and never shown: what a notebook has said to its own matplotlib is not for us.
    os.environ["MPLBACKEND"] = "agg"
    # Nor are files in the working folder meant that are named as Python's own modules.
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        code = _main(arguments)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code


def _main(arguments: Sequence[str] | None) -> int:
    words = list(sys.argv[1:] if arguments is None else arguments)
    commands = {
        "train": _train,
        "experiments": _experiments,
        "report": _report,
        "verify": _verify,
        "enrol": _enrol,
        "recognise": _recognise,
        "export": _export,
        "latency": _latency,
        "compress": _compress,
    }
    if not words or words[0] in ("-h", "--help"):
        print(HELP, end="")
        return 0
    if words[0] == "--version":
        from mtl import __version__

        print(f"mtl {__version__}")
        return 0
    if words[0] not in commands:
        return _fail(f"unknown command {words[0]!r}; choose from {', '.join(commands)}")
    try:
        return commands[words[0]](words[1:])
    except KeyboardInterrupt:
        return _fail("stopped by Ctrl-C", 130)
    except BrokenPipeError:
        raise
    except (ValueError, OSError) as error:
        return _fail(str(error))


def _path(word: str) -> Path:
    """A shell expands no `~` behind an equals sign or in quotes."""
    return Path(word).expanduser()


def _fail(message: str, code: int = 2) -> int:
    print(f"mtl: error: {message}", file=sys.stderr)
    return code


def _train(words: list[str]) -> int:
    asked = [word for word in words if word in ("-h", "--help") or word.startswith("--help=")]
    if asked:
        from mtl.help import help_text

        topics = [word.removeprefix("--help=") for word in words if word not in ("-h", "--help")]
        print(help_text([topic for topic in topics if not topic.startswith("-")]), end="")
        return 0
    from mtl.launch import launch

    return launch(words)


def _experiments(words: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="mtl experiments", description="The named experiments, with a line each.")
    parser.add_argument("name", nargs="?", metavar="NAME", help="print the file of this experiment")
    options = parser.parse_args(words)
    from mtl.named_experiments import experiment_files, experiments_folder, listing, named_file

    files = experiment_files(experiments_folder())
    print(listing(files) if options.name is None else named_file(files, options.name).read_text(encoding="utf-8"), end="")
    return 0


def _report(words: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="mtl report", description="One self-contained page and PNGs from run directories.")
    parser.add_argument("runs", nargs="+", type=_path, metavar="RUN", help="a run directory, or a folder of them (a sweep)")
    parser.add_argument("--output", type=_path, help="folder of the report; default: the run, or the folder of the runs")
    options = parser.parse_args(words)
    from rich.console import Console

    from mtl.report.page import write_report
    from mtl.report.runs import find_runs
    from mtl.report.tables import comparison_table

    runs = find_runs(options.runs)
    page = write_report(runs, options.output)
    Console(width=None if sys.stdout.isatty() else 150).print(comparison_table(runs))
    print(f"report: {page}")
    return 0


def _verify(words: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="mtl verify", description="Do two pictures show the same person? The trunk of a run says."
    )
    parser.add_argument("run", type=_path, metavar="RUN", help="a run directory")
    parser.add_argument(
        "--pairs", default="lfw", help="lfw (its View 2), or celeba (people of its test part; default: %(default)s)"
    )
    parser.add_argument(
        "--root",
        type=os.path.expanduser,
        default="data",
        help="the folder that holds the pictures, as data.root (default: %(default)s)",
    )
    parser.add_argument(
        "--crop",
        type=int,
        nargs=4,
        metavar=("TOP", "LEFT", "HEIGHT", "WIDTH"),
        help="cut from every picture first; default: the run's data.crop for pictures of the set it was trained on, else nothing",
    )
    parser.add_argument("--no-flip", action="store_true", help="embed the picture alone, not the mean with its mirror image")
    parser.add_argument(
        "--beside", type=_path, nargs="+", default=[], metavar="RUN", help="runs whose embeddings are joined with this one's"
    )
    parser.add_argument(
        "--allow-unknown", action="store_true", help="go on where a run it learned from is gone; the result is marked"
    )
    options = parser.parse_args(words)
    from rich.console import Console

    from mtl.verify import verification_table, verify_run

    result = verify_run(
        options.run,
        options.pairs,
        options.root,
        crop=options.crop,
        flip=not options.no_flip,
        beside=options.beside,
        allow_unknown=options.allow_unknown,
    )
    for warning in result.warnings:
        print(f"mtl: warning: {warning}", file=sys.stderr)
    Console(width=None if sys.stdout.isatty() else 150).print(verification_table(result))
    print(f"written: {result.file} and {result.picture}")
    return 0


def _enrol(words: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="mtl enrol",
        description="Find the face in each photo of each person and write their embeddings as a gallery; add, remove and list people.",
    )
    parser.add_argument("--gallery", type=_path, metavar="DIR", help="a folder with a folder of photos for each person")
    parser.add_argument(
        "--model",
        type=_path,
        metavar="RUN",
        help="a run directory of mtl train +experiment=detect; with --add that of the gallery",
    )
    parser.add_argument("--output", type=_path, default=Path("gallery.npz"), metavar="FILE", help="default: gallery.npz")
    parser.add_argument(
        "--threshold",
        type=float,
        help="cosine from which a face is somebody, in (-1, 1); default: calibrated on photos and strangers",
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--add", action="store_true", help="the people of --gallery to those that --output holds")
    what.add_argument("--remove", nargs="+", metavar="NAME", help="take people out of --output")
    what.add_argument("--list", action="store_true", help="say who is in --output, and what its threshold promises")
    what.add_argument("--force", action="store_true", help="write over --output")
    parser.add_argument("--strangers", type=_path, metavar="DIR", help="photos of people not enrolled, laid out as --gallery")
    parser.add_argument(
        "--data-root",
        type=os.path.expanduser,
        metavar="DIR",
        help="where the data of the run lie now, if elsewhere: its people are strangers",
    )
    parser.add_argument(
        "--not-strangers",
        nargs="+",
        default=[],
        metavar="NAME",
        help="people of the run's data who are enrolled under another name",
    )
    options = parser.parse_args(words)
    makes = not (options.add or options.remove or options.list)
    for option, missing in (("gallery", makes or options.add), ("model", makes)):
        if missing and getattr(options, option) is None:
            parser.error(f"--{option} is required")
    from rich.console import Console

    from mtl import enrol
    from mtl.face.gallery import Gallery

    if options.list:
        gallery = Gallery.load(options.output)
        Console(width=None if sys.stdout.isatty() else 150).print(enrol.people_table(gallery))
        print(gallery.calibration)
        return 0
    if options.remove:
        enrol.remove_people(options.remove, options.output, threshold=options.threshold)
    elif options.add:
        enrol.add_people(options.gallery, options.output, run=options.model, threshold=options.threshold)
    else:
        enrol.enrol(
            options.gallery,
            options.model,
            options.output,
            threshold=options.threshold,
            strangers=options.strangers,
            data_root=options.data_root,
            not_strangers=options.not_strangers,
            force=options.force,
        )
    print(f"gallery: {options.output}")
    return 0


def _recognise(words: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="mtl recognise",
        description="Find the faces in photos and say whose they are; write pictures with frames and a JSON.",
    )
    parser.add_argument(
        "photos",
        type=os.path.expanduser,
        nargs="+",
        metavar="PHOTO",
        help="a photo, a folder of them, or a pattern as 'holiday/*.jpg'",
    )
    parser.add_argument("--gallery", required=True, type=_path, metavar="FILE", help="what mtl enrol wrote")
    parser.add_argument("--model", type=_path, metavar="RUN", help="default: where the model was when the gallery was made")
    parser.add_argument("--output", type=_path, default=Path("recognised"), metavar="DIR", help="default: recognised")
    options = parser.parse_args(words)
    from mtl.recognise import recognise

    recognise(options.photos, options.gallery, options.output, run=options.model)
    print(f"pictures and recognised.json: {options.output}")
    return 0


def _export(words: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="mtl export", description="One file for a device, from stored image to scores, from a run."
    )
    parser.add_argument("run", type=_path, metavar="RUN", help="a run directory")
    parser.add_argument("--to", default="onnx", choices=("onnx", "executorch"), help="default: onnx")
    parser.add_argument("--int8", action="store_true", help="8-bit weights and activations, calibrated on training images")
    parser.add_argument(
        "--qat-steps", type=int, default=0, metavar="N", help="steps of training with simulated int8 before; default 0"
    )
    parser.add_argument("--calibration", type=int, default=256, metavar="N", help="images to calibrate on; default 256")
    parser.add_argument("--thresholds", default="zero", choices=("zero", "calibrated"), help="calibrated: on validation images")
    parser.add_argument("--client", type=int, metavar="K", help="whose model, where parts of it stay on the clients")
    parser.add_argument("--no-mirror", action="store_true", help="score the picture alone, not the mean with its mirror image")
    parser.add_argument(
        "--scene",
        type=int,
        nargs=2,
        default=(480, 640),
        metavar=("HEIGHT", "WIDTH"),
        help="in which faces are found; default 480 640",
    )
    parser.add_argument(
        "--data-root", type=os.path.expanduser, metavar="DIR", help="where the data of the run lie now, if elsewhere"
    )
    parser.add_argument("--out", type=_path, metavar="FILE", help="default: model[_int8].onnx or .pte in the run directory")
    options = parser.parse_args(words)

    from mtl.deploy import ExportOptions, export_run

    chosen = ExportOptions(
        to=options.to,
        int8=options.int8,
        qat_steps=options.qat_steps,
        client=options.client,
        thresholds=options.thresholds,
        calibration=options.calibration,
        mirror=not options.no_mirror,
        scene=options.scene,
    )
    done = export_run(options.run, chosen, out=options.out, data_root=options.data_root)
    away = done.parity
    print(f"{done.path}: {done.num_bytes:,} bytes, {done.flops / 1e6:,.2f} MFLOP (2 MAC) for an image")
    embeddings = f"the embeddings within {away.embeddings:.2g}, " if away.embeddings is not None else ""
    print(
        f"on {away.images} test images {embeddings}the scores within {away.scores:.2g} of the model's (cosine at least {away.cosine:.5f})"
    )
    if done.detector is not None:
        found = done.detector
        print(f"{found.path}: {found.num_bytes:,} bytes; its maps of {found.images} scenes are within {found.difference:.2g}")
    for name in ("rank1", "balanced_accuracy", "auroc"):
        before, after = done.eager.get(name), done.file.get(name)
        if before is not None and after is not None:
            print(f"{name.replace('_', ' '):<18} model {100 * before:6.2f} %   file {100 * after:6.2f} %")
    return 0


def _latency(words: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="mtl latency", description="Milliseconds for one image after the other on a CPU.")
    parser.add_argument("file", type=_path, metavar="FILE", help="an exported .onnx or .pte")
    parser.add_argument("--threads", type=int, default=1, help="default: 1")
    parser.add_argument("--warmup", type=int, default=20, help="images that do not count; default 20")
    parser.add_argument("--repeats", type=int, default=200, help="images that count; default 200")
    parser.add_argument("--output", type=_path, metavar="FILE", help="a JSON of the result and the machine; default: none")
    options = parser.parse_args(words)
    from dataclasses import asdict

    from mtl.edge.files import check_output
    from mtl.edge.latency import measure_file
    from mtl.edge.machine import timing_machine
    from mtl.files import write_json

    if options.output is not None:
        check_output("--output", options.output)
    found = measure_file(options.file, threads=options.threads, warmup=options.warmup, repeats=options.repeats)
    machine = timing_machine(options.file.suffix, options.threads)
    if options.output is not None:
        write_json(options.output, {"file": str(options.file), "milliseconds": asdict(found), "machine": machine})
    threads = f"{options.threads} thread{'s'[: options.threads > 1]}"
    print(f"p50 {found.p50:.3f} ms   p90 {found.p90:.3f} ms   ({found.repeats} images one after the other, {threads})")
    print(f"{machine['processor']}, {machine['runtime']}, {machine['system']}")
    return 0


def _compress(words: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="mtl compress", description="A run made smaller step by step, as a table.")
    parser.add_argument("run", type=_path, metavar="RUN", help="a run directory")
    parser.add_argument(
        "--recipe", nargs="+", required=True, metavar="STEP", help="of distil, prune, sparsify, int8, in this order"
    )
    parser.add_argument("--student", nargs="+", default=[], metavar="KEY=VALUE", help="what the distilled student differs by")
    parser.add_argument("--ratio", type=float, default=0.5, help="of the channels that are cut; default 0.5")
    parser.add_argument(
        "--sparsity", type=float, default=0.8, help="share of the weights that sparsify sets to zero; default 0.8"
    )
    parser.add_argument("--rounds", type=int, help="of each training; default: as many as the run had")
    parser.add_argument("--threads", type=int, default=1, help="for the latency; default 1")
    parser.add_argument(
        "--data-root", type=os.path.expanduser, metavar="DIR", help="where the data of the run lie now, if elsewhere"
    )
    parser.add_argument("--out", type=_path, metavar="DIR", help="default: the run directory with -compressed behind its name")
    options = parser.parse_args(words)
    from rich.console import Console
    from rich.table import Table

    from mtl.compress import compress
    from mtl.types import Diverged, Interrupted

    out = options.out or options.run.resolve().with_name(f"{options.run.resolve().name}-compressed")
    try:
        rows = compress(
            options.run,
            options.recipe,
            out=out,
            student=options.student,
            ratio=options.ratio,
            sparsity=options.sparsity,
            rounds=options.rounds,
            threads=options.threads,
            data_root=options.data_root,
        )
    except Diverged as error:
        return _fail(str(error), 1)
    except Interrupted as stop:
        return _fail(str(stop), 130)
    rates = ("rank-1 %", "AUROC %", "worst task", "worst clients", "balanced accuracy %")
    table = Table("step", *rates, *("parameters", "zeros %", "MFLOPs", "bytes", "p50 ms", "p90 ms"))
    for row in rows:
        values = (row.rank1, row.auroc, row.worst_task_auroc, row.worst_clients_auroc, row.balanced_accuracy)
        accuracies = ["" if value is None else f"{100 * value:.1f}" for value in values]
        sizes = [f"{row.parameters:,}", f"{100 * row.zeros:.0f}", f"{row.flops / 1e6:.2f}", f"{row.num_bytes:,}"]
        table.add_row(row.step, *accuracies, *sizes, f"{row.p50:.3f}", f"{row.p90:.3f}")
    for column in table.columns[1:]:
        column.justify = "right"
    Console(width=None if sys.stdout.isatty() else 150).print(table)
    print(f"files and runs: {out}")
    return 0
