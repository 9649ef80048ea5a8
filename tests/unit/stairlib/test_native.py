"""Which form of the frame loop serves, and that it can be chosen."""

import os
import subprocess
import sys

from stairlib import native


def asked(**environment: str) -> str:
    code = "from stairlib import native; print(native.compiled, native.describe(), sep='|')"
    found = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return found.stdout.strip()


def test_the_python_form_can_be_chosen():
    assert asked(**{native.SWITCH: "0"}) == f"False|Python ({native.SWITCH}=0)"


def test_what_is_told_is_what_serves():
    compiled, told = asked(**{native.SWITCH: ""}).split("|")
    assert told == ("native" if compiled == "True" else "Python")
