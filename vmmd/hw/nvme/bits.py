"""Offsets, bits, opcodes and status codes of NVM Express 1.4.

Constants only. A status is the 15-bit field of a completion without its phase bit:
code | type << 8 | DNR, where DNR ("do not retry") tells the guest that the command itself is wrong.
"""

from __future__ import annotations

import enum

VERSION = 0x00010400

REG_CAP = 0x00
REG_VS = 0x08
REG_INTMS = 0x0C
REG_INTMC = 0x10
REG_CC = 0x14
REG_CSTS = 0x1C
REG_AQA = 0x24
REG_ASQ = 0x28
REG_ACQ = 0x30
REG_DOORBELLS = 0x1000
DOORBELL_STRIDE = 4

CC_ENABLE = 1 << 0
CC_CSS_SHIFT = 4
CC_MPS_SHIFT = 7
CC_AMS_SHIFT = 11
CC_SHN_SHIFT = 14
CC_SHN_MASK = 0x3 << CC_SHN_SHIFT
CC_IOSQES_SHIFT = 16
CC_IOCQES_SHIFT = 20

CSTS_READY = 1 << 0
CSTS_FATAL = 1 << 1
CSTS_SHUTDOWN_OCCURRING = 1 << 2
CSTS_SHUTDOWN_COMPLETE = 2 << 2
CSTS_SHUTDOWN_MASK = 3 << 2

PAGE_BYTES = 4096
SQ_ENTRY_SHIFT = 6
CQ_ENTRY_SHIFT = 4
SQ_ENTRY_BYTES = 1 << SQ_ENTRY_SHIFT
CQ_ENTRY_BYTES = 1 << CQ_ENTRY_SHIFT
IDENTIFY_BYTES = 4096

NAMESPACE = 1
NAMESPACE_ALL = 0xFFFFFFFF


class AdminOpcode(enum.IntEnum):
    """Commands of the admin queue that are known here."""

    DELETE_SQ = 0x00
    CREATE_SQ = 0x01
    GET_LOG_PAGE = 0x02
    DELETE_CQ = 0x04
    CREATE_CQ = 0x05
    IDENTIFY = 0x06
    ABORT = 0x08
    SET_FEATURES = 0x09
    GET_FEATURES = 0x0A
    ASYNC_EVENT = 0x0C
    DOORBELL_BUFFER_CONFIG = 0x7C


class IoOpcode(enum.IntEnum):
    """Commands of the I/O queues that are known here."""

    FLUSH = 0x00
    WRITE = 0x01
    READ = 0x02
    WRITE_ZEROES = 0x08
    DATASET_MANAGEMENT = 0x09


class Feature(enum.IntEnum):
    """Feature identifiers."""

    ARBITRATION = 0x01
    POWER_MANAGEMENT = 0x02
    TEMPERATURE_THRESHOLD = 0x04
    ERROR_RECOVERY = 0x05
    VOLATILE_WRITE_CACHE = 0x06
    NUMBER_OF_QUEUES = 0x07
    INTERRUPT_COALESCING = 0x08
    INTERRUPT_VECTOR = 0x09
    WRITE_ATOMICITY = 0x0A
    ASYNC_EVENT_CONFIGURATION = 0x0B


class LogPage(enum.IntEnum):
    """Log page identifiers."""

    ERROR = 0x01
    SMART = 0x02
    FIRMWARE_SLOT = 0x03
    CHANGED_NAMESPACES = 0x04
    COMMAND_EFFECTS = 0x05


class IdentifyKind(enum.IntEnum):
    """CNS: which structure Identify returns."""

    NAMESPACE = 0x00
    CONTROLLER = 0x01
    ACTIVE_NAMESPACES = 0x02
    NAMESPACE_DESCRIPTORS = 0x03
    ALLOCATED_NAMESPACES = 0x10
    ALLOCATED_NAMESPACE = 0x11
    NAMESPACE_CONTROLLERS = 0x12
    CONTROLLERS = 0x13


class FeatureSelect(enum.IntEnum):
    """Which value of a feature Get Features returns."""

    CURRENT = 0
    DEFAULT = 1
    SAVED = 2
    CAPABILITIES = 3


class EventType(enum.IntEnum):
    """What an asynchronous event is about. Of each type one is told until its log page was read."""

    ERROR = 0
    SMART = 1


# What an event of type ERROR or SMART tells.
EVENT_INVALID_DOORBELL = 0
EVENT_INVALID_DOORBELL_VALUE = 1
EVENT_TEMPERATURE = 1

# Bits of the SMART page's critical warning, and of the feature that says which are told.
WARNING_TEMPERATURE = 1 << 1

DNR = 1 << 14

OK = 0x000
INVALID_OPCODE = 0x001 | DNR
INVALID_FIELD = 0x002 | DNR
DATA_TRANSFER_ERROR = 0x004
INTERNAL_ERROR = 0x006
ABORT_REQUESTED = 0x007
INVALID_NAMESPACE = 0x00B | DNR
COMMAND_SEQUENCE_ERROR = 0x00C | DNR
PRP_OFFSET_INVALID = 0x013 | DNR
LBA_OUT_OF_RANGE = 0x080 | DNR

COMPLETION_QUEUE_INVALID = 0x100 | DNR
QUEUE_ID_INVALID = 0x101 | DNR
QUEUE_SIZE_INVALID = 0x102 | DNR
ASYNC_EVENT_LIMIT = 0x105 | DNR
INTERRUPT_VECTOR_INVALID = 0x108 | DNR
LOG_PAGE_INVALID = 0x109 | DNR
QUEUE_DELETION_INVALID = 0x10C | DNR
FEATURE_NOT_SAVEABLE = 0x10D | DNR
FEATURE_NOT_NAMESPACE_SPECIFIC = 0x10F | DNR
READ_ONLY_RANGE = 0x182 | DNR
# Media errors: the backend could not do it. They carry no DNR, trying again may help.
WRITE_FAULT = 0x280
UNRECOVERED_READ = 0x281

LOG_RETAIN_EVENT = 1 << 15

RW_FUA = 1 << 30
DSM_DEALLOCATE = 1 << 2
DSM_RANGE_BYTES = 16
