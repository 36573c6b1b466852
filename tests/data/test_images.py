"""Pixels are written by hand; expected values are worked out by hand."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from mtl.data import images
from mtl.data.cache import load_cache
from mtl.data.images import CorruptImage, DecoderMissing, decode, list_images, load_images, read_images


def paint(
    path: Path, colour: object = (10, 20, 30), mode: str = "RGB", size: tuple[int, int] = (4, 3), **options: object
) -> Path:
    """A picture of one colour; size is (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path, **options)
    return path


def first_pixel(path: Path, **options: object) -> list[int]:
    return decode(path, **options)[:, 0, 0].tolist()


@pytest.mark.parametrize(("alpha", "expected"), [(255, [200, 100, 50]), (128, [100, 50, 25]), (0, [0, 0, 0])])
def test_transparency_is_laid_on_black(tmp_path, alpha, expected):
    assert first_pixel(paint(tmp_path / "a.png", (200, 100, 50, alpha), "RGBA")) == expected
    assert first_pixel(paint(tmp_path / "b.png", (200, alpha), "LA"), grey=True) == [round(200 * alpha / 255)]


def test_grey_palette_and_cmyk_become_rgb(tmp_path):
    assert first_pixel(paint(tmp_path / "grey.pgm", 77, "L")) == [77, 77, 77]
    assert first_pixel(paint(tmp_path / "bit.png", 1, "1")) == [255, 255, 255]
    palette = Image.new("RGB", (4, 3), (9, 8, 7)).convert("P", palette=Image.Palette.ADAPTIVE)
    palette.save(tmp_path / "palette.png")
    assert first_pixel(tmp_path / "palette.png") == [9, 8, 7]
    palette.save(tmp_path / "clear.png", transparency=palette.getpixel((0, 0)))
    assert first_pixel(tmp_path / "clear.png") == [0, 0, 0]
    red = first_pixel(paint(tmp_path / "cmyk.jpg", (0, 255, 255, 0), "CMYK", quality=100))
    assert red == pytest.approx([255, 0, 0], abs=4)


def test_grey_follows_the_itu_weights(tmp_path):
    for colour, expected in (((255, 0, 0), 76), ((0, 255, 0), 150), ((0, 0, 255), 29)):
        pixels = decode(paint(tmp_path / "a.png", colour), grey=True)
        assert pixels.shape == (1, 3, 4)
        assert (pixels == expected).all()


@pytest.mark.parametrize(("name", "kind"), [("a.jfif", "JPEG"), ("a.tif", "TIFF"), ("a.TIFF", "TIFF")])
def test_further_names_of_pictures_are_read(tmp_path, name, kind):
    Image.new("RGB", (4, 3), (10, 20, 30)).save(tmp_path / name, format=kind)
    assert list_images(tmp_path) == [tmp_path / name]
    assert first_pixel(tmp_path / name) == pytest.approx([10, 20, 30], abs=2)


@pytest.mark.parametrize(("values", "mode"), [(np.full((3, 4), 0.5, np.float32), "F"), (np.full((3, 4), 70000, np.int32), "I")])
def test_a_tiff_of_measurements_is_refused_and_not_made_black(tmp_path, values, mode):
    image = Image.fromarray(values)
    assert image.mode == mode
    image.save(tmp_path / "a.tif")
    with pytest.raises(CorruptImage, match=r"cannot decode .*a\.tif: it is damaged or not an image of 8 or 16 bits"):
        decode(tmp_path / "a.tif")


def test_heic_without_its_library_says_how_to_install_it(tmp_path, monkeypatch):
    (tmp_path / "a.heic").write_bytes(b"a picture from a phone")
    assert list_images(tmp_path) == [tmp_path / "a.heic"]
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(
        DecoderMissing, match=r"HEIC pictures such as .*a\.heic need the extra heic \(pip install -e '\.\[heic\]'"
    ):
        read_images([tmp_path / "a.heic"], skip_corrupt=True)
    # With the library, Pillow opens what it has registered.
    seen = []
    monkeypatch.setitem(sys.modules, "pillow_heif", SimpleNamespace(register_heif_opener=lambda: seen.append("registered")))
    paint(tmp_path / "a.png").rename(tmp_path / "a.heic")
    assert first_pixel(tmp_path / "a.heic") == [10, 20, 30]
    assert seen == ["registered"]


@pytest.mark.parametrize("name", ["a.png", "a.pgm"])
def test_sixteen_bits_are_scaled_to_eight(tmp_path, name):
    Image.fromarray(np.array([[0, 257 * 100, 65535]], dtype=np.uint16)).save(tmp_path / name)
    assert decode(tmp_path / name, grey=True)[0, 0].tolist() == [0, 100, 255]


