"""A peer of a session, and the ops it sends."""

import json
import uuid

import numpy as np

from downstaird.core.session import Session
from downstaird.core.session_effects import PUT_OFF, RunWork
from stairlib.model.context import plain_contexts
from stairlib.wire import frame as wire
from stairlib.wire.frame import FrameKind, OpKind, OpStatus, extent_marks

BLOCK = 512


def block(fill, count=1):
    return bytes([fill]) * (BLOCK * count)


class Peer:
    """Sends frames into a session and decodes what comes back. With `short`, a flush that comes
    alone begins and ends at once where it can, as in a daemon."""

    def __init__(self, engine, *, short=False, **options):
        self.engine = engine
        self.short = short
        self.session = Session(engine, **{"read_only": False, "lane_free": True, **options})
        self.replies = {}
        self.frames = []
        self.effects = []

    def send(self, *ops, sequence=7):
        table, deps, blobs, contexts, payload = [], [], [], [], []
        for op in ops:
            op = dict(op)
            data = op.pop("data", None)
            named = op.pop("deps", ())
            blob = op.pop("blob", b"")
            bad = op.pop("context_of", None)
            if data is not None:
                op.setdefault("length", len(data) // BLOCK)
                contexts.append(plain_contexts(bad if bad is not None else data, BLOCK))
                payload.append(data)
            deps += named
            blobs.append(blob)
            table.append(
                wire.pack_op(
                    op.pop("job"),
                    op.pop("kind"),
                    dependency_count=len(named),
                    blob_bytes=len(blob),
                    **op,
                )
            )
        raw = b"".join(
            wire.encode(
                FrameKind.REQUEST,
                table,
                sequence=sequence,
                dependencies=deps,
                blobs=blobs,
                contexts=np.concatenate(contexts) if contexts else None,
                payload=payload,
            )
        )
        frame = wire.decode(raw)
        flush = self.session.flush_at_once(frame) if self.short else None
        if flush is not None:
            if flush is not PUT_OFF:
                self.effects.append(flush)
            return self
        self.session.take(frame)
        return self.run()

    def run(self):
        while True:
            turn = self.session.run()
            self.effects += turn.effects
            if turn.reply is not None:
                self._note(wire.decode(b"".join(turn.reply)))
            if not turn.more:
                return self

    def _note(self, frame):
        assert frame.kind is FrameKind.REPLY
        self.frames.append(frame)
        at = 0
        for index, op in enumerate(frame.ops):
            job, kind, length = int(op["job"]), int(op["kind"]), int(op["length"])
            assert job not in self.replies, "answered twice"
            size = 0
            if op["status"] == OpStatus.OK:
                size = {
                    OpKind.READ: BLOCK,
                    OpKind.EXTENT_DIGEST: 8,
                    OpKind.EXTENT_STATES: 24,
                }.get(kind, 0) * length
            data = bytes(frame.payload[at : at + size])
            at += size
            self.replies[job] = (
                OpStatus(int(op["status"])),
                data,
                frame.blob(index).decode(),
                int(op["number"]),
            )
        assert at == len(frame.payload)

    def status(self, job):
        return self.replies[job][0] if job in self.replies else None

    def data(self, job):
        return self.replies[job][1]

    def text(self, job):
        return self.replies[job][2]

    def work(self):
        return [effect for effect in self.effects if isinstance(effect, RunWork)]

    def finish(self, effect, error=None):
        self.engine.finish_flush(effect.work, error)
        if self.short and error is None and self.session.done_at_once(effect):
            (reply,) = wire.done_behind([], effect.jobs, effect.kind)
            self._note(wire.decode(reply))
            self.session.lane_changed(free=True)
        else:
            self.session.work_done(effect, error, lane_free=True)
        return self.run()


def write(job, offset, data, **more):
    return {"job": job, "kind": OpKind.WRITE, "offset": offset, "data": data, **more}


def read(job, offset, length, **more):
    return {"job": job, "kind": OpKind.READ, "offset": offset, "length": length, **more}


def flush(job, number, **more):
    return {"job": job, "kind": OpKind.FLUSH, "number": number, "generation": 1, **more}


def copy(job, extent, **more):
    source = {"address": "127.0.0.1:1", "upstairs_id": str(uuid.uuid4()), "generation": 1}
    return {
        "job": job,
        "kind": OpKind.EXTENT_COPY,
        "offset": extent,
        "blob": json.dumps(source).encode(),
        **more,
    }


def repair_begin(job, *extents):
    blob = extent_marks(extents).tobytes()
    return {"job": job, "kind": OpKind.REPAIR_BEGIN, "blob": blob}
