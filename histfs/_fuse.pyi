"""What histfs._fuse declares (see _fuse_build.py)."""

from _cffi_backend import FFI

ffi: FFI

class _Library:
    def histfs_fuse_is_by_inode(self) -> int: ...
    def histfs_fuse_keep_content(self, inode: int, data: FFI.CData, size: int, /) -> int: ...
    def histfs_fuse_keep_end(self, inode: int, offset: int, /) -> None: ...

lib: _Library
