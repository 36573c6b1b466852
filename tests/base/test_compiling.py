"""What torch warns of on Python 3.13.0, emitted here where its guards are built, while all warnings are errors."""

import warnings

import pytest
import torch

from mtl.base import compiling
from mtl.base.compiling import slow_guards_allowed
from mtl.edge.export import capture
from mtl.edge.quantize import simulate_int8
from mtl.models.cnn import small_cnn
from tests.conftest import SLOW_GUARDS


def test_only_this_warning_is_passed_over(python_3_13_0: list[str]) -> None:
    with slow_guards_allowed():
        warnings.warn(SLOW_GUARDS, RuntimeWarning, stacklevel=1)
        with pytest.raises(RuntimeWarning, match="another"):
            warnings.warn("another", RuntimeWarning, stacklevel=1)
    with pytest.raises(RuntimeWarning, match="Guards may run slower"):
        warnings.warn(SLOW_GUARDS, RuntimeWarning, stacklevel=1)


def test_other_pythons_keep_their_filters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "AFFECTED", False)
    filters = list(warnings.filters)
    with slow_guards_allowed():
        assert list(warnings.filters) == filters


def test_capture_and_quantisation_do_not_end_on_it(python_3_13_0: list[str]) -> None:
    trunk = small_cnn((1, 16, 16), channels=(8,), width=8)
    assert capture(trunk, (1, 16, 16), torch.float32, batch=1).graph is not None
    simulated = simulate_int8(trunk, torch.zeros(2, 1, 16, 16))
    assert simulated(torch.zeros(2, 1, 16, 16)).shape == (2, 8)
    assert len(python_3_13_0) >= 2
