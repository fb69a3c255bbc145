"""Move caches to the temporary directory if the home directory is not writable."""

import os
from collections.abc import MutableMapping
from pathlib import Path

from errors import UserError
from files import own_temporary_directory

# variable: its default path within the home directory
CACHES = {
    "XDG_CACHE_HOME": ".cache",  # tokenized data, torch's extensions, hub
    "MPLCONFIGDIR": ".config/matplotlib",
    "TRITON_HOME": "",
    "WANDB_CONFIG_DIR": ".config/wandb",
    "WANDB_DATA_DIR": ".local/share/wandb",
}


def use_writable_caches(environ: MutableMapping[str, str] = os.environ) -> list[str]:
    """Set the variables of CACHES whose directory is not writable to the temporary directory.

    Call it before anything is cached. It changes nothing if all directories are writable.

    Returns:
        A note for the user, if any variable was changed.

    Raises:
        UserError: the temporary directory is not writable either.
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
            f"neither the home directory nor a temporary one is writable ({error.strerror}): set XDG_CACHE_HOME and "
            "TMPDIR to writable directories."
        ) from None
    environ.update({name: str(directory / name.lower()) for name in moved})
    return [f"{places[moved[0]]} cannot be written: caches go to {directory}."]


def can_write(path: Path) -> bool:
    """Whether a directory can be written or created. A relative path, from an unknown home directory, cannot."""
    nearest = next((existing for existing in (path, *path.parents) if os.path.exists(existing)), path)
    return path.is_absolute() and os.path.isdir(nearest) and os.access(nearest, os.W_OK | os.X_OK)
