"""Optional libraries of this package: those of the extra `edge`, and ExecuTorch."""

import importlib
from typing import Any


def require(module: str, package: str) -> Any:
    """Import and return a module.

    Raises:
        ValueError: the package is not installed; the message says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        how = "pip install executorch" if package == "executorch" else "pip install -e '.[edge]'"
        raise ValueError(f"{package} must be installed for this ({how}), and it cannot be imported: {error}") from error
