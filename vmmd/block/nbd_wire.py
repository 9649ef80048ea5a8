"""Numbers and layouts of the NBD protocol, fixed newstyle (doc/proto.md of the NBD project).

Everything on the wire is big endian. Constants and structs only.
"""

from __future__ import annotations

import enum
import struct

MAGIC = 0x4E42444D41474943  # "NBDMAGIC"
OPTION_MAGIC = 0x49484156454F5054  # "IHAVEOPT"
OPTION_REPLY_MAGIC = 0x0003E889045565A9
REQUEST_MAGIC = 0x25609513
SIMPLE_REPLY_MAGIC = 0x67446698
STRUCTURED_REPLY_MAGIC = 0x668E33EF

GREETING = struct.Struct(">QQH")
CLIENT_FLAGS = struct.Struct(">I")
OPTION = struct.Struct(">QII")
OPTION_REPLY = struct.Struct(">QIII")
EXPORT = struct.Struct(">QH")
REQUEST = struct.Struct(">IHHQQI")
SIMPLE_REPLY = struct.Struct(">IIQ")
STRUCTURED_REPLY = struct.Struct(">IHHQI")
CHUNK_OFFSET = struct.Struct(">Q")
CHUNK_ERROR = struct.Struct(">IH")
CHUNK_CONTEXT = struct.Struct(">I")
# Of a block status: bytes and flags, as a numpy record.
EXTENT = [("length", ">u4"), ("flags", ">u4")]
INFO_EXPORT_BODY = struct.Struct(">HQH")
INFO_BLOCK_SIZE_BODY = struct.Struct(">HIII")
EXPORT_NAME_PADDING = bytes(124)

HANDSHAKE_FIXED_NEWSTYLE = 1 << 0
HANDSHAKE_NO_ZEROES = 1 << 1


class Option(enum.IntEnum):
    """What a client asks during the handshake."""

    EXPORT_NAME = 1
    ABORT = 2
    LIST = 3
    STARTTLS = 5
    INFO = 6
    GO = 7
    STRUCTURED_REPLY = 8
    LIST_META_CONTEXT = 9
    SET_META_CONTEXT = 10


class OptionReply(enum.IntEnum):
    """How an option is answered."""

    ACK = 1
    SERVER = 2
    INFO = 3
    META_CONTEXT = 4
    ERR_UNSUP = (1 << 31) + 1
    ERR_POLICY = (1 << 31) + 2
    ERR_INVALID = (1 << 31) + 3
    ERR_TLS_REQD = (1 << 31) + 5
    ERR_UNKNOWN = (1 << 31) + 6


class Info(enum.IntEnum):
    """Pieces of information of INFO and GO."""

    EXPORT = 0
    NAME = 1
    BLOCK_SIZE = 3


class ExportFlag(enum.IntFlag):
    """What an export can do."""

    HAS_FLAGS = 1 << 0
    READ_ONLY = 1 << 1
    SEND_FLUSH = 1 << 2
    SEND_FUA = 1 << 3
    SEND_TRIM = 1 << 5
    SEND_WRITE_ZEROES = 1 << 6
    SEND_DF = 1 << 7
    CAN_MULTI_CONN = 1 << 8


class Command(enum.IntEnum):
    """Request types."""

    READ = 0
    WRITE = 1
    DISC = 2
    FLUSH = 3
    TRIM = 4
    WRITE_ZEROES = 6
    BLOCK_STATUS = 7


COMMAND_FUA = 1 << 0
COMMAND_NO_HOLE = 1 << 1
COMMAND_DF = 1 << 2
COMMAND_REQ_ONE = 1 << 3

CHUNK_DONE = 1 << 0
CHUNK_NONE = 0
CHUNK_OFFSET_DATA = 1
CHUNK_BLOCK_STATUS = 5
CHUNK_ERROR_TYPE = (1 << 15) + 1


# The one metadata context here, and its number once it was selected.
ALLOCATION_CONTEXT = b"base:allocation"
ALLOCATION_CONTEXT_ID = 1
STATE_HOLE = 1 << 0
STATE_ZERO = 1 << 1


class Error(enum.IntEnum):
    """Error numbers of replies."""

    OK = 0
    EPERM = 1
    EIO = 5
    EINVAL = 22
    ENOSPC = 28
    ENOTSUP = 95
    ESHUTDOWN = 108


# Data of one request: what clients assume when nothing else is said.
REQUEST_BYTES_MAX = 32 << 20
# Data of one option: an export name is at most 4096 bytes, with a few information requests.
OPTION_BYTES_MAX = 8192
# Options of one client: enough for every option several times, not for chatting forever.
OPTIONS_MAX = 64
