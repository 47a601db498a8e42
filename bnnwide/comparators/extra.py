"""Packages that come with an extra of the installation."""

import importlib
from typing import Any


def require(door: str, package: str, extra: str = "comparators") -> Any:
    """Import a package of an extra at the public door named `door`.

    Raises:
      ImportError: if it is not installed, with the command that installs it.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ImportError(
            f"`{door}`: the package {package!r} must be installed; got {error}; pip install 'bnnwide[{extra}]'"
        ) from error
