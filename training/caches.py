"""Where caches lie when the home directory cannot be written: under the temporary directory."""

import os
from collections.abc import MutableMapping
from pathlib import Path

from errors import UserError
from files import own_temporary_directory

# variable: the place in the home directory that stands for it where it is not set
CACHES = {
    "XDG_CACHE_HOME": ".cache",  # tokenized data, torch's extensions, hub
    "MPLCONFIGDIR": ".config/matplotlib",
    "TRITON_HOME": "",
    "WANDB_CONFIG_DIR": ".config/wandb",
    "WANDB_DATA_DIR": ".local/share/wandb",
}


def use_writable_caches(environ: MutableMapping[str, str] = os.environ) -> list[str]:
    """Point the variables of CACHES whose place cannot be written to the temporary directory.

    Call it before anything is cached. It changes nothing where all places can be written.

    Returns:
        A sentence that says so, if any was changed.

    Raises:
        UserError: the temporary directory cannot be written either.
    """
    home = environ.get("HOME") or os.path.expanduser("~")
    places = {name: Path(environ.get(name) or Path(home, below)) for name, below in CACHES.items()}
    moved = [name for name, place in places.items() if not can_write(place)]
    if not moved:
        return []
    try:
        directory = own_temporary_directory()
    except OSError as error:
        raise UserError(
            f"neither the home directory nor a temporary one can be written ({error.strerror}): set XDG_CACHE_HOME and "
            "TMPDIR to directories that can."
        ) from None
    environ.update({name: str(directory / name.lower()) for name in moved})
    return [f"{places[moved[0]]} cannot be written: caches go to {directory}."]


def can_write(path: Path) -> bool:
    """Whether the directory can be written, or made. A relative one is what is left of a home that nobody knows."""
    nearest = next((one for one in (path, *path.parents) if os.path.exists(one)), path)
    return path.is_absolute() and os.path.isdir(nearest) and os.access(nearest, os.W_OK | os.X_OK)
