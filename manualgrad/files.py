"""Files written whole, or not at all."""

import json
import os
import pathlib
import tempfile
from typing import Any


def write_json(file: pathlib.Path, content: Any) -> None:
    """Another process sees the old file or the new, never a part of one.

    Raises OSError where nothing can be written; what stood there before then stays.
    """
    handle, temporary = tempfile.mkstemp(dir=file.parent, suffix=".tmp")
    try:
        with os.fdopen(handle, "w") as out:
            json.dump(content, out, indent=1, sort_keys=True, allow_nan=False)
            out.write("\n")
        os.chmod(temporary, 0o644)
        os.replace(temporary, file)
    except BaseException:
        os.unlink(temporary)
        raise
