"""A device reads pictures as training does, whatever their kind; the rule is in the file."""

import importlib.util
from dataclasses import asdict
from pathlib import Path
from types import ModuleType

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from mtl.data.images import decode
from mtl.edge.pictures import PictureRule

SCRIPT = Path(__file__).parents[2] / "experiments" / "deploy" / "recognise.py"
KINDS = (
    "rgb",
    "grey",
    "grey_alpha",
    "rgba",
    "palette",
    "palette_alpha",
    "rgb_key",
    "grey16",
    "grey32",
    "cmyk",
    "bilevel",
    "turned",
)


@pytest.fixture(scope="module")
def device() -> ModuleType:
    spec = importlib.util.spec_from_file_location("recognise_on_a_device", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write(kind: str, folder: Path) -> Path:
    """A picture of 32 x 40 of noise in coarse cells."""
    coarse = np.random.default_rng(3).integers(0, 256, (8, 10, 3), dtype=np.uint8)
    rgb = Image.fromarray(coarse.repeat(4, 0).repeat(4, 1))
    grey: npt.NDArray[np.uint8] = np.asarray(rgb.convert("L"))
    alpha = np.linspace(0, 255, 40).astype(np.uint8)[None].repeat(32, 0)
    suffix = {"cmyk": "jpg", "turned": "jpg", "grey32": "pgm"}.get(kind, "png")
    path = folder / f"{kind}.{suffix}"
    options: dict[str, object] = {}
    match kind:
        case "grey":
            picture = rgb.convert("L")
        case "grey_alpha":
            picture = Image.merge("LA", [rgb.convert("L"), Image.fromarray(alpha)])
        case "rgba":
            picture = Image.fromarray(np.dstack([np.asarray(rgb), alpha]))
        case "palette":
            picture = rgb.quantize(16)
        case "palette_alpha":
            picture, options = rgb.quantize(16), {"transparency": 0}
        case "rgb_key":
            picture, options = rgb, {"transparency": tuple(int(value) for value in coarse[0, 0])}
        case "grey16":
            picture = Image.fromarray(grey.astype(np.uint16) * 257 + 100)
        case "grey32":
            picture = Image.fromarray(grey.astype(np.int32) * 257)
        case "cmyk":
            picture = rgb.convert("CMYK")
        case "bilevel":
            picture = rgb.convert("1")
        case "turned":
            exif = Image.Exif()
            exif[0x0112] = 6
            picture, options = rgb, {"exif": exif}
        case _:
            picture = rgb
    picture.save(path, **options)
    return path


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_device_reads_every_kind_of_picture_as_training_does(
    device: ModuleType, tmp_path: Path, kind: str, channels: int
) -> None:
    path = write(kind, tmp_path)
    for crop in (None, (3, 5, 24, 20)):
        trained = decode(path, image_size=(16, 20), grey=channels == 1, crop=crop)
        rule = asdict(PictureRule.of((channels, 16, 20), crop))
        seen = device.read_picture(path, (channels, 16, 20), crop, rule)
        assert np.array_equal(seen[0], trained)


def test_the_script_knows_every_step_that_the_rule_has(device: ModuleType) -> None:
    rule = asdict(PictureRule.of((3, 16, 20)))
    assert {name: rule[name] for name in rule if name not in ("colours", "size", "crop")} == device.RULE
    # By hand: 16 bits have 257 times the range of 8; black shows through; the mean of the area.
    assert (rule["sixteen_bit"], rule["background"], rule["resize"]) == (65535 / 255, "black", "box")
    assert (rule["colours"], PictureRule.of((1, 16, 20)).colours) == ("RGB", "L")


def test_a_crop_that_leaves_the_picture_is_refused(device: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"must hold the crop \(20, 0, 20, 20\), got 32 x 40 pixels"):
        device.read_picture(write("rgb", tmp_path), (3, 16, 20), (20, 0, 20, 20))
