"""Profiles come whole and with their sources, or an error names the field."""

import re
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import yaml

from mtl.devices.profiles import FIELDS, load_profiles

MINE: dict[str, Any] = dict.fromkeys(FIELDS, 1.0)


def test_every_number_that_comes_along_has_its_source() -> None:
    content = yaml.safe_load((resources.files("mtl.devices") / "devices.yaml").read_text())
    for name, fields in content.items():
        for field, entry in fields.items():
            assert set(entry) == {"value", "source"}, (name, field)
            assert len(entry["source"]) > 8, (name, field)


def test_the_devices_that_come_along_are_in_the_order_of_their_class() -> None:
    profiles = load_profiles()
    assert set(profiles) == {
        *("raspberry_pi_zero_2w", "raspberry_pi_4", "raspberry_pi_5", "rk3588", "jetson_nano", "jetson_orin_nano"),
        *("phone_low", "phone_mid", "phone_high", "camera_mcu"),
    }
    speed = {name: profile.peak_flop_per_second * profile.efficiency for name, profile in profiles.items()}
    assert speed["raspberry_pi_zero_2w"] < speed["raspberry_pi_4"] < speed["raspberry_pi_5"] < speed["jetson_orin_nano"]
    assert speed["camera_mcu"] < speed["phone_low"] < speed["phone_mid"] < speed["phone_high"]
    assert all(profile.memory_bytes < 2**34 for profile in profiles.values())


def test_a_peak_is_what_the_cores_do_in_single_precision() -> None:
    content = yaml.safe_load((resources.files("mtl.devices") / "devices.yaml").read_text())
    for name, fields in content.items():
        peak = fields["peak_flop_per_second"]
        cores = re.findall(r"(\d+) [\w-]+ x ([\d.]+) GHz x (\d+) FLOP a cycle", peak["source"])
        assert cores, name
        by_hand = sum(int(number) * float(clock) * 1e9 * int(flop) for number, clock, flop in cores)
        assert float(peak["value"]) == pytest.approx(by_hand, rel=1e-3), name


def test_devices_of_one_kind_differ_as_their_cores_do() -> None:
    speed = {name: profile.peak_flop_per_second * profile.efficiency for name, profile in load_profiles().items()}
    # Eight Cortex-A53 at 1.8 GHz against four at 1.0 GHz.
    assert speed["phone_low"] / speed["raspberry_pi_zero_2w"] == pytest.approx(8 * 1.8 / (4 * 1.0))
    # Four cores each: a Cortex-A76 at 2.4 GHz does 16 FLOP a cycle, a Cortex-A72 at 1.8 GHz does 8.
    assert speed["raspberry_pi_5"] / speed["raspberry_pi_4"] == pytest.approx(2.4 * 16 / (1.8 * 8))


def test_a_users_profile_is_a_file_or_its_content_and_wins_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        yaml.safe_dump({"mine": MINE, "raspberry_pi_4": {**MINE, "up_bit_per_second": {"value": 7, "source": "a guess"}}})
    )
    from_file = load_profiles(str(path))
    assert from_file["mine"].latency_seconds == 1
    assert from_file["raspberry_pi_4"].up_bit_per_second == 7
    assert from_file["raspberry_pi_5"] == load_profiles()["raspberry_pi_5"]
    assert load_profiles({"mine": MINE})["mine"] == from_file["mine"]


def test_numbers_may_be_written_as_people_write_them(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    fields = "".join(f"  {field}: {'1e9' if field == 'peak_flop_per_second' else 1}\n" for field in FIELDS)
    path.write_text(f"mine:\n{fields}")
    assert load_profiles(str(path))["mine"].peak_flop_per_second == 1e9


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"peak_flops": 1}, "device mine has the unknown field peak_flops; the fields are peak_flop_per_second, efficiency"),
        ({"radio_watts": None}, r"device mine: radio_watts must be a number or \{value: number, source: text\}, got None"),
        ({"idle_watts": 2.0}, "device mine: idle_watts must be finite and at most compute_watts, 1, got 2"),
        ({"efficiency": 1.5}, r"device mine: efficiency must be finite and in \(0, 1\], got 1.5"),
        ({"memory_bytes": 0}, "device mine: memory_bytes must be finite and > 0, got 0"),
        ({"latency_seconds": -1}, "device mine: latency_seconds must be finite and >= 0, got -1"),
        ({"down_bit_per_second": "fast"}, "device mine: down_bit_per_second must be a number"),
        ({"down_bit_per_second": float("nan")}, "device mine: down_bit_per_second must be finite"),
        ({"up_bit_per_second": float("inf")}, "device mine: up_bit_per_second must be finite"),
        ({"up_bit_per_second": True}, "device mine: up_bit_per_second must be a number"),
        ({"up_bit_per_second": {"source": "nobody"}}, "device mine: up_bit_per_second must be a number"),
    ],
)
def test_a_wrong_field_is_named(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_profiles({"mine": MINE | changed})


def test_missing_fields_and_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="device mine lacks efficiency, down_bit_per_second"):
        load_profiles({"mine": {"peak_flop_per_second": 1}})
    with pytest.raises(ValueError, match=r"fleet.profiles must be a YAML file of device profiles, got .*none.yaml"):
        load_profiles(str(tmp_path / "none.yaml"))
    (tmp_path / "list.yaml").write_text("- mine\n")
    with pytest.raises(ValueError, match=r"list.yaml must map names of devices to their fields, got \['mine'\]"):
        load_profiles(str(tmp_path / "list.yaml"))
    (tmp_path / "torn.yaml").write_text("mine: {a: ")
    with pytest.raises(ValueError, match=r"fleet.profiles must be a YAML file .*torn.yaml"):
        load_profiles(str(tmp_path / "torn.yaml"))
