"""What a mount says of a session that was removed, before it has looked at the repository again."""

import shutil
from contextlib import closing, suppress
from datetime import UTC

import pytest

from histfs.errors import HistfsError, NotFoundError
from histfs.store.catalog import open_catalog
from histfs.store.regress import regress
from histfs.store.repository import Repository
from histfs.vfs import TOP_TAG, History, NotReadyError, directory_inode
from tests.abuse.past import DAY, name_of


@pytest.fixture
def history(own_past):
    own_past.session()
    with Repository.open(own_past.repository) as repository:
        history = History(repository, lambda: open_catalog(repository), UTC)
        history.update()
        yield history
        history.close()


@pytest.mark.parametrize("is_known", [False, True], ids=["", "asked before"])
def test_nothing_of_another_session_is_shown_in_its_place(own_past, history, is_known):
    """The catalog is read where it is changed; its oldest versions reach back as far as anybody asks."""
    gone, kept = (directory_inode(own_past.now - ago * DAY, TOP_TAG) for ago in (2, 1))
    before = history.child(kept, b"document")
    if is_known:
        assert history.child(gone, b"document").inode != before.inode
        assert [child.name for child in history.children(gone, 0, 100)]
    own_past.remove_oldest(2)
    for look in (
        lambda: history.child(gone, b"document"),
        lambda: history.child(gone, b"small"),
        lambda: history.children(gone, 0, 100),
    ):
        with pytest.raises(NotReadyError):  # who asks is told to look again
            look()
    history.update()
    with pytest.raises(NotFoundError):
        history.child(gone, b"document")
    assert history.child(kept, b"document") == before


def answer(history, question, *arguments):
    """As the mount asks: once more if it is told to. That has to be enough, where nothing changes meanwhile."""
    with suppress(NotReadyError):
        return question(*arguments)
    history.update()
    try:
        return question(*arguments)
    except NotReadyError as exc:
        raise AssertionError("is not ready after it was brought up to date") from exc


def test_a_directory_that_went_is_not_taken_for_one_that_came(own_past, history):
    """What is kept of the catalog, which others write to, is used as long as nobody has."""
    seen = {}
    for number in range(6):
        own_past.session(**{f"new{number}/only{number}": b"%d" % number, f"new{number}/same": b"%d" % number})
        shutil.rmtree(own_past.source / f"new{number}")
        for path in [path for path in own_past.current if path.startswith("new")]:
            del own_past.current[path]
        top = directory_inode(own_past.now, TOP_TAG)
        for name in (f"new{other}".encode() for other in range(number + 1)):
            if (found := answer(history, history.child, top, name)) is not None:
                seen[own_past.now, name] = found.inode
                names = {child.name for child in answer(history, history.children, found.inode, 0, 100)}
                assert names == {b".", b"..", b"same", name.replace(b"new", b"only")}
        if number % 2:
            own_past.remove_oldest(1)
        for (at, name), inode in seen.items():
            if at < own_past.now and number % 2:
                with pytest.raises(HistfsError):
                    answer(history, history.children, inode, 0, 100)
            else:
                names = {child.name for child in answer(history, history.children, inode, 0, 100)}
                assert name.replace(b"new", b"only") in names
                assert answer(history, history.child, inode, b"same") is not None
        seen = {key: inode for key, inode in seen.items() if key[0] == own_past.now}


def test_all_others_are_read_while_the_newest_is_undone(own_past, history):
    """The catalog still knows it as the newest, of which all is that has not changed since, until somebody looks."""
    kept = own_past.now - DAY
    files = own_past.files[name_of(kept)]
    inodes = {}
    for path in files:
        inode = directory_inode(kept, TOP_TAG)
        for name in path.split("/"):
            inode = history.child(inode, name.encode()).inode
        inodes[path] = inode

    def read_all(_size_bytes=0):
        for path, content in files.items():
            opened = answer(history, history.open, inodes[path]).content
            with closing(opened):
                assert opened.pread(len(content) + 1, 0) == content, path
            told.append(path)

    told = []
    regress(own_past.repository, report=lambda _error: None, force=True, tell=read_all)
    assert len(told) >= 2 * len(files)
    read_all()
    history.update()
    read_all()
