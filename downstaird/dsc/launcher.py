"""The places of the regions that `dsc` makes and runs: cleared, or required to be there."""

from __future__ import annotations

import shutil
from pathlib import Path

from downstaird.dsc.core.layout import MemberPlan
from stairlib.model.errors import AlreadyExistsError, InvalidRequestError, NotFoundError


def clear_place(plan: MemberPlan, *, cleanup: bool) -> None:
    """See to it that nothing is where a region is to be; without `cleanup` refuse instead."""
    directory = Path(plan.directory)
    if not directory.exists() and not directory.is_symlink():
        return
    if not cleanup:
        raise AlreadyExistsError(
            f"region directory {directory} exists; add --cleanup to delete what is in it, or use "
            "`dsc start` without --create to serve it as it is",
            reason="REGION_EXISTS",
            directory=str(directory),
        )
    if directory.is_symlink() or not directory.is_dir():
        raise InvalidRequestError(
            f"{directory} is not a directory, so --cleanup leaves it alone; remove it by hand",
            reason="NOT_A_DIRECTORY",
            directory=str(directory),
        )
    shutil.rmtree(directory)


def require_region(plan: MemberPlan) -> None:
    """Refuse to go on where a member has no region directory."""
    if not Path(plan.directory).is_dir():
        raise NotFoundError(
            "region",
            plan.directory,
            f"there is no region at {plan.directory}; add --create to make it, or check "
            "--region-dir, --port-base and --region-count",
        )
