"""Screenshots of MLflow's UI for the README: ``python tools/make_screenshots.py <server> <run id of the sweep>``.

Each page is opened as a person opens it, and waited for until its content is there; the tests make the same visits.
Chromium and its driver are Debian's packages. The browser can reach no host but this machine.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote, urlsplit

from mlflow import MlflowClient
from PIL import Image
from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException, TimeoutException
from selenium.webdriver import Chrome, ChromeOptions, Keys
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from pipeline.tracking.shared_view import route

__all__ = ["Review", "browser", "missing", "requested"]

IMAGES = Path(__file__).parents[1] / "docs" / "images"

# Seconds until a page has to show its content; long, since the machine may be busy.
_TIMEOUT = 120.0
_SIZE = (1440, 900)
_ARGUMENTS = [
    "--headless=new",
    # Root cannot have a sandbox.
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-proxy-server",
    "--force-color-profile=srgb",
    "--hide-scrollbars",
    f"--window-size={_SIZE[0]},{_SIZE[1]}",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost, EXCLUDE 127.0.0.1",
]
# Local storage of a returning user, who has chosen model training and closed the assistant.
_RETURNING_USER = {
    "mlflow.workflowType_v1": '"machine_learning"',
    "mlflow.assistant.fab.autoOpenedOnFirstLoad_v1": "true",
    "mlflow.assistant.panelOpen_v1": "false",
}

_NOTE = '[data-testid="note-editor-preview-content"]'
_ARTIFACT = '[data-testid="artifact-tree-node"]'
_CARD = '[data-testid="experiment-view-compare-runs-card"]'
_SECTION = '[data-testid="experiment-view-compare-runs-section-header"]'
_PATH = "[class*=breadcrumb-link]"
_AXIS = ".parcoords .axis-title"
# Colored pixels; a plot without a line has none.
_LINES = 300

T = TypeVar("T")


def missing() -> str:
    """Return the programs that a browser needs and this machine lacks; empty if it has all."""
    names = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    return " and ".join(names)


@contextlib.contextmanager
def browser(folder: Path) -> Iterator[Chrome]:
    """Start a headless browser with a new profile.

    Args:
        folder: Where it writes the last page, as ``page.png`` and ``page.html``, if something fails.
    """
    options = ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        for argument in [*_ARGUMENTS, f"--user-data-dir={profile}"]:
            options.add_argument(argument)
        driver = Chrome(options, Service(shutil.which("chromedriver")))
        # The size of a window counts its frame, which a headless one has as well.
        size = {"width": _SIZE[0], "height": _SIZE[1], "deviceScaleFactor": 1, "mobile": False}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        try:
            yield driver
        except BaseException as error:
            folder.mkdir(parents=True, exist_ok=True)
            driver.save_screenshot(str(folder / "page.png"))
            (folder / "page.html").write_text(driver.page_source, encoding="utf-8")
            error.add_note(f"the page was {driver.current_url}, and is in {folder} as page.png and page.html")
            raise
        finally:
            driver.quit()


def requested(driver: Chrome) -> set[str]:
    """Return the ``scheme://host`` of each request since the last call; content embedded in a page has no host."""
    hosts = set()
    for entry in driver.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            address = urlsplit(message["params"]["request"]["url"])
            hosts.add(f"{address.scheme}://{address.hostname or ''}")
    return hosts


