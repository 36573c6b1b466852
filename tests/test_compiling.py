"""What torch warns of on Python 3.13.0, emitted here where its guards are built, while all warnings are errors."""

import warnings
from typing import Any

import pytest
import torch
from torch import nn

from mtl import compiling
from mtl.compiling import slow_guards_allowed
from mtl.edge.export import capture
from mtl.edge.quantize import simulate_int8
from mtl.models.cnn import small_cnn

TORCHS = "Guards may run slower on Python 3.13.0. Consider upgrading to Python 3.13.1+."


@pytest.fixture
def python_3_13_0(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every call of torch.export.export warns as there; returns what was captured."""
    seen: list[str] = []
    real = torch.export.export

    def export(module: nn.Module, *arguments: Any, **options: Any) -> Any:
        seen.append(type(module).__name__)
        warnings.warn(TORCHS, RuntimeWarning, stacklevel=2)
        return real(module, *arguments, **options)

    monkeypatch.setattr(compiling, "AFFECTED", True)
    monkeypatch.setattr(torch.export, "export", export)
    warnings.simplefilter("error")  # before the exception in setup.cfg; pytest undoes it
    return seen


def test_only_this_warning_is_passed_over(python_3_13_0: list[str]) -> None:
    with slow_guards_allowed():
        warnings.warn(TORCHS, RuntimeWarning, stacklevel=1)
        with pytest.raises(RuntimeWarning, match="another"):
            warnings.warn("another", RuntimeWarning, stacklevel=1)
    with pytest.raises(RuntimeWarning, match="Guards may run slower"):
        warnings.warn(TORCHS, RuntimeWarning, stacklevel=1)


def test_other_pythons_keep_their_filters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "AFFECTED", False)
    filters = list(warnings.filters)
    with slow_guards_allowed():
        assert list(warnings.filters) == filters


def test_capture_and_quantisation_do_not_end_on_it(python_3_13_0: list[str]) -> None:
    trunk = small_cnn((1, 16, 16), channels=(8,), width=8)
    assert capture(trunk, (1, 16, 16), torch.float32, batch=1).graph is not None
    warnings.filterwarnings("ignore", category=DeprecationWarning)  # of torchao's own imports
    simulated = simulate_int8(trunk, torch.zeros(2, 1, 16, 16))
    assert simulated(torch.zeros(2, 1, 16, 16)).shape == (2, 8)
    assert len(python_3_13_0) >= 2
