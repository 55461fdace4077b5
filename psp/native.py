"""C and C++ sources, compiled for this machine at first use.

Compiled code is kept in a folder of the user's own (~/.cache/psp), under a name that follows from the source, the
compiler, the C library and the processor's features, so that nobody runs code made for another machine.
"""

import atexit
import ctypes
import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path

from psp.errors import KernelError
from psp.files import write_bytes

NATIVE = ("-march=native" if platform.machine() in ("x86_64", "AMD64", "i686") else "-mcpu=native",)
INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.MULTILINE)
# By a source's suffix: the environment variable that names its compiler, the usual one, and the compiler's language.
COMPILERS = {".c": ("CC", "cc", "c"), ".cpp": ("CXX", "c++", "c++")}


@cache
def load(source, flags):
    """The shared library of a source file (a Path) compiled with `flags` (a tuple), for calls through ctypes.

    Raises KernelError, with the reason and the remedy, where it cannot be compiled or loaded.
    """
    try:
        path = library(source, flags)
    except (OSError, subprocess.CalledProcessError) as error:
        said = (getattr(error, "stderr", "") or str(error)).strip().splitlines()
        reason = next((line for line in said if "error:" in line), said[-1])
        variable = COMPILERS[source.suffix][0]
        raise KernelError(
            f"{source.name} cannot be compiled ({reason}); install gcc or clang, or name a compiler in {variable}"
        ) from error
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise KernelError(
            f"{path} cannot be loaded ({error}); name a folder that programs may be run from in XDG_CACHE_HOME"
        ) from error


def library(source, flags):
    """Path of the compiled source. Raises OSError or CalledProcessError if there is none and none can be made."""
    variable, usual, language = COMPILERS[source.suffix]
    compiler = shlex.split(os.environ.get(variable) or usual)
    key = hashlib.sha256(b"".join(path.read_bytes() for path in files(source)))
    key.update(repr((compiler, flags, NATIVE)).encode())
    # All macros that are predefined: they name the compiler's version and every feature of this processor.
    key.update(output([*compiler, *NATIVE, "-dM", "-E", "-x", language, os.devnull]).encode())
    key.update(repr(platform.libc_ver()).encode())
    path = cache_folder() / f"{source.stem}-{key.hexdigest()[:32]}.so"
    if not is_whole(path):
        command = [*compiler, *flags, *NATIVE, "-shared", "-fPIC", str(source)]
        with tempfile.TemporaryDirectory(dir=path.parent) as aside:
            made, began = Path(aside) / path.name, time.perf_counter()
            print(f"psp: compiling {source.name} for this processor, once …", end=" ", file=sys.stderr, flush=True)
            output([*command, "-o", str(made)])
            content = made.read_bytes()
        write_bytes(hashlib.sha256(content).digest(), digest_of(path))
        write_bytes(content, path)
        print(f"{time.perf_counter() - began:.1f} s", file=sys.stderr)
    return path


def digest_of(path):
    """Beside a compiled file, that of its sha256: half a library ends the process that loads it."""
    return path.with_suffix(".sha256")


def is_whole(path):
    """Whether a compiled file is there, as it was made."""
    try:
        return hashlib.sha256(path.read_bytes()).digest() == digest_of(path).read_bytes()
    except OSError:
        return False


def files(source):
    """A source file and all headers of its own that it includes, directly or through another one."""
    found = [source]
    for path in found:  # which grows
        headers = (path.with_name(name) for name in INCLUDE.findall(path.read_text(encoding="utf-8")))
        found += [header for header in headers if header not in found]
    return found


def output(command):
    """What a command prints. Raises CalledProcessError, with its stderr, where it fails."""
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def cache_folder():
    """The user's cache folder, or a temporary one where that can't be written to."""
    try:
        path = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "psp"
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if os.access(path, os.W_OK):
            return path
    except (OSError, RuntimeError):  # no home at all is a RuntimeError
        pass
    return _temporary_folder()


@cache
def _temporary_folder():
    """A folder for as long as this process lives."""
    folder = tempfile.mkdtemp(prefix="psp-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)
