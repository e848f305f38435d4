"""Frames: the messages between enkg and a worker program.

Two byte streams, one each way, carry frames: a header of 64 bytes, little-endian, then `nbytes` of
payload. Every frame of enkg's is answered by one frame with the same `seq`, except BYE.

    offset  type      field     meaning
    0       char[4]   magic     EKG1
    4       uint32    kind      1 HELLO, 2 READY, 3 EVAL, 4 RESULT, 5 ERROR, 6 BYE
    8       uint64    seq       number of the call, copied into the answer
    16      uint32    dtype     1 float32, 2 float64
    20      int32     status    READY: processes in the program's MPI world, 0 without MPI
                                ERROR: 0 reported by the simulator, 1 an exception
    24, 32  uint64    batch, n  members, and numbers of each, in the payload
                                HELLO: numbers of one input, of one output; READY: the same, or 0, 0
    40      uint64    nbytes    bytes of payload
    48      uint64    member0   EVAL: id of the first member. HELLO: the most members of one EVAL
    56      uint64    reserved  HELLO: bytes of shared memory in the file ENKG_SHM, 0 for none
                                READY: 1 if the program will use it; anything else is no

    HELLO -> READY or ERROR         once
    EVAL -> RESULT or ERROR         payload: the numbers, member after member; of ERROR, UTF-8 text
    BYE or end of file -> exit

With shared memory, EVAL and RESULT have no payload: the input lies at offset 0 of the file, the
output at the next multiple of 4096 bytes after the input of this call. A member whose simulation
failed is a row of NaN. The program reads the whole payload before it answers.
"""

import struct
from enum import IntEnum
from typing import NamedTuple

import numpy as np

MAGIC = b"EKG1"
SIZE = 64
PAGE = 4096
LONGEST_TEXT = 65536
"""Bytes of the longest ERROR text that is read."""

_HEADER = struct.Struct("<4sIQIiQQQQQ")
_CODES = {np.dtype("<f4"): 1, np.dtype("<f8"): 2}


class Kind(IntEnum):
    HELLO = 1
    READY = 2
    EVAL = 3
    RESULT = 4
    ERROR = 5
    BYE = 6


class BadFrameError(ValueError):
    """The bytes are no frame, or not the frame that was due."""


class Frame(NamedTuple):
    """A header; the fields are explained above."""

    kind: int
    seq: int = 0
    dtype: int = 0
    status: int = 0
    batch: int = 0
    n: int = 0
    nbytes: int = 0
    member0: int = 0
    reserved: int = 0

    def pack(self) -> bytes:
        return _HEADER.pack(MAGIC, *self)


def unpack(header: bytes | bytearray | memoryview) -> Frame:
    """The frame of a header of 64 bytes; raises BadFrameError where there is none."""
    magic, *fields = _HEADER.unpack(header)
    if magic != MAGIC:
        raise BadFrameError(f"the answer starts with {bytes(header[:16])!r}, not with {MAGIC!r}")
    return Frame(*fields)


def code(dtype: np.dtype) -> int:
    """The number by which a frame names float32 or float64."""
    return _CODES[np.dtype(dtype).newbyteorder("<")]


def output_offset(input_bytes: int) -> int:
    """Where the output of a call lies in shared memory, in bytes."""
    return -(-input_bytes // PAGE) * PAGE
