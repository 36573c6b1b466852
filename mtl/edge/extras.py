"""Libraries that only the way to a device needs: the extra `edge`, and ExecuTorch by itself."""

import importlib
from typing import Any


def require(module: str, package: str) -> Any:
    """The module, imported. Raises ValueError where its package is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        how = "pip install executorch" if package == "executorch" else "pip install -e '.[edge]'"
        raise ValueError(f"{package} must be installed for this ({how}), and it cannot be imported: {error}") from error
