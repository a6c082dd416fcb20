"""`histfs info`: what this program runs on, for reports of bugs."""

import argparse
import sys

from histfs import __version__
from histfs.cli import options
from histfs.cli.output import Output

DESCRIPTION = """\
Print what histfs runs on, to go with a report of a bug: versions, and how the
command line was understood. It is a YAML document, with the keys that
rdiff-backup has; with --json it is JSON alone."""

EPILOG = """\
examples:
  histfs info

exit codes:
  0  it was printed
  1  it could not be printed"""

_LIBRARIES = ("cffi", "isal", "pyfuse3", "rich", "trio")


def add_to(verbs: "options.Verbs") -> None:
    parser = options.add_verb(verbs, "info", "print what this program runs on", description=DESCRIPTION, epilog=EPILOG)
    options.add_json(parser)
    parser.set_defaults(run=run, if_stopped="nothing was done")


def run(arguments: argparse.Namespace, output: Output) -> int:
    import platform

    parsed = {name: value for name, value in vars(arguments).items() if _is_plain(value) and name != "argv"}
    if not arguments.json:
        output.text("---")
    output.document(
        {
            "exec": {
                "api_version": {"actual": arguments.api_version or 201, "default": 201, "min": 200, "max": 201},
                "argv": arguments.argv,
                "parsed": parsed,
                "version": __version__,
            },
            "python": {
                "executable": sys.executable,
                "name": sys.implementation.name,
                "version": platform.python_version(),
            },
            "system": {"platform": platform.platform(), "fs_encoding": sys.getfilesystemencoding()},
            "libraries": {name: _version(name) for name in _LIBRARIES},
        }
    )
    if not arguments.json:
        output.text("...")
    return 0


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, bool | int | str)


def _version(library: str) -> str | None:
    from importlib import metadata

    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return None
