"""The secret of a root, with which the page signs sessions, so that they survive a restart."""

import contextlib
import os
import secrets
import tempfile
from pathlib import Path

SECRET_FILE, SECRET_BYTES = Path(".webui", "secret"), 32


def read_secret(root: Path) -> bytes:
    """The secret below a root, made on first use; sessions last as long as it. Where it cannot be kept, a new one."""
    path = root / SECRET_FILE
    try:
        path.parent.mkdir(exist_ok=True)
        if not path.exists():
            with tempfile.NamedTemporaryFile(dir=path.parent) as file:  # readable by its owner alone
                file.write(secrets.token_bytes(SECRET_BYTES))
                file.flush()
                with contextlib.suppress(FileExistsError):
                    os.link(file.name, path)
        secret = path.read_bytes()
    except OSError:
        secret = b""
    return secret if len(secret) == SECRET_BYTES else secrets.token_bytes(SECRET_BYTES)
