"""The packages that only fits of functions need: an extra of the installation."""

import importlib
from typing import Any


def require(door: str, package: str) -> Any:
    """Import a package of the extra "functional" at the public door named `door`.

    Raises:
      ImportError: if it is not installed, with the command that installs it.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ImportError(
            f"`{door}`: the package {package!r} must be installed; got {error}; pip install 'bnnwide[functional]'"
        ) from error
