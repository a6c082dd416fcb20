"""`histfs umount MNT`: end a mount."""

import argparse

from histfs.cli import options
from histfs.cli.output import Output

DESCRIPTION = """\
Unmount what `histfs mount` has mounted on MNT. Also the way to clean up a mount
whose process has died ("Transport endpoint is not connected")."""

EPILOG = """\
If MNT is busy, some program has a file or its working directory in it, perhaps
your own shell. Leave it, or use --lazy.

examples:
  histfs umount ~/history
  histfs umount --lazy ~/history

exit codes:
  0  unmounted
  1  not unmounted: not a mount of histfs, or busy"""

IF_STOPPED = "it may still be mounted"


def add_to(verbs: "options.Verbs") -> None:
    parser = options.add_verb(verbs, "umount", "end a mount", description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument(
        "--lazy", action="store_true", help="take MNT away at once, and end when the last file in it is closed"
    )
    parser.add_argument("mountpoint", metavar="MNT", type=options.path, help="where it is mounted")
    parser.set_defaults(run=run, if_stopped=IF_STOPPED)


def run(arguments: argparse.Namespace, _output: Output) -> int:
    from histfs.mount import unmount

    unmount(arguments.mountpoint, lazy=arguments.lazy)
    return 0
