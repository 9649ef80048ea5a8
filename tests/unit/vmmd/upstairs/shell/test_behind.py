"""How long a copy may be behind, as the environment says it."""

import pytest

from vmmd.upstairs.core import limits
from vmmd.upstairs.shell.behind import VARIABLE, behind_seconds


@pytest.fixture(autouse=True)
def _asked_anew():
    behind_seconds.cache_clear()
    yield
    behind_seconds.cache_clear()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("", limits.BEHIND_SECONDS),
        ("0", 0.0),
        ("2.5", 0.0025),
        ("100", 0.1),
        ("-1", limits.BEHIND_SECONDS),
        ("101", limits.BEHIND_SECONDS),
        ("nan", limits.BEHIND_SECONDS),
        ("soon", limits.BEHIND_SECONDS),
    ],
)
def test_a_number_of_milliseconds(monkeypatch, text, seconds):
    monkeypatch.setenv(VARIABLE, text)
    assert behind_seconds() == pytest.approx(seconds)


def test_without_a_word_it_is_the_default(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    assert behind_seconds() == limits.BEHIND_SECONDS
