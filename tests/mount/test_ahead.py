"""What is read before anybody asks: the policy alone."""

import random

from histfs import _fs_ahead as fs_ahead
from histfs._fs_ahead import Ahead


def files(first, count, size_bytes=1000):
    return [(inode, size_bytes) for inode in range(first, first + count)]


def read_all(ahead, inodes, kept=()):
    """Read files in order, as the kernel does: what was read ahead is not asked for. How many were asked for."""
    kept, asked = set(kept), 0
    for inode in inodes:
        if inode not in kept:
            asked += 1
            kept.update(ahead.asked(inode))
    return asked


def test_names_that_are_listed_cause_no_reading():
    ahead = Ahead()
    assert [ahead.listed(inode, files(inode * 1000, 50)) for inode in range(1, 200)] == [[]] * 199


def test_a_large_directory_read_in_order_is_hardly_asked_for():
    ahead = Ahead()
    ahead.listed(1, files(1000, 5000))
    assert read_all(ahead, range(1000, 6000)) < 200


def test_every_file_is_read_ahead_once_at_most():
    ahead, taken = Ahead(), []
    ahead.listed(1, files(1000, 500))
    for inode in range(1000, 1500):
        taken += ahead.asked(inode)
    assert len(taken) == len(set(taken))
    assert set(taken) <= set(range(1001, 1500))


def test_one_file_of_many_costs_a_few():
    ahead = Ahead()
    ahead.listed(1, files(1000, 300))
    assert len(ahead.asked(1000)) <= 2
    assert ahead.asked(1200) == []


def test_files_read_in_no_order_are_not_read_ahead():
    ahead, order = Ahead(), list(range(1000, 1400))
    random.Random(1).shuffle(order)
    ahead.listed(1, files(1000, 400))
    assert sum(len(ahead.asked(inode)) for inode in order) < 40


def test_whoever_goes_through_a_tree_is_trusted_to_go_on():
    ahead, asked = Ahead(), 0
    for inode in range(1, 300):
        kept = set(ahead.listed(inode, files(inode * 1000, 5)))
        asked += sum(1 for file, _ in files(inode * 1000, 5) if file not in kept and not kept.update(ahead.asked(file)))
    assert asked < 300


def test_trust_is_used_up_where_names_are_only_listed():
    ahead = Ahead()
    ahead.listed(1, files(1000, 500))
    read_all(ahead, range(1000, 1500))
    taken = [ahead.listed(inode, files(inode * 1000, 10)) for inode in range(2, 100)]
    assert any(taken)
    assert not any(taken[fs_ahead._MOST_TRUST :])


def test_a_window_has_no_more_than_so_many_bytes():
    ahead = Ahead()
    ahead.listed(1, files(1000, 500, size_bytes=fs_ahead._WINDOW_BYTES // 4))
    for inode in range(1000, 1500):
        assert len(ahead.asked(inode)) <= 4


def test_what_is_remembered_is_bounded():
    ahead = Ahead()
    for inode in range(1, 400):
        ahead.listed(inode, files(inode * 100_000, 1000))
        ahead.asked(inode * 100_000)
    assert len(ahead._places) <= fs_ahead._FILES_REMEMBERED
    assert sum(len(directory.files) for directory in ahead._directories.values()) <= fs_ahead._FILES_REMEMBERED
    ahead.listed(1, files(10**9, 10**5))
    assert len(ahead._directories) == 1
    for inode in range(1, 10**5):
        ahead.listed(inode, files(inode, 1))
    assert len(ahead._new) <= fs_ahead._FILES_REMEMBERED + 1


def test_a_directory_that_is_listed_again_begins_again():
    ahead = Ahead()
    for _ in range(3):
        kept = ahead.listed(1, files(1000, 100))
        assert read_all(ahead, range(1000, 1100), kept) < 30
