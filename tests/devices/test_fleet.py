"""Which device each client is."""

from collections import Counter
from typing import Any

import pytest

from mtl.devices.fleet import Fleet

BOARDS = {"raspberry_pi_4": 3, "jetson_nano": 5}


def names(fleet: Fleet, num_clients: int, seed: int = 0) -> list[str]:
    profiles, device = fleet.assign(num_clients, seed=seed)
    return [profiles[place].name for place in device.tolist()]


def test_counts_are_dealt_out_exactly_in_an_order_of_the_seed() -> None:
    dealt = {tuple(names(Fleet(BOARDS), 8, seed)) for seed in range(5)}
    assert len(dealt) > 1
    assert all(Counter(devices) == BOARDS for devices in dealt)
    assert names(Fleet(BOARDS), 8) == names(Fleet(BOARDS), 8)


def test_shares_are_drawn_for_each_client() -> None:
    fleet = Fleet({"phone_low": 0.25, "phone_mid": 0.75, "phone_high": 0.0})
    drawn = names(fleet, 4000)
    # Binomial: four standard deviations are 110.
    assert abs(drawn.count("phone_low") - 1000) < 110
    assert "phone_high" not in drawn
    # A client's device does not depend on how many others there are.
    assert names(fleet, 10) == drawn[:10]


def test_one_device_for_all_is_a_share_of_one() -> None:
    assert names(Fleet({"rk3588": 1}), 3) == ["rk3588"] * 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mix": {"abacus": 1.0}}, "fleet.mix has the unknown device abacus; choose from camera_mcu, jetson_nano"),
        ({"mix": BOARDS}, "fleet.mix must be whole numbers that add up to the 7 clients, or shares that add up to 1"),
        ({"mix": {"rk3588": 3.5, "jetson_nano": 3.5}}, "fleet.mix must be whole numbers"),
        ({"mix": {"rk3588": -1}}, "fleet.mix.rk3588 must be a number or a share of clients, >= 0, got -1"),
        ({"mix": {"rk3588": "many"}}, "fleet.mix.rk3588 must be a number or a share of clients, >= 0, got many"),
        ({"mix": {}}, "fleet.mix must map device profiles to numbers or shares"),
        ({"deadline": 5.0}, r"fleet.deadline needs devices: set fleet=mix fleet.mix=\{DEVICE: SHARE, ...\}"),
        ({"wait_for": 5}, "fleet.wait_for needs devices"),
        ({"mix": {"rk3588": 1}, "deadline": 0}, "fleet.deadline must be > 0 seconds, got 0"),
        ({"mix": {"rk3588": 1}, "wait_for": 0}, "fleet.wait_for must be >= 1, got 0"),
        ({"mix": {"rk3588": 1}, "memory": "buy"}, "fleet.memory must be one of refuse, skip, shrink, got buy"),
        ({"mix": {"rk3588": 1}, "profiles": 3}, "fleet.profiles must be a YAML file or device profiles, got 3"),
    ],
)
def test_a_wrong_fleet_is_refused_by_the_name_of_its_field(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Fleet(**options).assign(7, seed=0)
