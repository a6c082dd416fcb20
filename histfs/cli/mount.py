"""`histfs mount REPO MNT`: show the whole past of a repository as folders."""

import argparse
from datetime import UTC

from histfs.cli import options
from histfs.cli.output import Output
from histfs.errors import printable, quoted
from histfs.store.rights import OldModes

DESCRIPTION = """\
Show every session of REPO as a folder in MNT, named by its time, with
everything that was backed up then: the past as plain files, for every program.
Nothing can be written in it, and REPO is only read. A mount while a backup runs
is fine; the new session appears when it has finished.

When the folders are there, histfs goes to the background and the prompt
returns. `histfs umount MNT` ends it."""

EPILOG = """\
examples:
  mkdir -p ~/history
  histfs mount /mnt/disk/home ~/history
  ls ~/history
  cp ~/history/@2024-05-03T10:00/anna/thesis.tex .
  diff -r ~/history/@2024-05-0[23]T10:00/anna
  histfs umount ~/history

exit codes:
  0  mounted (with --foreground: mounted, and unmounted again)
  1  not mounted: no repository, MNT is no empty directory, no /dev/fuse, ..."""

IF_STOPPED = "nothing stays mounted"


def add_to(verbs: "options.Verbs") -> None:
    parser = options.add_verb(
        verbs, "mount", "show the past of a repository as folders", description=DESCRIPTION, epilog=EPILOG
    )
    parser.add_argument("--foreground", action="store_true", help="stay in the foreground; Ctrl-C unmounts")
    parser.add_argument("--utc", action="store_true", help="name the folders in UTC, not in local time")
    parser.add_argument(
        "--allow-other",
        action="store_true",
        help="let other users in, as far as the recorded permissions let them (needs user_allow_other in "
        "/etc/fuse.conf, unless you are root)",
    )
    parser.add_argument(
        "--old-modes",
        metavar="POLICY",
        choices=[each.value for each in OldModes],
        help="what others may read of old versions: strict (the default), what they could read then and can read now; "
        "as-stored, what they could read then; owner, what is their own",
    )
    parser.add_argument(
        "--all-attributes",
        action="store_true",
        help="with --allow-other: show security.* and trusted.* attributes too (root only)",
    )
    parser.add_argument(
        "--log-file",
        metavar="FILE",
        type=options.path,
        help="append what goes wrong later to FILE (default: the system's log, or the screen with --foreground)",
    )
    parser.add_argument(
        "--cache-size",
        metavar="MIB",
        type=options.mebibytes,
        default=64,
        help="keep up to MIB mebibytes in memory of what was read (default: 64)",
    )
    parser.add_argument("--debug", action="store_true", help="log every request of the kernel, and tracebacks")
    parser.add_argument("repository", metavar="REPO", type=options.path, help="the repository")
    parser.add_argument("mountpoint", metavar="MNT", type=options.path, help="an empty directory")
    parser.set_defaults(run=run, if_stopped=IF_STOPPED)


def run(arguments: argparse.Namespace, output: Output) -> int:
    from histfs.mount import mount

    where, word = printable(arguments.mountpoint), quoted(arguments.mountpoint)
    mount(
        arguments.repository,
        arguments.mountpoint,
        zone=UTC if arguments.utc else None,
        foreground=arguments.foreground,
        allow_other=arguments.allow_other,
        old_modes=None if arguments.old_modes is None else OldModes(arguments.old_modes),
        all_attributes=arguments.all_attributes,
        log_file=arguments.log_file,
        debug=arguments.debug,
        cache=options.cache_directory(),
        memory_bytes=arguments.cache_size << 20,
        on_ready=lambda: output.tell(f"the past is in {where}; `histfs umount {word}` unmounts it"),
        on_progress=lambda records: output.note(f"reading the history: {records} records"),
    )
    return 0
