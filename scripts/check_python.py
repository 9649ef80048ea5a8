"""Says in a sentence what is missing before a virtual environment can be made.

Runs under whatever Python the user has, so it stays within the oldest syntax and the standard
library.
"""

import sys


def problem():
    """What is wrong with this Python, or None."""
    if sys.version_info < (3, 11):
        return (
            "Stairwell needs Python 3.11 or newer; %s is %d.%d.\n"
            "Install one (Debian 12: apt install python3 python3-venv) and say which to use:\n"
            "    make PYTHON=/path/to/python3.11 setup"
            % (sys.executable, sys.version_info[0], sys.version_info[1])
        )
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        return (
            "This Python cannot make virtual environments: "
            "its venv or ensurepip module is missing.\n"
            "On Debian and Ubuntu:    apt install python%d.%d-venv\n"
            "or name another Python:  make PYTHON=/path/to/python3 setup" % sys.version_info[:2]
        )
    return None


if __name__ == "__main__":
    found = problem()
    if found:
        sys.exit(found)