def test_exif_rotation_is_applied(tmp_path):
    picture = Image.new("RGB", (2, 1), (255, 0, 0))
    picture.putpixel((1, 0), (0, 0, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned clockwise by a quarter: the left pixel comes out on top
    picture.save(tmp_path / "a.png", exif=exif)
    pixels = decode(tmp_path / "a.png")
    assert pixels.shape == (3, 2, 1)
    assert pixels[:, 0, 0].tolist() == [255, 0, 0]
    assert pixels[:, 1, 0].tolist() == [0, 0, 255]


def test_resizing_averages_areas(tmp_path):
    block = np.array([[0, 4, 100, 100], [8, 0, 100, 100], [20, 20, 1, 3], [20, 20, 5, 7]], dtype=np.uint8)
    Image.fromarray(block).save(tmp_path / "a.png")
    assert decode(tmp_path / "a.png", image_size=(2, 2), grey=True)[0].tolist() == [[3, 100], [20, 4]]
    assert decode(tmp_path / "a.png", image_size=(1, 4), grey=True)[0].tolist() == [[12, 11, 52, 53]]


def test_crop_is_top_left_height_width(tmp_path):
    Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4)).save(tmp_path / "a.png")
    assert decode(tmp_path / "a.png", grey=True, crop=(1, 2, 2, 1))[0].tolist() == [[6], [10]]
    with pytest.raises(ValueError, match=r"crop must lie inside.*got \(2, 0, 2, 1\) for .*a\.png of 3 x 4"):
        decode(tmp_path / "a.png", crop=(2, 0, 2, 1))


def test_images_come_in_the_order_of_their_paths(tmp_path):
    paths = [paint(tmp_path / f"{level}.png", level, "L") for level in range(50)][::-1]
    pixels, places = read_images(paths, grey=True)
    assert pixels.dtype == torch.uint8
    assert pixels[:, 0, 0, 0].tolist() == list(range(50))[::-1]
    assert places.tolist() == list(range(50))


