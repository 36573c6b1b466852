import torch

from mtl.base.seeding import client_keys, random_bits, random_uniform, split_key


def by_hand(key: tuple[int, int], place: int) -> int:
    """The same hash in Python's own integers, reduced modulo 2^32 after each step."""
    whole = 2**32
    bits = (place + key[0]) % whole
    bits = ((bits ^ (bits >> 16)) * 0x7FEB352D) % whole
    bits ^= key[1] % whole
    bits = ((bits ^ (bits >> 15)) * 0x846CA68B) % whole
    return bits ^ (bits >> 16)


def test_bits_agree_with_pythons_integers() -> None:
    key = client_keys(3, "test", 1, [0, 5, 7])
    places = torch.tensor([0, 1, 2, 77, 2**31 - 1, -4], dtype=torch.int32)
    result = random_bits(key[:, None], places)
    for k, row in zip(key.tolist(), result.tolist(), strict=True):
        assert [bits % 2**32 for bits in row] == [by_hand((k[0], k[1]), place) for place in places.tolist()]


def test_draws_are_uniform_and_unrelated() -> None:
    key = client_keys(0, "test", 0, range(4))
    draws = random_uniform(key[:, None], torch.arange(100_000, dtype=torch.int32))
    assert draws.min() >= 0
    assert draws.max() < 1
    counts = torch.stack([row.histc(50, 0, 1) for row in draws])
    assert (counts - 2000).abs().max() < 240  # deviation 44
    neighbours = torch.corrcoef(torch.cat([draws[:, :-1], draws[:1, 1:]]))
    assert (neighbours - torch.eye(5)).abs().max() < 0.017  # deviation .0032


def test_parts_of_a_key_are_keys_of_their_own() -> None:
    key = client_keys(0, "test", 0, [1])
    parts = split_key(key, torch.arange(1000, dtype=torch.int32))
    assert len({tuple(part) for part in parts.tolist()}) == 1000
