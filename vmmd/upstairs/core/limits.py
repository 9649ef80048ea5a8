"""The upstairs' limits, each with its reason. Times in seconds of the clock given to `apply`."""

from __future__ import annotations

# Copies of a region.
SLOT_COUNT = 3
# A fourth member exists only while a good one is being replaced: the leaving one stays until the
# new is filled.
MEMBER_COUNT_MAX = 4

# Guest requests wait above these, per slot. 1.5 times what an offline slot may hold, so that an
# offline slot reaches its own limit before the guest is blocked by it.
ADMITTED_JOBS_MAX = 1500
ADMITTED_BYTES_MAX = 75 << 20
# Held for an offline slot before it is given up for replay: beyond, a repair is cheaper than the
# memory.
OFFLINE_JOBS_MAX = 1000
OFFLINE_BYTES_MAX = 50 << 20
# A flush waits for offline slots when too few others are there; this gives that wait an end, below
# the 30 s after which Linux guests reset an NVMe controller.
OFFLINE_SECONDS_MAX = 20.0
# The upstairs flushes by itself when this much would have to be sent again.
REPLAY_JOBS_FLUSH = 10_000
REPLAY_BYTES_FLUSH = 64 << 20
# Guest writes wait above these: a member that answers writes but hangs in a flush must not fill the
# memory.
REPLAY_JOBS_MAX = 2 * REPLAY_JOBS_FLUSH
REPLAY_BYTES_MAX = 2 * REPLAY_BYTES_FLUSH
# Small writes that come one by one are held and sent together: until there are so many, or so much,
# or for this long. The time is below what a flush takes on most media.
HELD_OPS_MAX = 16
HELD_BYTES_MAX = 64 << 10
HELD_SECONDS = 0.002
# What is left of that time is not waited for where it is less.
HELD_SECONDS_LEAST = 0.0005
# What is kept for the copy that is behind is sent when it is so many flushes or frames, or so much,
# or after so long at most.
BEHIND_FLUSHES_MAX = 16
BEHIND_FRAMES_MAX = 48
BEHIND_BYTES_MAX = 256 << 10
BEHIND_SECONDS = 0.02
# When the two others have not answered a flush by then, the third is asked as well; when that is
# more than one flush in so many, all are sent everything at once again.
BEHIND_ANSWER_SECONDS = 0.004
BEHIND_SLOW_ONE_IN = 16
# Flushes that all members are sent at once, to see who answers last; after that many behind, anew.
BEHIND_LEARNED_FLUSHES = 32
BEHIND_FLUSHES = 1024
# Devices have bounded queues (NVMe: 64 queues of 1024); more waiting than this is a device's bug.
GUEST_WAITING_MAX = 65_536

# Connections that may break under a read before it is not sent to that member again: one break is
# bad luck, more may be the read's own doing.
READ_LOSSES_MAX = 3
# Spreads a deep queue of large reads over the members.
READ_FRAME_BYTES_MAX = 1 << 20
# From the first write after a flush to a flush by itself, unless the request says otherwise.
FLUSH_TIMEOUT_SECONDS = 0.5
# Active members or such as are sent what they missed: with fewer, nothing can become durable.
WRITES_NEEDED = 2

# Blocks that reads found bad and that are written again: 4 MiB a second of 4 KiB blocks, so that a
# rotten medium does not crowd out the guest.
HEALED_BLOCKS_PER_SECOND = 1024
# A member with more bad blocks than this is filled anew as a whole.
BAD_BLOCKS_MAX = 4096
# Between two lines in the log about healed blocks.
HEALED_TOLD_SECONDS = 10.0

# Delay of the next attempt to connect: the first, doubled up to the second.
RECONNECT_SECONDS_MIN = 0.2
RECONNECT_SECONDS_MAX = 10.0
# A connection that lasted this long was a good one: the next reconnect starts from the shortest
# delay.
CONNECTION_GOOD_SECONDS = 10.0
# A deactivation lets a member go that has not answered the last flush by then.
DEACTIVATE_SECONDS_MAX = 10.0

# How long a read-only set that is being activated waits for members that are being reached, beside
# one that is there: long for an answer on a network that works, short for a person.
READ_ONLY_OTHERS_SECONDS = 1.0

# Extents of one set that are being copied at once, unless a repair limit says otherwise.
COPIES_IN_FLIGHT = 4
# The most that a repair limit may say: each holds a chunk of up to 2 MiB at the member that is
# filled.
COPIES_IN_FLIGHT_MAX = 16
# Between two questions to a member that is filled, of how much it has received: progress within an
# extent, and the rate that the repair really has.
REPAIR_LOOK_SECONDS = 0.2
# Bytes per second of a repair that is held: copies that are under way stand still.
HELD_BYTES_PER_SECOND = 1
# A copy is asked of other sources after a failure; after this many the repair is given up and begun
# anew.
COPY_ATTEMPTS_MAX = 4
# One digest op reads the contexts of this many blocks on the daemon's loop, a few milliseconds'
# work that guest requests wait for.
DIGEST_BLOCKS_PER_OP = 1 << 16
# Such ops to one member at a time, while a volume is made equal and serves nobody.
DIGESTS_AT_ONCE = 8
