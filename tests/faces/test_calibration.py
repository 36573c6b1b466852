"""The threshold of "unknown" and what it promises."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mtl.faces.calibration import Share, Strangers, best_threshold, calibrate, left_out, make_templates, stranger_scores, wilson


def at(*degrees: float) -> Tensor:
    """Unit vectors in the plane."""
    angle = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack([angle.cos(), angle.sin()], 1).float()


def cosine(degrees: float) -> float:
    return float(torch.tensor(degrees, dtype=torch.float64).deg2rad().cos())


def strangers(*people: Tensor, from_user: bool = False, names: tuple[str, ...] | None = None) -> Strangers:
    person = torch.arange(len(people)).repeat_interleave(torch.tensor([len(some) for some in people]))
    return Strangers(torch.cat(people), person, names or tuple(f"s{i}" for i in range(len(people))), from_user, "made")


def test_left_out_cosines_are_those_worked_out_by_hand() -> None:
    # Person 0 at 0, 10 and 20 degrees, person 1 at 90 and 100, person 2 at 180.
    embeddings, person = at(0, 10, 20, 90, 100, 180), torch.tensor([0, 0, 0, 1, 1, 2])
    same, other = left_out(embeddings, person, 3)
    # Without the photo at 0 the template of person 0 lies at 15, without 10 at 10, without 20 at 5.
    assert same[:5].tolist() == pytest.approx([cosine(15), 1.0, cosine(15), cosine(10), cosine(10)], abs=1e-6)
    assert bool(same[5].isnan())
    # Person 1's template lies at 95, person 0's at 10.
    assert other.tolist() == pytest.approx([cosine(95), cosine(85), cosine(75), cosine(80), cosine(80), cosine(85)], abs=1e-6)


def test_the_threshold_lies_in_the_middle_of_the_gap_between_own_and_others() -> None:
    embeddings, person = at(0, 10, 20, 90, 100), torch.tensor([0, 0, 0, 1, 1])
    calibration = calibrate(embeddings, person, 2)
    assert calibration.threshold == pytest.approx((cosine(15) + cosine(75)) / 2, abs=1e-6)
    # Five photos of two people, of which each was left out once.
    assert (calibration.kept, calibration.refused) == (Share(1.0, 5, 2, 5), Share(1.0, 5, 2, 2))


def test_no_other_threshold_is_better_than_the_calibrated_one() -> None:
    generator = torch.Generator().manual_seed(0)
    person = torch.arange(6).repeat_interleave(4)
    embeddings = F.normalize(torch.randn(6, 8, generator=generator)[person] + torch.randn(24, 8, generator=generator), dim=1)
    same, other = left_out(embeddings, person, 6)
    same = torch.where(same < other, -1.0, same)

    def rate(threshold: float) -> float:
        return float((same >= threshold).double().mean() + (other < threshold).double().mean())

    threshold = calibrate(embeddings, person, 6).threshold
    assert threshold == best_threshold(same, other)
    assert rate(threshold) >= max(rate(other / 1000) for other in range(-1000, 1001)) - 1e-12


def test_galleries_that_say_too_little_fall_back_as_stated() -> None:
    alone = calibrate(at(0), torch.tensor([0]), 1)
    assert (alone.threshold, alone.kept, alone.refused) == (0.5, None, None)
    assert str(alone).endswith("the share of strangers that it refuses is unknown")
    two = calibrate(at(0, 60), torch.tensor([0, 1]), 2)
    assert two.threshold == pytest.approx((0.5 + 1) / 2, abs=1e-6)
    # Without the one, the other's threshold is .5, and the two are at a cosine of .5: each is taken for the other.
    assert (two.kept, two.refused) == (None, Share(0.0, 2, 2, 2))
    one = calibrate(at(0, 60), torch.tensor([0, 0]), 1)
    assert one.threshold == pytest.approx(0.25, abs=1e-6)
    assert (one.kept, one.refused) == (Share(1.0, 2, 1, 2), None)
    manual = calibrate(at(0, 60), torch.tensor([0, 0]), 1, threshold=0.6)
    assert (manual.threshold, manual.user_set, manual.kept) == (0.6, True, Share(0.0, 2, 1, 2))


def test_an_interval_is_wilsons() -> None:
    # Of 0 of n the upper end is z^2 / (n + z^2); the share one half lies in the middle, z / (2 sqrt(n + z^2)) from both ends.
    z = 1.959964
    assert wilson(0.0, 10) == pytest.approx((0.0, z**2 / (10 + z**2)))
    assert wilson(0.5, 40) == pytest.approx((0.5 - z / (2 * (40 + z**2) ** 0.5), 0.5 + z / (2 * (40 + z**2) ** 0.5)))
    # 8 of 10, as tabulated by Agresti and Coull (1998): .49 to .94.
    assert wilson(0.8, 10) == pytest.approx((0.490, 0.943), abs=1e-3)
    assert str(Share(0.8, 30, 10, 10)) == "80.0 % (49 to 94 %, Wilson 95 %, n = 10)"


def test_strangers_are_held_against_all_templates_and_raised_to_the_likeness_of_the_gallery() -> None:
    embeddings, person = at(0, 10, 90, 100), torch.tensor([0, 0, 1, 1])
    far = strangers(at(200), at(230))
    # Templates at 5 and 95 degrees. Photos and the other's template are at 95, 85, 85 and 95; strangers at 165, 105 and 135, 135.
    between = (2 * cosine(95) + 2 * cosine(85)) / 4
    shift = between - (cosine(165) + cosine(105) + 2 * cosine(135)) / 4
    assert shift > 0
    expected = [cosine(105) + shift, cosine(135) + shift]
    assert stranger_scores(embeddings, person, 2, far).tolist() == pytest.approx(expected, abs=1e-6)
    user_photos = strangers(at(200), at(230), from_user=True)
    assert stranger_scores(embeddings, person, 2, user_photos).tolist() == pytest.approx([cosine(105), cosine(135)], abs=1e-6)
    # Strangers nearer than the gallery's people to each other are not moved away.
    near = strangers(at(40), at(60))
    assert stranger_scores(embeddings, person, 2, near).tolist() == pytest.approx([cosine(35), cosine(35)], abs=1e-6)


def test_a_rate_says_on_how_many_faces_and_people_it_was_counted() -> None:
    embeddings, person = at(0, 10, 90, 100, 180), torch.tensor([0, 0, 1, 1, 2])
    others = strangers(at(45, 46), at(135, 136), at(225), at(315), at(270))
    calibration = calibrate(embeddings, person, 3, others)
    assert calibration.kept == Share(1.0, 4, 2, 4)
    assert calibration.refused == Share(1.0, 7, 5, 3)
    with_user_photos = calibrate(
        embeddings, person, 3, strangers(at(45, 46), at(135, 136), at(225), at(315), at(270), from_user=True)
    )
    assert with_user_photos.refused == Share(1.0, 7, 5, 5)
    assert "of 7 faces of 5 strangers (made), unknown: 100.0 % (44 to 100 %, Wilson 95 %, n = 3)" in str(calibration)


@pytest.mark.parametrize("threshold", [float("nan"), 1.0, -1.0, 1.5, float("inf")])
def test_what_is_no_cosine_to_pass_is_refused(threshold: float) -> None:
    with pytest.raises(ValueError, match=r"--threshold must be in \(-1, 1\), a cosine, got"):
        calibrate(at(0, 10), torch.tensor([0, 0]), 1, threshold=threshold)


def test_a_threshold_keeps_somebody_where_strangers_are_nearer_than_any_photo() -> None:
    assert best_threshold(torch.tensor([0.5, 0.6]), torch.tensor([0.9, 0.95, 1.0])) <= 0.6
    assert best_threshold(torch.tensor([1.0]), torch.tensor([1.0])) < 1


def _people(number: int, photos: int, seed: int) -> tuple[Tensor, Tensor]:
    """Embeddings of people about directions of their own."""
    rng = torch.Generator().manual_seed(seed)
    person = torch.arange(number).repeat_interleave(photos)
    centre = torch.randn(number, 16, generator=rng) + 0.6  # as in a trunk, any two people are a little alike
    return F.normalize(centre[person] + torch.randn(len(person), 16, generator=rng), dim=1), person


def _claims(with_strangers: bool, separation: float = 0.0) -> tuple[float, float]:
    """Over 60 galleries of five people: the share of strangers that it claims to refuse, and the share of others that it does refuse.
    separation: share of the mean face that is subtracted from the strangers at hand, and not from those that come.
    """
    claimed, true = [], []
    for seed in range(60):
        embeddings, person = _people(5, 4, seed)
        stranger_embeddings, stranger_person = _people(60, 2, 1000 + seed)
        stranger_embeddings = F.normalize(stranger_embeddings - separation * stranger_embeddings.mean(0), dim=1)
        at_hand = (
            Strangers(stranger_embeddings, stranger_person, tuple(map(str, range(60))), False, "made") if with_strangers else None
        )
        calibration = calibrate(embeddings, person, 5, at_hand)
        new, _ = _people(400, 1, 2000 + seed)
        assert calibration.refused is not None
        claimed.append(calibration.refused.value)
        true.append(float(((new @ make_templates(embeddings, person, 5).T).amax(1) < calibration.threshold).double().mean()))
    return sum(claimed) / 60, sum(true) / 60


@pytest.mark.parametrize(("with_strangers", "separation"), [(True, 0.0), (True, 0.6), (False, 0.0)])
def test_no_more_strangers_are_claimed_refused_than_are(with_strangers: bool, separation: float) -> None:
    claimed, true = _claims(with_strangers, separation)
    assert true - 0.08 < claimed < true + 0.02
