"""C sources compiled at first use: once a user and compiler, and with one clear error where that is not possible."""

import os

import pytest

from psp.errors import KernelError
from psp.native import digest_of, library, load

FLAGS = ("-O1",)


@pytest.fixture
def source(tmp_path):
    """int answer(void) { return 42; }, in a file whose compiled code goes into a folder of the test's own."""
    path = tmp_path / "answer.c"
    path.write_text("int answer(void) { return 42; }")
    load.cache_clear()
    yield path
    load.cache_clear()


def test_what_is_compiled_runs(source, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert load(source, FLAGS).answer() == 42


def test_it_is_compiled_once_for_each_source_compiler_and_flags(source, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = library(source, FLAGS)
    made = first.stat().st_mtime_ns
    assert first.parent == tmp_path / "psp"
    assert library(source, FLAGS) == first
    assert first.stat().st_mtime_ns == made
    assert set(os.listdir(first.parent)) == {first.name, digest_of(first).name}, "nothing half made is left"
    assert library(source, ("-O2",)) != first
    monkeypatch.setenv("CC", "cc -g")
    assert library(source, FLAGS) != first
    source.write_text("int answer(void) { return 43; }")
    assert load(source, FLAGS).answer() == 43


@pytest.mark.parametrize("left", [0, 4096])
def test_a_damaged_library_is_compiled_anew(source, monkeypatch, tmp_path, left):
    """Half of one would end the process that loads it, every time."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = library(source, FLAGS)
    path.write_bytes(path.read_bytes()[:left])
    assert load(source, FLAGS).answer() == 42
    digest_of(path).unlink()
    assert library(source, FLAGS) == path
    assert digest_of(path).is_file()


def test_a_folder_that_nothing_may_be_run_from_is_named(source, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def refuse(path):
        raise OSError("failed to map segment from shared object")

    monkeypatch.setattr("ctypes.CDLL", refuse)
    with pytest.raises(KernelError, match=r"answer-.*\.so cannot be loaded \(failed to map.*XDG_CACHE_HOME"):
        load(source, FLAGS)


def test_it_is_compiled_anew_when_a_header_changes(source, monkeypatch, tmp_path):
    """Also one that only another header includes; headers of the system are the compiler's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    source.write_text('#include <stdlib.h>\n  #  include "outer.h"\nint answer(void) { return INNER + OUTER; }')
    (tmp_path / "outer.h").write_text('#pragma once\n#include "inner.h"\n#include "outer.h"\n#define OUTER 40')
    (tmp_path / "inner.h").write_text("#define INNER 2")
    assert load(source, FLAGS).answer() == 42
    load.cache_clear()
    (tmp_path / "inner.h").write_text("#define INNER 3")
    assert load(source, FLAGS).answer() == 43


def test_a_home_that_cannot_be_written_to_is_no_hindrance(source, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert library(source, FLAGS).is_file()


@pytest.mark.parametrize(
    ("compiler", "message"), [("no-such-compiler", "no-such-compiler"), ("cc --no-such-flag", "no-such-flag")]
)
def test_no_compiler_is_one_clear_error(source, monkeypatch, compiler, message):
    monkeypatch.setenv("CC", compiler)
    with pytest.raises(
        KernelError, match=rf"answer\.c cannot be compiled \(.*{message}.*install gcc or clang, or name"
    ):
        load(source, FLAGS)


def test_the_reason_is_the_compilers_own(source, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    source.write_text("#error out of cheese")
    with pytest.raises(KernelError, match="out of cheese"):
        load(source, FLAGS)
