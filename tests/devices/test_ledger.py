"""Modelled time and energy by hand."""

import pytest
import torch

from mtl.devices.ledger import Ledger, Workload
from mtl.devices.profiles import DeviceProfile

QUICK = DeviceProfile("quick", 1e9, 0.5, 8e6, 4e6, 0.1, 10.0, 1.0, 2.0, 1e9)
SLOW = DeviceProfile("slow", 1e8, 0.25, 1e6, 1e6, 0.0, 3.0, 0.5, 1.0, 1e6)


def ledger_of(flops: float = 1e9, down: float = 1e6, up: float = 1e6) -> Ledger:
    """Clients 0 and 2 are slow, 1 is quick."""
    each = torch.ones(3, dtype=torch.float64)
    return Ledger.of(Workload(flops * each, down * each, up * each, each), [QUICK, SLOW], torch.tensor([1, 0, 1]))


def test_time_by_hand_for_a_fleet_of_two_profiles() -> None:
    ledger = ledger_of()
    assert ledger.down.tolist() == pytest.approx([8.0, 1.1, 8.0])
    assert ledger.compute.tolist() == pytest.approx([40.0, 2.0, 40.0])
    assert ledger.up.tolist() == pytest.approx([8.0, 2.1, 8.0])
    assert ledger.seconds.tolist() == pytest.approx([56.0, 5.2, 56.0])


def test_energy_by_hand_for_a_fleet_of_two_profiles() -> None:
    ledger = ledger_of()
    # idle throughout, the rest of the power at work, the radio on the link
    expected = [1 * 56 + 2 * 40 + 0.5 * 16, 2 * 5.2 + 8 * 2 + 1 * 3.2]
    assert ledger.joules(torch.tensor([0, 1]), torch.full((2,), torch.inf)).tolist() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("until", "joules"),
    [(0.0, 0.0), (1.0, 2 + 1), (2.1, 2 * 2.1 + 8 * 1.0 + 1.1), (4.1, 2 * 4.1 + 8 * 2 + 1.1 + 1.0), (99.0, 29.6)],
)
def test_a_client_that_is_stopped_has_drawn_for_what_it_did(until: float, joules: float) -> None:
    assert ledger_of().joules(torch.tensor([1]), torch.tensor([until])).item() == pytest.approx(joules)


def test_a_link_that_carries_nothing_takes_no_time() -> None:
    ledger = ledger_of(down=0, up=0)
    assert ledger.seconds.tolist() == pytest.approx([40.0, 2.0, 40.0])
