"""Where the files of this repository lie, and writing one whole or not at all, whatever kills the process."""

import json
import os
from pathlib import Path

# The repository, its profiles and results; of a package that is installed elsewhere, the folder one works in.
_beside = Path(__file__).resolve().parents[1]
ROOT = _beside if (_beside / "dvc.yaml").is_file() else Path.cwd()


def write_json(value, path):
    """Write a JSON-ready value, creating its folder: to the side first, then in place at once."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.{os.getpid()}.part")
    # Names of files need not be UTF-8: what of them is not becomes an escape of JSON
    aside.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", "utf-8", "backslashreplace")
    os.replace(aside, path)
