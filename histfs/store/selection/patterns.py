"""What a pattern of `--include` and `--exclude` is: a plain path, or a glob; of the whole path, or from the root on.

A pattern means what it means to rdiff-backup if it can match anything there: compared with the whole path, the root as
it was typed and below it a slash and the rest. What could match nothing is an error there; here it counts from the root
on, and without a slash it is a name, in any directory. Only what begins with a slash never does.
"""

from typing import NamedTuple

from histfs.errors import UsageError, printable
from histfs.store.entry import is_below
from histfs.store.selection.globs import SPECIAL, Automaton, Pattern, Star, parse_glob, with_levels

_IGNORE_CASE = b"ignorecase:"


class PlainPath(NamedTuple):
    """A path below the root without anything special in it."""

    path: bytes


def normalized(path: bytes) -> bytes:
    """A path as rdiff-backup writes it: no slash at the end, none doubled, no "." but for the path "." itself."""
    names = [name for name in path.split(b"/") if name not in (b"", b".")]
    return (b"/" if path.startswith(b"/") else b"") + b"/".join(names) or b"."


def joined(base: bytes, path: bytes) -> bytes:
    """The whole path of what lies at `path` in the root `base`."""
    if not path:
        return base
    return base + path if base.endswith(b"/") else base + b"/" + path


def below_base(path: bytes, base: bytes) -> bytes | None:
    """The path from the root on of the whole path `path`; None if it does not lie there. Slashes may be doubled."""
    absolute = b"/" if path.startswith(b"/") else b""
    path = absolute + b"/".join(name for name in path.split(b"/") if name)
    if base == b"/":
        return path[1:] if absolute else None
    return path[len(base) + 1 :] if path and is_below(path, base) else None


def path_in(path: bytes, root: bytes) -> bytes | None:
    """The path from `root` on that a person means, who begins it with the root or there; None if it lies elsewhere."""
    found = below_base(path, normalized(root))
    if found is not None:
        return found
    found = normalized(path)
    if found.startswith(b"/") or b".." in found.split(b"/"):
        return None
    return b"" if found == b"." else found


def parse_pattern(text: bytes, base: bytes) -> Pattern | PlainPath:
    """What the pattern `text` means for a tree whose root is at `base`, which is normalized; UsageError if nothing."""
    ignore_case = text[: len(_IGNORE_CASE)].lower() == _IGNORE_CASE
    glob = text[len(_IGNORE_CASE) :] if ignore_case else text
    if not glob:
        raise UsageError("a pattern is empty", advice="it comes from an unset variable, or an option too many")
    is_plain = not ignore_case and not any(byte in SPECIAL for byte in glob)
    if is_plain:
        path = below_base(glob, base)
        if path is not None:
            return PlainPath(path)
    else:
        tokens = parse_glob(glob, ignore_case=ignore_case)
        begin = joined(base, b"x")[:-1]
        if not ignore_case and glob.startswith(begin) and not any(byte in SPECIAL for byte in base):
            return Pattern(tokens[len(begin) :], is_whole=False)  # the same, and much shorter
        whole = Pattern(tokens, is_whole=True)
        if (b"/" in glob or Star.PATH in tokens) and Automaton([whole], [True], base).can_match():
            return whole
    return _parse_relative(text, glob, base, ignore_case=ignore_case, is_plain=is_plain)


def _parse_relative(text: bytes, glob: bytes, base: bytes, *, ignore_case: bool, is_plain: bool) -> Pattern | PlainPath:
    path = glob
    while path.startswith(b"./"):
        path = path[2:].lstrip(b"/") if is_plain else path[2:]
    only_directories = path.endswith(b"/")
    path = path.rstrip(b"/")
    names = path.split(b"/")
    if glob.startswith(b"/") or not path or b"." in names or b".." in names:
        raise UsageError(
            f"the pattern {printable(text)} cannot match any files in {printable(base)}",
            advice="begin it with the directory as it is typed, or with **; or write it without a slash in front: "
            "then it counts from the directory on, or, if no slash is in it, is a name anywhere",
        )
    is_name = b"/" not in glob.rstrip(b"/")
    if is_plain and not is_name and not only_directories:
        return PlainPath(b"/".join(name for name in names if name))
    tokens = with_levels(parse_glob(path, ignore_case=ignore_case))
    return Pattern((Star.LEVELS, *tokens) if is_name else tokens, is_whole=False, only_directories=only_directories)
