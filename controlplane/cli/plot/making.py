"""Gets what a picture needs and writes it to a file."""

from __future__ import annotations

from pathlib import Path

from controlplane.cli.failure import CommandError
from controlplane.cli.plot.story import Story, tell
from controlplane.cli.plot.svg import draw
from controlplane.cli.session import Session
from stairwell.controlplane.v1 import disk_service_pb2 as disk_pb
from stairwell.controlplane.v1.replacement_service_pb2 import Replacement

AROUND_SECONDS = 10.0


async def story_of(session: Session, replacement: Replacement, around: float) -> Story:
    """The story of a replacement; CommandError when its machine remembers nothing of that time."""
    request = disk_pb.GetDiskHistoryRequest(name=replacement.disk)
    request.after_time.FromNanoseconds(
        max(replacement.create_time.ToNanoseconds() - round(around * 1e9), 0)
    )
    answer = await session.call(
        session.disks.GetDiskHistory, request, disk_pb.GetDiskHistoryResponse
    )
    story = tell(replacement, answer.samples, around)
    if not story.moments:
        raise CommandError(
            f"the machine of {replacement.disk} remembers nothing of that time",
            "its memory begins with its process and reaches back some hours; "
            f"`stairwell trace {replacement.id}` has the phases still",
        )
    return story


def check_place(path: str, option: str) -> None:
    """Refuses a file that cannot be written before anything is done for it."""
    folder = Path(path).absolute().parent
    if not folder.is_dir():
        raise CommandError(f"{option} {path}: there is no directory {folder}", "make it first")
    if Path(path).suffix != ".svg":
        raise CommandError(f"{option} {path}: pictures are SVG", "name a file that ends in .svg")


def write(story: Story, path: str, option: str) -> None:
    """Draws it to a file."""
    try:
        Path(path).write_text(draw(story), encoding="utf-8")
    except OSError as error:
        raise CommandError(
            f"{option} {path}: it cannot be written: {error.strerror}", "name another file"
        ) from None
