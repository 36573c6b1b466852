"""Galleries: templates, thresholds by leaving one out, files."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mtl.face.gallery import UNKNOWN, Calibration, Gallery, GalleryError, calibrate, left_out, make_gallery, make_templates


def at(*degrees: float) -> Tensor:
    """Unit vectors in the plane."""
    angle = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack([angle.cos(), angle.sin()], 1).float()


def cosine(degrees: float) -> float:
    return float(torch.tensor(degrees, dtype=torch.float64).deg2rad().cos())


def test_left_out_cosines_are_those_worked_out_by_hand() -> None:
    # Person 0 at 0, 10 and 20 degrees, person 1 at 90 and 100, person 2 at 180.
    embeddings, person = at(0, 10, 20, 90, 100, 180), torch.tensor([0, 0, 0, 1, 1, 2])
    own, other = left_out(embeddings, person, 3)
    # Without the photo at 0 the template of person 0 lies at 15, without 10 at 10, without 20 at 5.
    assert own[:5].tolist() == pytest.approx([cosine(15), 1.0, cosine(15), cosine(10), cosine(10)], abs=1e-6)
    assert bool(own[5].isnan())
    # Person 1's template lies at 95, person 0's at 10.
    assert other.tolist() == pytest.approx([cosine(95), cosine(85), cosine(75), cosine(80), cosine(80), cosine(85)], abs=1e-6)


def test_the_threshold_lies_in_the_middle_of_the_gap_between_own_and_others() -> None:
    embeddings, person = at(0, 10, 20, 90, 100), torch.tensor([0, 0, 0, 1, 1])
    calibration = calibrate(embeddings, person, 2)
    assert calibration.threshold == pytest.approx((cosine(15) + cosine(75)) / 2, abs=1e-6)
    assert (calibration.kept, calibration.refused) == (1.0, 1.0)


def test_no_other_threshold_is_better_than_the_calibrated_one() -> None:
    generator = torch.Generator().manual_seed(0)
    person = torch.arange(6).repeat_interleave(4)
    embeddings = F.normalize(torch.randn(6, 8, generator=generator)[person] + torch.randn(24, 8, generator=generator), dim=1)
    own, other = left_out(embeddings, person, 6)
    own = torch.where(own < other, -1.0, own)

    def rate(threshold: float) -> float:
        return float((own >= threshold).double().mean() + (other < threshold).double().mean())

    calibration = calibrate(embeddings, person, 6)
    assert calibration.kept is not None
    assert calibration.refused is not None
    assert calibration.kept + calibration.refused == pytest.approx(rate(calibration.threshold))
    assert rate(calibration.threshold) >= max(rate(threshold / 1000) for threshold in range(-1000, 1001)) - 1e-12


def test_galleries_that_say_too_little_fall_back_as_stated() -> None:
    assert calibrate(at(0), torch.tensor([0]), 1) == Calibration(0.5, None, None)
    two = calibrate(at(0, 60), torch.tensor([0, 1]), 2)
    assert two.threshold == pytest.approx((0.5 + 1) / 2, abs=1e-6)
    assert (two.kept, two.refused) == (None, 1.0)
    one = calibrate(at(0, 60), torch.tensor([0, 0]), 1)
    assert one.threshold == pytest.approx(0.25, abs=1e-6)
    assert (one.kept, one.refused) == (1.0, None)
    given = calibrate(at(0, 60), torch.tensor([0, 0]), 1, threshold=0.6)
    assert (given.threshold, given.kept) == (0.6, 0.0)


def people() -> Gallery:
    rows = [("ada", ["ada/1.jpg", "ada/2.jpg"], at(0, 10)), ("bob", ["bob/1.jpg", "bob/2.jpg"], at(90, 100))]
    return make_gallery(rows, threshold=None, model="abc", run="/runs/x")


def test_a_face_is_the_likest_person_or_nobody() -> None:
    gallery = people()
    assert torch.allclose(gallery.templates, at(5, 95), atol=1e-6)
    person, likeness = gallery.match(at(4, 92, 220))
    assert person.tolist() == [0, 1, UNKNOWN]
    assert likeness.tolist() == pytest.approx([cosine(1), cosine(3), cosine(125)], abs=1e-5)
    assert torch.allclose(make_templates(at(0, 90), torch.tensor([0, 0]), 1), at(45), atol=1e-6)


def test_a_saved_gallery_is_the_same(tmp_path: Path) -> None:
    gallery = people()
    gallery.save(tmp_path / "sub" / "g.npz")
    again = Gallery.load(tmp_path / "sub" / "g.npz")
    assert (again.names, again.files, again.calibration) == (gallery.names, gallery.files, gallery.calibration)
    assert (again.model, again.run) == ("abc", "/runs/x")
    assert torch.equal(again.embeddings, gallery.embeddings)
    assert torch.equal(again.person, gallery.person)


def test_what_is_no_gallery_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GalleryError, match="does not exist; mtl enrol makes one"):
        Gallery.load(tmp_path / "none.npz")
    people().save(tmp_path / "g.npz")
    content = (tmp_path / "g.npz").read_bytes()
    for number, damage in enumerate((content[: len(content) // 2], b"", b"not a gallery")):
        file = tmp_path / f"{number}.npz"
        file.write_bytes(damage)
        with pytest.raises(GalleryError, match="damaged or another"):
            Gallery.load(file)
