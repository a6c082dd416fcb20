"""What the system refuses, as a sentence."""

import errno
import os
import subprocess

import pytest

from histfs.errors import StorageError, quoted, storage_errors

AS_SOMEBODY_ELSE = "run histfs as the user who makes the backups, or as root (sudo)"


@pytest.mark.parametrize(
    ("code", "uid", "advice"),
    [
        (errno.EACCES, 1000, AS_SOMEBODY_ELSE),
        (errno.EPERM, 1000, AS_SOMEBODY_ELSE),
        (errno.EACCES, 0, "try again"),
        (errno.ENOSPC, 1000, "try again"),
    ],
)
def test_who_may_not_is_told_who_may(monkeypatch, code, uid, advice):
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    with pytest.raises(StorageError) as caught, storage_errors(at=0, advice="try again"):
        raise OSError(code, "Refused", b"a")
    assert (caught.value.problem, caught.value.path, caught.value.at) == ("Refused", b"a", 0)
    assert caught.value.advice == advice


NAMES = [b"plain", b"a b", b"it's", b"a\nb", b"\xff 1", b"back\\slash", b"'\n", "\u202e".encode()]


@pytest.mark.parametrize("name", NAMES)
def test_a_path_in_a_command_is_one_word_of_a_shell(name):
    text = quoted(name)
    assert text.isprintable()
    command = ["bash", "-c", f"printf %s {text}"]
    done = subprocess.run(command, capture_output=True, check=True, env={"LC_ALL": "C.UTF-8"})
    assert done.stdout == name