def break_file(path: Path, kind: str) -> Path:
    content = paint(path, size=(64, 64)).read_bytes()
    path.write_bytes({"empty": b"", "text": b"not a picture", "truncated": content[: len(content) // 2]}[kind])
    return path


@pytest.mark.parametrize("kind", ["empty", "text", "truncated"])
@pytest.mark.parametrize("suffix", ["png", "jpg", "pgm", "bmp", "webp"])
def test_a_corrupt_image_raises_with_its_path(tmp_path, kind, suffix):
    broken = break_file(tmp_path / f"broken.{suffix}", kind)
    with pytest.raises(ValueError, match=rf"cannot decode {broken}"):
        read_images([paint(tmp_path / "good.png"), broken])


def test_corrupt_images_are_skipped_on_request_with_a_warning_each_time(tmp_path, caplog):
    paths = [break_file(tmp_path / "0.png", "text"), paint(tmp_path / "1.png"), break_file(tmp_path / "2.png", "truncated")]
    for _ in ("decoded", "cached"):
        caplog.clear()
        pixels, places = load_images("x", tmp_path, paths, skip_corrupt=True)
        assert places.tolist() == [1]
        assert pixels.shape == (1, 3, 3, 4)
        assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
            f"skipped 2 of 3 images that cannot be decoded; the first is {paths[0]}"
        ]


def test_nothing_but_corrupt_images_raises(tmp_path):
    with pytest.raises(ValueError, match=r"none of 1 images can be decoded; the first is .*a\.png"):
        read_images([break_file(tmp_path / "a.png", "text")], skip_corrupt=True)


def test_mixed_sizes_need_image_size(tmp_path):
    paths = [paint(tmp_path / "a.png", size=(4, 3)), paint(tmp_path / "b.png", size=(5, 6))]
    with pytest.raises(ValueError, match=r"image_size must be set.*a\.png of 3 x 4 and .*b\.png of 6 x 5"):
        read_images(paths)
    assert read_images(paths, image_size=(2, 2))[0].shape == (2, 3, 2, 2)


@pytest.mark.parametrize("image_size", [(0, 4), (4,), (4, 4, 4), (4.0, 4), 4, "ab"])
def test_a_bad_image_size_is_named(tmp_path, image_size):
    with pytest.raises(ValueError, match=r"image_size must be null or \(height, width\).*got"):
        load_images("x", tmp_path, [paint(tmp_path / "a.png")], image_size=image_size)


@pytest.mark.parametrize("crop", [(-1, 0, 1, 1), (0, 0, 0, 1), (0, 0, 1)])
def test_a_bad_crop_is_named(tmp_path, crop):
    with pytest.raises(ValueError, match=r"crop must be null or \(top, left, height, width\).*got"):
        load_images("x", tmp_path, [paint(tmp_path / "a.png")], crop=crop)


def refuse(*args: object, **options: object) -> None:
    raise AssertionError("decoded again")


def test_the_second_load_reads_the_cache(tmp_path, monkeypatch):
    paths = [paint(tmp_path / "a.png"), paint(tmp_path / "b.png", (1, 2, 3))]
    first = load_images("x", tmp_path, paths)
    monkeypatch.setattr(images, "decode", refuse)
    for one, two in zip(first, load_images("x", tmp_path, paths), strict=True):
        assert torch.equal(one, two)
    assert [path.suffix for path in (tmp_path / ".cache").iterdir()] == [".images"]


@pytest.mark.parametrize("change", ["name", "image_size", "grey", "crop", "paths", "touch"])
def test_a_change_decodes_again(tmp_path, monkeypatch, change):
    paths = [paint(tmp_path / "a.png"), paint(tmp_path / "b.png")]
    load_images("x", tmp_path, paths)
    monkeypatch.setattr(images, "decode", refuse)
    options = {"image_size": {"image_size": (1, 1)}, "grey": {"grey": True}, "crop": {"crop": (0, 0, 1, 1)}}.get(change, {})
    if change == "touch":
        os.utime(paths[0], ns=(1, 1))
    with pytest.raises(AssertionError, match="decoded again"):
        load_images("y" if change == "name" else "x", tmp_path, paths[:1] if change == "paths" else paths, **options)


def test_a_changed_file_shows_in_the_images(tmp_path):
    path = paint(tmp_path / "a.png", (1, 2, 3))
    load_images("x", tmp_path, [path])
    paint(path, (4, 5, 6))
    assert load_images("x", tmp_path, [path])[0][0, :, 0, 0].tolist() == [4, 5, 6]


@pytest.mark.parametrize("keep", [0, 1, 80, 111])
def test_a_torn_cache_is_rebuilt_with_a_warning(tmp_path, caplog, keep):
    paths = [paint(tmp_path / "a.png")]
    expected, _ = load_images("x", tmp_path, paths)
    (file,) = (tmp_path / ".cache").iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[:keep])
    assert torch.equal(load_images("x", tmp_path, paths)[0], expected)
    assert f"cannot read the cache {file}" in caplog.text
    assert file.read_bytes() == whole


def test_a_cache_of_another_kind_is_rebuilt_with_a_warning(tmp_path, caplog):
    paths = [paint(tmp_path / "a.png")]
    expected, _ = load_images("x", tmp_path, paths)
    (file,) = (tmp_path / ".cache").iterdir()
    for content in (b"other" * 100, file.read_bytes() + b"more", b"mtl-img1" + b"\xff" * 64):
        caplog.clear()
        file.write_bytes(content)
        assert torch.equal(load_images("x", tmp_path, paths)[0], expected)
        assert f"cannot read the cache {file}" in caplog.text


def test_an_unwritable_cache_warns_and_goes_on(tmp_path, caplog):
    paths = [paint(tmp_path / "a.png")]
    (tmp_path / ".cache").write_text("a file where the folder should be")
    assert load_images("x", tmp_path, paths)[0].shape == (1, 3, 3, 4)
    assert f"cannot write the cache {tmp_path / '.cache'}" in caplog.text


def test_every_damaged_byte_of_a_cache_is_seen(tmp_path, caplog):
    paths = [paint(tmp_path / "a.png"), paint(tmp_path / "b.png", (1, 2, 3))]
    expected, _ = load_images("x", tmp_path, paths)
    (file,) = (tmp_path / ".cache").iterdir()
    whole = file.read_bytes()
    assert len(whole) == 72 + 2 * 8 + 2 * 3 * 3 * 4
    for place in range(len(whole)):
        for bit in (1, 128):
            file.write_bytes(whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :])
            assert load_cache(file) is None
    assert torch.equal(load_images("x", tmp_path, paths)[0], expected)
    assert caplog.text.count(f"cannot read the cache {file}") == 2 * len(whole) + 1
    assert file.read_bytes() == whole


def test_a_full_disk_warns_and_leaves_nothing_behind(tmp_path, monkeypatch, caplog):
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert load_images("x", tmp_path, [paint(tmp_path / "a.png")])[0].shape == (1, 3, 3, 4)
    assert "cannot write the cache" in caplog.text
    assert list((tmp_path / ".cache").iterdir()) == []
