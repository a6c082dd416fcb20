"""Being somebody else for a while: what is tested as root must be tested as an ordinary user too."""

import os
import traceback
from collections.abc import Callable
from pathlib import Path

NOBODY = 65_534


def as_ordinary_user(action: Callable[[], None]) -> None:
    """Run `action` without root's privileges: in a child process if this one has them.

    What it needs must be imported already, as the user may not be able to read the modules.
    """
    if os.geteuid() != 0:
        action()
        return
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        text = "it did not even begin"
        try:
            become(NOBODY)
            action()
            text = ""
        except BaseException:
            text = traceback.format_exc()
        finally:
            os.write(writer, text.encode("utf-8", "backslashreplace")[-60_000:])
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as pipe:
        said = pipe.read().decode()
    os.waitpid(child, 0)
    assert not said, said


def become(user: int) -> None:
    os.setgroups([])
    os.setgid(user)
    os.setuid(user)


def give_away(*places: Path) -> None:
    """Make an ordinary user the owner of `places` and of all that is in them, if this is root."""
    if os.geteuid() != 0:
        return
    for place in places:
        os.chown(place, NOBODY, NOBODY, follow_symlinks=False)
        for above, directories, files in os.walk(place):
            for name in (*directories, *files):
                os.chown(os.path.join(above, name), NOBODY, NOBODY, follow_symlinks=False)
