"""What histfs._fuse declares (see _fuse_build.py)."""

class _Library:
    def histfs_fuse_is_by_inode(self) -> int: ...

lib: _Library
