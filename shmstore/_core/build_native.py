"""Writes the C source of the extension module ``shmstore._native`` (run by CMakeLists.txt at build time).

It knows where the C API is declared: between the two cffi marks of ``sst.h`` and nowhere else, so the region is sliced
out of that header and no second copy of it is kept. And it puts ``doors.c`` into the same module: the few calls that
keep the GIL. cffi's own give it up.

Usage: build_native.py SST_H OUTPUT_C
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import cffi

MODULE = "shmstore._native"
BEGIN = "/* cffi-begin */"
END = "/* cffi-end */"

# cffi's init function becomes a static one, which doors.c calls in the module's.
PREAMBLE = """
#include "sst.h"
#include "doors.c"
#undef PyMODINIT_FUNC
#define PyMODINIT_FUNC static PyObject *
#define PyInit__native sst_cffi_init
"""


def declarations(header: str) -> str:
    """The text between the cffi marks of ``header``, which must hold each mark once and plain declarations only."""
    if header.count(BEGIN) != 1 or header.count(END) != 1:
        raise ValueError(f"sst.h must hold {BEGIN} and {END} exactly once")
    region = header.partition(BEGIN)[2].partition(END)[0]
    if re.search(r"^\s*#", region, re.MULTILINE):
        raise ValueError("no preprocessor line may stand between the cffi marks of sst.h")
    return region


def make_ffi(header: str) -> cffi.FFI:
    """An FFI that knows the declarations of ``header`` and how to build the module around them."""
    ffi = cffi.FFI()
    ffi.cdef(declarations(header))
    ffi.set_source(MODULE, PREAMBLE)
    return ffi


def main(argv: list[str]) -> int:
    """Read the header named first, write the C source named second."""
    if len(argv) != 3:
        print(__doc__, file=sys.stderr)
        return 2
    header = Path(argv[1]).read_text(encoding="utf-8")
    make_ffi(header).emit_c_code(argv[2])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