@dataclass(frozen=True)
class Review:
    """The pages of a sweep in MLflow's UI.

    Args:
        driver: The browser.
        address: Address of the server.
        experiment_id: Id of the experiment.
        run_id: Id of the run of the sweep.
    """

    driver: Chrome
    address: str
    experiment_id: str
    run_id: str

    def settle(self) -> None:
        """Make the browser that of a returning user."""
        self.driver.get(f"{self.address}/health")
        for key, value in _RETURNING_USER.items():
            self.driver.execute_script("localStorage.setItem(arguments[0], arguments[1])", key, value)

    def landed(self, address: str) -> list[str]:
        """Open a page of a run as a new user, and return the labels of the path that leads to it."""
        self.driver.get(address)
        self._until("a run", lambda: self._one('[data-testid="key-value-Run ID"]'))
        return [link.text for link in self._all(_PATH)]

    def description(self) -> WebElement:
        """Open the sweep's page and expand its description."""
        self._open(self._run(self.run_id))
        self._until("the description", lambda: self._one('[data-testid="show-comment-toggle"]')).click()
        self._until("its table", lambda: self._one(f"{_NOTE} table"))
        return self._one(_NOTE)

    def artifacts(self, folder: str) -> list[str]:
        """Return the names of the sweep's files, and of those in one of its folders."""
        self._open(f"{self._run(self.run_id)}/artifacts")
        node = self._until(folder, lambda: self._one(f'{_ARTIFACT}[artifact-name="{folder}"]'))
        before = len(self._all(_ARTIFACT))
        node.click()
        self._until(f"what is in {folder}", lambda: len(self._all(_ARTIFACT)) > before)
        return [str(node.get_attribute("artifact-name")) for node in self._all(_ARTIFACT)]

    def report(self) -> list[WebElement]:
        """Open the report among the artifacts, and return its figures once all are drawn."""
        self._open(f"{self._run(self.run_id)}/artifacts/report/report.html")
        self.driver.switch_to.frame(self._until("the report", lambda: self._one("iframe")))
        return self.figures()

    def figures(self) -> list[WebElement]:
        """Return the figures of the open report once all are drawn."""
        self._until("the figures", lambda: self._all(".plotly-graph-div"))
        drawn = ".plotly-graph-div.js-plotly-plot .main-svg .xtitle"
        self._until("them drawn", lambda: len(self._all(drawn)) >= len(self._all(".plotly-graph-div")))
        return self._all(".plotly-graph-div")

    def trials(self, address: str) -> list[str]:
        """Open the sweep's view of its trials, and return the texts of the table's rows in their order."""
        self.driver.get("about:blank")
        self.driver.get(address)
        self._until("trials", lambda: self._one_with("[role=row]", "trial "))
        # The columns of names and those of scores are two parts of one row.
        rows: dict[str, list[str]] = {}
        for part in self._all(".ag-row"):
            rows.setdefault(str(part.get_attribute("row-index")), []).append(part.text)
        return [" ".join(parts) for _, parts in sorted(rows.items(), key=lambda row: int(row[0]))]

    def is_whole_in_view(self, key: str) -> bool:
        """Return whether a picture, in the upper two fifths of its square thumbnail, is seen whole in its card."""
        script = """
            const box = arguments[0].getBoundingClientRect();
            let part = arguments[0];
            while (getComputedStyle(part).overflowY !== "auto") part = part.parentElement;
            const inside = part.getBoundingClientRect();
            return box.width > 200 && box.top >= inside.top && box.top + 0.42 * box.height <= inside.bottom;
        """
        return bool(self.driver.execute_script(script, self._one(f"{_card(key)} img")))

    def comparison(self, runs: list[str]) -> set[str]:
        """Compare trials by parallel coordinates, and return the axes once lines are drawn between them."""
        chosen = quote(json.dumps(runs)), quote(json.dumps([self.experiment_id]))
        self._open("compare-runs?runs={}&experiments={}".format(*chosen))
        self._until("lines", lambda: _count_colored_pixels(self._one(".js-plotly-plot:has(.parcoords)")) > _LINES)
        return {axis.text for axis in self._all(_AXIS)}

    def ranked_by(self, metric: str) -> None:
        """Show a metric in the comparison, in place of the one that it begins with."""
        chooser = self._all("[class*=select-multiple]")[-1]
        chooser.find_element(By.CSS_SELECTOR, "[class*=item-remove]").click()
        chooser.click()
        chooser.find_element(By.CSS_SELECTOR, "input").send_keys(metric, Keys.ENTER, Keys.ESCAPE)
        self._until(metric, lambda: metric in {axis.text for axis in self._all(_AXIS)})

    def metrics(self, run: str) -> list[str]:
        """Return the groups of a trial's metrics."""
        self._open(f"{self._run(run)}/model-metrics")
        self._until("charts", lambda: self._all(f"{_CARD} .main-svg .xtitle"))
        return [section.text.splitlines()[0] for section in self._all(_SECTION)]

    def system(self, run: str) -> list[str]:
        """Return the names of a trial's charts of the machine's load."""
        self._open(f"{self._run(run)}/system-metrics")
        self._until("charts", lambda: self._all(f"{_CARD} .main-svg .xtitle"))
        return [card.text.splitlines()[0] for card in self._all(_CARD)]

    def pictures(self, run: str, key: str) -> dict[int, str]:
        """Move the slider of a trial's picture through, and return its addresses by base step."""
        self._open(f"{self._run(run)}/model-metrics")
        slider = self._until(key, lambda: self._slider(key))
        last, addresses = int(str(slider.get_attribute("aria-valuemax"))), {}
        while last not in addresses:
            slider.send_keys(Keys.ARROW_RIGHT)
            step, address = self._until(f"another {key}", lambda: self._shown(key, addresses))
            addresses[step] = address
        return addresses

    def enlarged(self, key: str) -> WebElement:
        """Enlarge the picture at the slider's position, and return it."""
        self._one(f"{_card(key)} img").click()
        return self._until("the picture", lambda: self._loaded(self._one(".rc-image-preview-img")))

    def model(self, name: str) -> WebElement:
        """Open a registered model, and return the row of its version that has an alias."""
        self._open(f"models/{quote(name)}")
        return self._until("an alias", lambda: self._one_with("[role=row]", "@"))

    def _run(self, run: str) -> str:
        return f"experiments/{self.experiment_id}/runs/{run}"

    def _open(self, route: str) -> None:
        self.driver.switch_to.default_content()
        # Otherwise the page before would be shown for a while.
        self.driver.get("about:blank")
        self.driver.get(f"{self.address}/#/{route}")

    def _until(self, what: str, condition: Callable[[], T | None]) -> T:
        passing = (NoSuchElementException, StaleElementReferenceException)
        wait = WebDriverWait(self.driver, _TIMEOUT, poll_frequency=0.2, ignored_exceptions=passing)
        try:
            return wait.until(lambda _: condition())
        except TimeoutException:
            raise TimeoutException(f"{self.driver.current_url} does not show {what}") from None

    def _one(self, css: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, css)

    def _all(self, css: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, css)

    def _one_with(self, css: str, text: str) -> WebElement | None:
        return next((element for element in self._all(css) if text in element.text), None)

    def _slider(self, key: str) -> WebElement:
        """Return the slider of a picture; cards are made when they come into view, and pictures come last."""
        for section in self._all(_SECTION)[-1:]:
            self.driver.execute_script("arguments[0].scrollIntoView()", section)
        return self._one(f"{_card(key)} [role=slider]")

    def _shown(self, key: str, known: dict[int, str]) -> tuple[int, str] | None:
        """Return the slider's position and the address of its picture, if that is loaded and not known."""
        step = int(str(self._slider(key).get_attribute("aria-valuenow")))
        image = self._loaded(self._one(f"{_card(key)} img"))
        address = str(image.get_attribute("src")) if image else ""
        return (step, address) if step not in known and f"step%2B{step}%2B" in address else None

    def _loaded(self, image: WebElement) -> WebElement | None:
        width = self.driver.execute_script("return arguments[0].complete && arguments[0].naturalWidth", image)
        return image if width else None


