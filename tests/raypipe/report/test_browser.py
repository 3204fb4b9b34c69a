"""The report in a real headless browser, at the width of a desktop and of a phone."""

import os
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, sync_playwright

from raypipe.config.report import ReportConfig
from raypipe.report.document import document

pytestmark = pytest.mark.slow

CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]
WIDTHS = {"desktop": 1280, "phone": 390}
HEADINGS = [
    "Summary",
    "Cleaning",
    "Similarities and thresholds",
    "Leakage",
    "Expansion",
    "Training set and curriculum",
    "Training",
    "Verification",
    "Time",
    "Plan and actual",
    "Provenance",
]
# Every pair of text and background colour that the page draws, by WCAG's contrast ratio.
CONTRAST = """() => {
  const channel = v => { v /= 255; return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4 };
  const light = c => 0.2126 * channel(c[0]) + 0.7152 * channel(c[1]) + 0.0722 * channel(c[2]);
  const parse = text => (text.match(/[\\d.]+/g) || []).map(Number);
  const background = element => {
    for (let e = element; e; e = e.parentElement) {
      const c = parse(getComputedStyle(e).backgroundColor);
      if (c.length === 3 || c[3] === 1) return c;
    }
    return [255, 255, 255];
  };
  const low = [];
  for (const e of document.querySelectorAll('body *')) {
    const own = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    if (!own || e.closest('.skip')) continue;
    const svg = e.namespaceURI.endsWith('svg');
    const style = getComputedStyle(e);
    const a = light(parse(svg ? style.fill : style.color)), b = light(background(e));
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) low.push(`${e.tagName} "${e.textContent.slice(0, 30)}" ${ratio.toFixed(2)}`);
  }
  return low;
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    assert os.path.exists(CHROMIUM), (
        f"{CHROMIUM} is missing: run `make browser` (it installs chromium), "
        "or set CHROMIUM to the path of a Chromium"
    )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def report(finished_workspace: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(document(finished_workspace, ReportConfig()), encoding="utf-8")
    return f"file://{path}"


class Visit:
    """A page, and what the browser complained about or asked for while it loaded."""

    def __init__(self, browser: Browser, url: str, width: int, scheme: str) -> None:
        context = browser.new_context(
            viewport={"width": width, "height": 900},
            color_scheme=scheme,  # type: ignore[arg-type]
        )
        self.console: list[str] = []
        self.requests: list[str] = []
        self.failed: list[str] = []
        self.page: Page = context.new_page()
        self.page.on("console", self._said)
        self.page.on("pageerror", lambda error: self.console.append(str(error)))
        self.page.on("request", self._asked)
        self.page.on("requestfailed", lambda request: self.failed.append(request.url[:80]))
        self.page.on("dialog", lambda dialog: self.console.append(f"dialog {dialog.message}"))
        self.page.goto(url)

    def _said(self, message: ConsoleMessage) -> None:
        self.console.append(f"{message.type}: {message.text}")

    def _asked(self, request: Request) -> None:
        if not request.url.startswith("data:"):
            self.requests.append(request.url)


@pytest.fixture(scope="module", params=[(w, s) for w in WIDTHS for s in ("light", "dark")])
def visit(request: pytest.FixtureRequest, browser: Browser, report: str) -> Visit:
    device, scheme = request.param
    return Visit(browser, report, WIDTHS[device], scheme)


def test_loads_without_a_complaint_or_a_request(visit: Visit, report: str) -> None:
    assert visit.console == []
    assert visit.failed == []
    assert visit.requests == [report], "the page itself and nothing else"


def test_every_picture_is_decoded_and_described(visit: Visit) -> None:
    images = visit.page.eval_on_selector_all(
        "img", "all => all.map(i => [i.complete, i.naturalWidth, i.alt])"
    )
    assert len(images) > 60
    assert all(complete and width > 0 and alt for complete, width, alt in images)
    drawings = visit.page.eval_on_selector_all(
        ".chart",
        """all => all.map(c => [c.querySelector('[role=img]').ariaLabel,
                                c.querySelector('figcaption').textContent,
                                c.querySelector('svg').getBoundingClientRect().height])""",
    )
    assert len(drawings) == 17
    for label, hint, height in drawings:
        assert label
        assert "Look" in hint
        assert height > 80


def test_the_page_never_scrolls_sideways(visit: Visit) -> None:
    width, client = visit.page.evaluate(
        "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    )
    assert width <= client
    outside = visit.page.evaluate(
        """() => [...document.querySelectorAll('main *')]
             .filter(e => !e.closest('.scroll table') && !e.closest('svg *'))
             .filter(e => e.getBoundingClientRect().right > innerWidth + 1)
             .map(e => e.tagName + '.' + e.className)"""
    )
    assert outside == [], "only tables inside their own scrolling container may be wider"


def test_headings_and_table_of_contents(visit: Visit) -> None:
    page = visit.page
    assert page.locator("h1").all_inner_texts() == ["Face set report"]
    assert page.locator("h2").all_inner_texts() == HEADINGS
    links = page.eval_on_selector_all("nav a", "all => all.map(a => a.getAttribute('href'))")
    assert len(links) == len(HEADINGS)
    assert all(page.locator(link).count() == 1 for link in links)
    ids = page.eval_on_selector_all("[id]", "all => all.map(e => e.id)")
    assert len(ids) == len(set(ids))


def test_text_has_the_contrast_of_wcag_aa(visit: Visit) -> None:
    assert visit.page.evaluate(CONTRAST) == []


def test_names_are_text_and_never_markup(visit: Visit) -> None:
    assert visit.page.locator("script").count() == 0
    title = visit.page.locator("h3", has_text='<script>alert("1")</script>&x')
    assert title.count() >= 1


def test_wide_tables_scroll_in_their_container_on_a_phone(browser: Browser, report: str) -> None:
    page = Visit(browser, report, WIDTHS["phone"], "light").page
    widths = page.eval_on_selector_all(
        ".scroll", "all => all.map(s => [s.scrollWidth, s.clientWidth])"
    )
    assert any(inner > outer for inner, outer in widths)
    assert page.eval_on_selector_all(".scroll", "all => all.every(s => s.tabIndex === 0)")


def test_reads_the_same_without_scripting(browser: Browser, report: str) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(report)
    assert page.locator("h2").count() == len(HEADINGS)
