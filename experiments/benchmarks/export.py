"""What a trained model costs on a device: its float file, its int8 file, and the model itself in torch.

    python -m experiments.benchmarks.export [--run RUN] [--threads 1] [--repeats 500] [KEY=VALUE ...]

Without --run it trains one first: the ORL faces, all data in one place, ten rounds (about a minute), with further KEY=VALUE as `mtl train`
takes them, such as trunk=mobilenet_v2 norm=frozen data.image_size=[96,96]. The last line is one JSON object:

    size_ratio      bytes of the float file over bytes of the int8 file
    rank1_loss      rank-1 of the model less rank-1 of the int8 file, in percentage points
    int8_vs_float   median time of one image by the float file over that by the int8 file
    float_vs_eager  median time of one image by torch over that by the float file
    int8_vs_eager   the same by the int8 file
"""

import argparse
import json
import tempfile
from pathlib import Path

import torch

from mtl.edge.latency import eager_call, file_call, measure
from mtl.run.config import compose
from mtl.run.load import load_run
from mtl.run.train import train
from mtl.trained.export import ExportOptions, device_model, export_run

TRAIN = [
    "mode=centralised",
    "rounds=10",
    "evaluate_every=10",
    "tracking.wandb=disabled",
    "write_report=false",
    "trainer.accelerator=cpu",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="a run directory; default: one is trained")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=500)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    options = parser.parse_args()
    if options.run and options.overrides:
        parser.error("KEY=VALUE is for a run that is trained here: leave it out with --run")
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        run_dir = options.run or Path(folder) / "run"
        if options.run is None:
            train(compose([*TRAIN, f"trainer.threads={options.threads}", *options.overrides]), run_dir)
        plain = export_run(run_dir, out=Path(folder) / "float.onnx")
        small = export_run(run_dir, ExportOptions(int8=True), out=Path(folder) / "int8.onnx")
        run = load_run(run_dir)
        image = torch.zeros(1, *run.image_shape, dtype=run.pixels)
        calls = {
            "eager": eager_call(device_model(run, run.model), image),
            "float": file_call(plain.path, threads=options.threads),
            "int8": file_call(small.path, threads=options.threads),
        }
        times = measure(calls, repeats=options.repeats)
    for name, found in times.items():
        print(f"  {name:<6} p50 {found.p50:.3f} ms   p90 {found.p90:.3f} ms")
    sources = {"model": small.eager, "float": plain.file, "int8": small.file}
    rank1 = {name: 100 * (metrics.get("rank1") or 0.0) for name, metrics in sources.items()}
    print(f"  rank-1 {rank1}   bytes {plain.num_bytes} and {small.num_bytes}")
    figures = {
        "size_ratio": plain.num_bytes / small.num_bytes,
        "rank1_loss": rank1["model"] - rank1["int8"],
        "int8_vs_float": times["float"].p50 / times["int8"].p50,
        "float_vs_eager": times["eager"].p50 / times["float"].p50,
        "int8_vs_eager": times["eager"].p50 / times["int8"].p50,
    }
    print(json.dumps({name: round(value, 3) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
