"""What is answered to each generation of Prometheus."""

from __future__ import annotations

import urllib.request

import pytest

from stairlib.telemetry.metrics import Metrics, exposed_name
from stairlib.telemetry.process_metrics import PROCESS_METRICS, observe_process

OPEN = "application/openmetrics-text"


@pytest.mark.parametrize(
    "accepts",
    [
        f"{OPEN};version=1.0.0,{OPEN};version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5",
        f"{OPEN};version=1.0.0;escaping=allow-utf-8;q=0.6,text/plain;version=0.0.4;q=0.3",
        "text/plain;version=1.0.0;escaping=allow-utf-8",
    ],
    ids=["2", "3", "3-text"],
)
def test_names_are_those_of_the_documents_whatever_is_allowed(accepts: str) -> None:
    """From version 3 on it takes any UTF-8 in names, so that dots could stay."""
    metrics = Metrics.configure("downstairs", "test", "127.0.0.1:0")
    try:
        observe_process(metrics)
        asked = urllib.request.Request(
            f"http://{metrics.address}/metrics", headers={"Accept": accepts}
        )
        with urllib.request.urlopen(asked, timeout=10) as answer:
            lines = answer.read().decode().splitlines()
            # Version 3 refuses an answer that does not say what it is.
            assert answer.headers.get_content_type() == accepts.partition(";")[0]
    finally:
        metrics.shutdown()
    names = {line.split()[0] for line in lines if line.startswith("process")}
    assert names == {exposed_name(metric) for metric in PROCESS_METRICS}
