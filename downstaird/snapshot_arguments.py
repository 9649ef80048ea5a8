"""The flags of `downstaird snapshot`, and the help that teaches them."""

from __future__ import annotations

import argparse
from pathlib import Path

_GUIDE = """\
A snapshot is all that one flush covers, kept under a name: taking one copies no data, and takes
space only as the region is written over afterwards. While a region is in service its snapshots
are taken by its upstairs, or by hand:

  grpcurl -plaintext -d '{"snapshot": "monday"}' 127.0.0.1:8810 \\
      stairwell.downstairs.v1.BlockService/Flush

and listed and deleted with RegionService/ListSnapshots and RegionService/DeleteSnapshot. These
commands are for a region at rest. To read one, beside the region's daemon or without it:

  downstaird run -d r0 --snapshot monday -p 8820
"""


def add_snapshot(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The command and its actions; `action` says which one was given."""
    text = "List, take, delete or clone snapshots of a region."
    snapshot = commands.add_parser(
        "snapshot",
        help=text,
        description=text,
        epilog=_GUIDE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = snapshot.add_subparsers(dest="action", required=True, metavar="ACTION")
    listing = _add(actions, "list", "Show each snapshot: its flush, and the bytes only it has.")
    listing.add_argument(
        "--output", choices=("human", "json"), default="human", help="form of the answer"
    )
    taking = _add(actions, "create", "Take one of the region as it is.")
    _add_name(taking, "up to 64 letters, digits, dots, dashes and underscores")
    _add_name(_add(actions, "delete", "Delete one and free what only it has."), "which")
    clone = _add(
        actions,
        "clone",
        "Make a new region of one, with its owner and stamps. On xfs and btrfs in the same file\n"
        "system no data is copied; elsewhere (ext4) it is, and the last line says so.",
    )
    _add_name(clone, "which; the region may be in service")
    clone.add_argument("--to", type=Path, required=True, metavar="DIR", help="the new directory")
    clone.add_argument("-u", "--uuid", help="the new region's UUID")


def _add(
    actions: argparse._SubParsersAction[argparse.ArgumentParser], name: str, text: str
) -> argparse.ArgumentParser:
    action = actions.add_parser(name, help=text.replace("\n", " "), description=text)
    action.add_argument("-d", "--data", type=Path, required=True, help="the region's directory")
    return action


def _add_name(action: argparse.ArgumentParser, text: str) -> None:
    action.add_argument("name", metavar="NAME", help=text)
