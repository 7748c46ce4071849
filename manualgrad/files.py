"""Files written whole, or not at all."""

import json
import os
import pathlib
import tempfile
from typing import Any


def write_json(file: pathlib.Path, content: Any) -> None:
    """As write_bytes; numbers that JSON has no word for raise ValueError."""
    text = json.dumps(content, indent=1, sort_keys=True, allow_nan=False)
    write_bytes(file, f"{text}\n".encode())


def write_bytes(file: pathlib.Path, content: bytes) -> None:
    """Another process sees the old file or the new, never a part of one.

    Raises OSError where nothing can be written; what stood there before then stays.
    """
    handle, temporary = tempfile.mkstemp(dir=file.parent, suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as out:
            out.write(content)
        os.chmod(temporary, 0o644)
        os.replace(temporary, file)
    except BaseException:
        os.unlink(temporary)
        raise
