"""What `_tree_build.py` compiles."""

from collections.abc import Sequence

from _cffi_backend import FFI

ffi: FFI

class _Lib:
    def histfs_read_files(
        self,
        directory: int,
        count: int,
        names: bytes,
        sizes: Sequence[int],
        data: FFI.CData,
        is_read: FFI.CData,
        /,
    ) -> None: ...

lib: _Lib
