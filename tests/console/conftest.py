"""A real browser: Debian's chromium, driven by Playwright. Where either is absent the tests are
skipped and say so. A test that fails leaves a screenshot of each page in build/console."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = Path("/usr/bin/chromium")
# Ports that a browser refuses to open (ERR_UNSAFE_PORT), and that may be the free one of a test.
REFUSED_PORTS = "4045,4190,5060,5061,6000,6566,6665,6666,6667,6668,6669,6679,6697,10080"
KEPT = Path(__file__).resolve().parents[2] / "build" / "console"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: Any, call: Any) -> Any:
    report = yield
    if report.when == "call":
        item.failed_in_call = report.failed
    return report


@pytest.fixture
async def browser() -> AsyncIterator[Any]:
    if not CHROMIUM.exists():  # noqa: ASYNC240 - once
        pytest.skip(f"{CHROMIUM} is absent: apt-get install chromium")
    playwright = pytest.importorskip(
        "playwright.async_api", reason="playwright is absent: `make test-console` installs it"
    )
    async with playwright.async_playwright() as driver:
        # Root may not use the sandbox; what is opened is our own.
        arguments = ["--no-sandbox", f"--explicitly-allowed-ports={REFUSED_PORTS}"]
        found = await driver.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield found
        await found.close()


@pytest.fixture
async def open_page(browser: Any, request: pytest.FixtureRequest) -> AsyncIterator[Any]:
    """`await open_page(url, width=..., scheme=...)`; what a page complains of fails the test."""
    pages: list[Any] = []
    complaints: list[str] = []

    async def opened(url: str, width: int = 1280, scheme: str = "light") -> Any:
        context = await browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, ignore_https_errors=True
        )
        page = await context.new_page()
        page.set_default_timeout(20_000)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        # As a policy that was broken is told.
        page.on(
            "console",
            lambda said: complaints.append(said.text) if "Content Security" in said.text else None,
        )
        pages.append(page)
        await page.goto(url)
        return page

    yield opened
    if getattr(request.node, "failed_in_call", False):
        KEPT.mkdir(parents=True, exist_ok=True)
        for number, page in enumerate(pages):
            await page.screenshot(path=KEPT / f"{request.node.name}-{number}.png", full_page=True)
    assert not complaints, complaints