def _card(title: str) -> str:
    return f'{_CARD}:has(h4[title="{title}"])'


def _count_colored_pixels(element: WebElement) -> int:
    """Return the number of pixels that are no shade of gray."""
    with Image.open(io.BytesIO(element.screenshot_as_png)) as shown:
        return sum(shown.convert("HSV").getchannel("S").histogram()[60:])


def main() -> None:
    """Visit the pages and save a screenshot of each."""
    parser = argparse.ArgumentParser(description="Take the screenshots of the README from an MLflow server.")
    parser.add_argument("server", help="address of an MLflow server")
    parser.add_argument("sweep", help="run id of a sweep that has ended")
    arguments = parser.parse_args()
    client = MlflowClient(arguments.server)
    sweep = client.get_run(arguments.sweep)
    experiment, folder = sweep.info.experiment_id, Path(tempfile.mkdtemp())
    trials = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{arguments.sweep}'")
    [best] = [trial.info.run_id for trial in trials if trial.data.tags["trial"] == sweep.data.tags["best_trial"]]
    with browser(folder) as driver:
        review = Review(driver, arguments.server, experiment, arguments.sweep)
        review.settle()
        review.description()
        _save(driver, "ui-sweep")
        review.comparison([trial.info.run_id for trial in trials])
        review.ranked_by(next(name for name in sweep.data.metrics if "/gebm" in name))
        _save(driver, "ui-compare")
        review.trials(f"{arguments.server}/{route(experiment, arguments.sweep)}")
        _save(driver, "ui-trials")
        review.metrics(best)
        _save(driver, "ui-trial")
        review.pictures(best, "by_energy")
        review.enlarged("by_energy")
        _save(driver, "ui-pictures")
        review.model(client.get_experiment(experiment).name)
        _save(driver, "ui-model")
        driver.get(Path(client.download_artifacts(arguments.sweep, "report/report.html", str(folder))).as_uri())
        first = review.figures()[0]
        _save(driver, "report")
        driver.execute_script("arguments[0].scrollIntoView()", first)
        _save(driver, "report-charts")


def _save(driver: Chrome, name: str) -> None:
    """Save what the browser shows, with few enough colors for a small file."""
    # Animations end before a picture is taken; the tests need no such wait.
    time.sleep(1.0)
    with Image.open(io.BytesIO(driver.get_screenshot_as_png())) as shown:
        few = shown.convert("RGB").quantize(256, dither=Image.Dither.NONE)
        few.save(IMAGES / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
