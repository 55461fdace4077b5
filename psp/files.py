"""Where the files of this repository lie; writing one whole or not at all, whatever kills the process; seals."""

import hashlib
import json
import os
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from filelock import FileLock, Timeout

from psp.errors import ConfigError

# The repository, its profiles and results; of a package that is installed elsewhere, the folder one works in.
_beside = Path(__file__).resolve().parents[1]
ROOT = _beside if (_beside / "dvc.yaml").is_file() else Path.cwd()
SEAL = "sha256"


def write_bytes(content, path):
    """Write a file, creating its folder: to the side first, onto the disk, then in place at once."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.{uuid4().hex}.part")
    try:
        with open(aside, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)  # such as half a file on a full disk


def write_json(value, path):
    """Write a JSON-ready value by `write_bytes`."""
    # Names of files need not be UTF-8: what of them is not becomes an escape of JSON
    text = json.dumps(value, indent=1, ensure_ascii=False) + "\n"
    write_bytes(text.encode("utf-8", "backslashreplace"), path)


def read_json(path, remedy):
    """The dict in a JSON file. Raises ConfigError, ending in `remedy`, for a file that has none."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:  # no JSON, or no UTF-8
        raise ConfigError(f"{path} is no JSON file ({error}); {remedy}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path} holds no names and values but {value!r:.40}; {remedy}")
    return value


@contextmanager
def locked(path, wait=True):
    """While it lasts no other process has the lock of the file at `path`; without effect where files have no locks.

    Raises filelock.Timeout where another has it and `wait` is false.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(f"{path}.lock", timeout=-1 if wait else 0, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout:  # an OSError, too
        raise
    except (NotImplementedError, OSError):  # of some network file systems
        yield
        return
    try:
        yield
    finally:
        lock.release()


def sealed(value):
    """A JSON-ready dict with the sha256 of its entries as one more of them: what is changed later no longer fits it."""
    return {**value, SEAL: _sha256(value)}


def is_sealed(value):
    """Whether a dict is as `sealed` gave it, however it was written down since."""
    return value.get(SEAL) == _sha256(value)


def _sha256(value):
    entries = {name: entry for name, entry in value.items() if name != SEAL}
    return hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()
