import pytest
import torch
from hydra_zen import instantiate
from torchvision.models import ResNet18_Weights
from torchvision.transforms.functional import normalize

from mtl.data.transforms import DRAWS, Augmentation, Normalise, to_float
from tests.composing import compose

PICTURE = torch.rand(3, 1, 12, 8, generator=torch.Generator().manual_seed(0))


def draws(**changed: float) -> torch.Tensor:
    draw = torch.full((3, DRAWS), 0.5)
    for place, value in changed.items():
        draw[:, int(place[1:])] = value
    return draw


def test_middle_of_every_range_changes_nothing() -> None:
    change = Augmentation(flip=True, rotation=20, scale=0.2, shift=0.2, brightness=0.3)
    assert torch.allclose(change(PICTURE, draws()), PICTURE, atol=1e-5)


@pytest.mark.parametrize("rotation", [0.0, 10.0])
def test_flip_mirrors_left_and_right(rotation: float) -> None:
    assert torch.allclose(Augmentation(rotation=rotation)(PICTURE, draws(_0=0.2)), PICTURE.flip(-1), atol=1e-5)


def test_a_quarter_turn_is_a_quarter_turn() -> None:
    square = PICTURE[:, :, :8]
    turned = Augmentation(flip=False, rotation=90)(square, draws(_1=1.0))
    assert torch.allclose(turned, square.rot90(-1, (2, 3)), atol=1e-5)


def test_half_a_turn_needs_the_aspect_ratio_of_a_picture_that_is_not_square() -> None:
    turned = Augmentation(flip=False, rotation=180)(PICTURE, draws(_1=1.0))
    assert torch.allclose(turned, PICTURE.rot90(2, (2, 3)), atol=1e-4)


def test_a_turn_moves_a_dot_by_the_same_angle_whatever_the_aspect_ratio() -> None:
    picture = torch.zeros(1, 1, 41, 21)
    picture[0, 0, 20, 20] = 1.0  # ten pixels right of the centre
    turned = Augmentation(flip=False, rotation=90)(picture, draws(_1=1.0)[:1])
    assert divmod(int(turned.argmax()), 21) == (30, 10)  # ten pixels below it


def test_shift_is_a_fraction_of_the_width() -> None:
    moved = Augmentation(flip=False, shift=0.25)(PICTURE, draws(_3=1.0))
    assert torch.allclose(moved[..., :6], PICTURE[..., 2:], atol=1e-5)


def test_brightness_scales_and_offsets() -> None:
    changed = Augmentation(flip=False, brightness=0.2)(PICTURE, draws(_5=1.0, _6=0.0))
    assert torch.allclose(changed, PICTURE * 1.2 - 0.1)


def test_cutout_greys_a_square_and_nothing_else() -> None:
    changed = Augmentation(flip=False, cutout=1 / 3)(PICTURE, draws(_7=0.5, _8=0.5))
    assert (changed != PICTURE).sum() == 3 * 3 * 3
    assert (changed[:, 0, 5:8, 3:6] == 0.5).all()


def test_an_image_is_changed_the_same_in_any_company() -> None:
    change = Augmentation(rotation=15, scale=0.1, shift=0.1, brightness=0.2, cutout=0.2)
    draw = torch.rand(3, DRAWS)
    batched = change(PICTURE, draw)
    for i in range(3):
        assert torch.allclose(change(PICTURE[i : i + 1], draw[i : i + 1])[0], batched[i], atol=1e-6)


def test_normalise_by_constants_and_by_image() -> None:
    assert torch.allclose(Normalise(mean=0.4, deviation=0.2)(PICTURE), (PICTURE - 0.4) / 0.2)
    normalised = Normalise(per_image=True)(PICTURE)
    assert torch.allclose(normalised.mean((1, 2, 3)), torch.zeros(3), atol=1e-5)
    assert torch.allclose(normalised.std((1, 2, 3), correction=0), torch.ones(3), atol=1e-2)


def test_equalised_pictures_do_not_depend_on_light_and_contrast() -> None:
    levels = (PICTURE * 100).round() / 255
    normalise = Normalise(equalise=True)
    assert torch.allclose(normalise(levels), normalise(levels * 2 + 20 / 255))
    assert not torch.allclose(Normalise()(levels), Normalise()(levels * 2 + 20 / 255), atol=0.5)


def test_normalise_as_published_weights_were_trained() -> None:
    published = instantiate(compose(["normalise=imagenet"]).normalise)
    colours = torch.rand(4, 3, 5, 6)
    # The numbers that torchvision's weights say of themselves.
    recipe = ResNet18_Weights.DEFAULT.transforms()
    assert torch.allclose(published(colours), normalize(colours, recipe.mean, recipe.std), atol=1e-6)
    grey = colours[:, :1]
    expected = (grey - sum(recipe.mean) / 3) / (sum(recipe.std) / 3)
    assert torch.allclose(published(grey), expected, atol=1e-6)
    assert torch.allclose(torch.vmap(published)(colours[:, None])[:, 0], published(colours))
    assert torch.allclose(Normalise(mean=[0.1, 0.2, 0.3], deviation=0.5)(colours)[:, 2], (colours[:, 2] - 0.3) / 0.5)


def test_numbers_for_other_channels_are_refused() -> None:
    with pytest.raises(ValueError, match="a number or a list of 2, the channels of the images, got 3"):
        Normalise(mean=[0.1, 0.2, 0.3])(torch.rand(1, 2, 4, 4))
    for mean, deviation in (([0.1, 0.2], [1.0, 1.0, 1.0]), ([], 1.0)):
        with pytest.raises(ValueError, match="must be a number, or a list with one for each channel, got"):
            Normalise(mean=mean, deviation=deviation)
    with pytest.raises(ValueError, match=r"normalise.deviation must be > 0, got"):
        Normalise(deviation=[0.1, 0.0, 0.2])


def test_bytes_become_fractions() -> None:
    assert to_float(torch.tensor([0, 51, 255], dtype=torch.uint8)).tolist() == pytest.approx([0, 0.2, 1])


def test_ranges_are_checked() -> None:
    with pytest.raises(ValueError, match=r"augmentation.rotation must be in \[0, 180\], got -1"):
        Augmentation(rotation=-1)
