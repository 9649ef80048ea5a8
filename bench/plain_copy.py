"""What a verified copy from one process to another costs in plain Python: the floor of a repair.

One process reads a file in pieces, hashes each and sends both through a loopback socket; the other
receives into buffers that it keeps, checks the piece and each of its blocks, writes it where it
belongs, and makes the file durable at the end. Two threads there, one that receives and one that
checks and writes. No gRPC, no region, no limits, no guest.
"""

from __future__ import annotations

import os
import queue
import socket
import subprocess
import sys
import threading
import time

import xxhash

from stairlib.model.context import block_hashes

BLOCK = 4096
PIECE = 2 << 20
HASH_BYTES = 8
BUFFERS = 4


def send(port, path):
    """The sending process."""
    piece = memoryview(bytearray(PIECE))
    with (
        open(path, "rb", buffering=0) as file,
        socket.create_connection(("127.0.0.1", port)) as peer,
    ):
        while size := file.readinto(piece):
            peer.sendall(piece[:size])
            peer.sendall(xxhash.xxh3_64_digest(piece[:size]))


def received(peer, view):
    """Fills `view`."""
    have = 0
    while have < len(view):
        count = peer.recv_into(view[have:])
        if not count:
            raise SystemExit("the sender of the plain copy has ended early")
        have += count


def write_pieces(full, free, descriptor):
    """Checks and writes what was received, until it is told None."""
    while (found := full.get()) is not None:
        offset, buffer, size = found
        data = memoryview(buffer)[:size]
        assert xxhash.xxh3_64_digest(data) == buffer[size : size + HASH_BYTES]
        assert block_hashes(data, BLOCK)
        assert os.pwrite(descriptor, data, offset) == size
        free.put(buffer)


def plain_copy(source, target):
    """Seconds of a copy of the file, durable."""
    size = source.stat().st_size
    free, full = queue.Queue(), queue.Queue()
    for _ in range(BUFFERS):
        free.put(bytearray(PIECE + HASH_BYTES))
    descriptor = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    writer = threading.Thread(target=write_pieces, args=(full, free, descriptor))
    with socket.create_server(("127.0.0.1", 0)) as server:
        command = [sys.executable, __file__, str(server.getsockname()[1]), source]
        with subprocess.Popen(command) as sender:
            peer, _ = server.accept()
            # Its start is not counted: a daemon is there already.
            began = time.perf_counter()
            writer.start()
            with peer:
                for offset in range(0, size, PIECE):
                    count = min(PIECE, size - offset)
                    buffer = free.get()
                    received(peer, memoryview(buffer)[: count + HASH_BYTES])
                    full.put((offset, buffer, count))
            full.put(None)
            writer.join()
            os.fdatasync(descriptor)
            seconds = time.perf_counter() - began
            os.close(descriptor)
            if sender.wait():
                raise SystemExit("the sender of the plain copy has failed")
    target.unlink()
    return seconds


if __name__ == "__main__":
    send(int(sys.argv[1]), sys.argv[2])
