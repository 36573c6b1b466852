"""How long a photo takes: `python -m experiments.benchmarks.recognise [--repeats 30]`. The last line is one JSON object.

The model is that of `mtl train +experiment=detect`, with weights as at the start of training: time does not depend on them, and the
confidence is set so that four faces are found. The photo is a composed scene of 640 x 480 in a JPEG file, the gallery has forty people of
five photos, and torch has one thread. `ms_per_photo` is the median of a call with the model warm, from the file to the names: reading,
detection at all levels of the pyramid, crops, embedding and comparison. Beside it the medians of reading and of detection alone, and of
drawing the picture, which is not part of it.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from hydra_zen import instantiate
from PIL import Image

from mtl.data.scenes import orl_scenes
from mtl.faces.finder import FaceFinder
from mtl.faces.gallery import Photos, make_gallery
from mtl.faces.photos import draw_faces
from mtl.run.build import build_model
from mtl.run.config import compose
from mtl.trained.recognise import Recogniser, name_faces

EXPERIMENTS = Path(__file__).resolve().parents[1]
FACES, SIZE, CROP = 4, (480, 640), (1, 56, 46)


def build(overrides: Sequence[str]) -> FaceFinder:
    """The experiment's model at its start."""
    config = compose(["+experiment=detect", *overrides], experiments=EXPERIMENTS)
    model = build_model(config, CROP, ("a", "b"), 2).to(memory_format=torch.channels_last).eval()
    assert model.detector is not None
    normalise, margin = instantiate(config.normalise), config.detection.margin
    return FaceFinder(model.trunk, model.detector, normalise, crop_shape=CROP, margin=margin, mirror=config.mirror)


def milliseconds(call: Callable[[], object], repeats: int) -> float:
    """The median of some calls after three that do not count."""
    times = []
    for _ in range(repeats + 3):
        start = time.perf_counter()
        call()
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times[3:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("overrides", nargs="*", help="of the experiment, as trunk=separable_cnn")
    options = parser.parse_args()
    torch.set_num_threads(1)
    finder = build(options.overrides)
    scene = orl_scenes(image_size=SIZE, scenes=(1, 0, 1), max_faces=FACES, face_height=(48, 200)).images[0, 0]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "photo.jpg"
        Image.fromarray(scene.numpy()).save(path, quality=90)
        model = Recogniser(Path(folder), finder, 0.0)
        photo = model.read(path, 640)
        model = Recogniser(
            Path(folder), finder, float(finder.find(photo.image[None], confidence=0.0, pyramid=True)[0].scores[FACES - 1])
        )
        embeddings = F.normalize(torch.randn(40, 5, finder.embed(torch.zeros(1, *CROP)).shape[1]), dim=2)
        names = [tuple(f"p{i}/{j}.jpg" for j in range(5)) for i in range(len(embeddings))]
        people = [Photos(f"p{i}", files, own, files) for i, (files, own) in enumerate(zip(names, embeddings, strict=True))]
        gallery = make_gallery(people, threshold=None, model=finder.fingerprint(), run=folder)
        named = name_faces(model, gallery, photo)

        def draw() -> object:
            return draw_faces(path, [f.box for f in named], [f.label for f in named], [True] * len(named))

        result = {
            "ms_per_photo": milliseconds(lambda: name_faces(model, gallery, model.read(path, 640)), options.repeats),
            "ms_read": milliseconds(lambda: model.read(path, 640), options.repeats),
            "ms_find": milliseconds(lambda: finder.find(photo.image[None], pyramid=True), options.repeats),
            "ms_draw": milliseconds(draw, options.repeats),
            "faces": len(named),
            "parameters": sum(value.numel() for part in (finder.trunk, finder.detector) for value in part.parameters()),
        }
    print(json.dumps({name: round(value, 2) for name, value in result.items()}))


if __name__ == "__main__":
    main()
