"""Take the README's pictures of MLflow's UI: `python tools/make_screenshots.py <server> <run id of the sweep>`.

Each page is opened as a person opens it, and waited for until what he looks for is there; the tests make the same
visits. Chromium and its driver are those that Debian packages, and no host but this machine is let in.
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

__all__ = ["Review", "browser", "missing", "requested"]

IMAGES = Path(__file__).parents[1] / "docs" / "images"

_PATIENCE = 120.0  # seconds until a page shows what it is opened for, on a machine that is busy
_SIZE = (1400, 1000)
_ARGUMENTS = [
    "--headless=new",
    "--no-sandbox",  # which it cannot have as root
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-proxy-server",
    "--force-color-profile=srgb",
    "--hide-scrollbars",
    f"--window-size={_SIZE[0]},{_SIZE[1]}",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost, EXCLUDE 127.0.0.1",
]
# What MLflow's UI keeps of who has been here before: he trains models, and has closed the assistant.
_SETTLED = {
    "mlflow.workflowType_v1": '"machine_learning"',
    "mlflow.assistant.fab.autoOpenedOnFirstLoad_v1": "true",
}

_NOTE = '[data-testid="note-editor-preview-content"]'
_ARTIFACT = '[data-testid="artifact-tree-node"]'
_CARD = '[data-testid="experiment-view-compare-runs-card"]'
_SECTION = '[data-testid="experiment-view-compare-runs-section-header"]'
_PATH = "[class*=breadcrumb-link]"
_AXIS = ".parcoords .axis-title"
_LINES = 300  # coloured pixels, of which a plot without a line has none

Found = TypeVar("Found")


def missing() -> str:
    """What a browser wants and this machine has not; empty if there is nothing."""
    names = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    return " and ".join(names)


@contextlib.contextmanager
def browser(folder: Path) -> Iterator[Chrome]:
    """A browser without a window, and without anything of an earlier one.

    Args:
        folder: where it leaves what it showed last, ``page.png`` and ``page.html``, if something fails.
    """
    options = ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        for argument in [*_ARGUMENTS, f"--user-data-dir={profile}"]:
            options.add_argument(argument)
        driver = Chrome(options, Service(shutil.which("chromedriver")))
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
    """What has been asked for since the last time, each as ``scheme://host``; what lies in the page has no host."""
    asked = set()
    for entry in driver.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            address = urlsplit(message["params"]["request"]["url"])
            asked.add(f"{address.scheme}://{address.hostname or ''}")
    return asked


@dataclass(frozen=True)
class Review:
    """The pages of a sweep in MLflow's UI.

    Args:
        driver: the browser.
        address: of the server.
        experiment_id: of the experiment.
        run_id: of the sweep.
    """

    driver: Chrome
    address: str
    experiment_id: str
    run_id: str

    def settle(self) -> None:
        """Be somebody who has been here before."""
        self.driver.get(f"{self.address}/health")
        for key, value in _SETTLED.items():
            self.driver.execute_script("localStorage.setItem(arguments[0], arguments[1])", key, value)

    def landed(self, address: str) -> list[str]:
        """A page of a run, for somebody who has not been here before: the words of the path that leads to it."""
        self.driver.get(address)
        self._until("a run", lambda: self._one('[data-testid="key-value-Run ID"]'))
        return [link.text for link in self._all(_PATH)]

    def description(self) -> WebElement:
        """The sweep's own page, its description shown whole."""
        self._open(self._run(self.run_id))
        self._until("the description", lambda: self._one('[data-testid="show-comment-toggle"]')).click()
        self._until("its table", lambda: self._one(f"{_NOTE} table"))
        return self._one(_NOTE)

    def artifacts(self, folder: str) -> list[str]:
        """The names of the sweep's files, those in a folder of them as well."""
        self._open(f"{self._run(self.run_id)}/artifacts")
        node = self._until(folder, lambda: self._one(f'{_ARTIFACT}[artifact-name="{folder}"]'))
        before = len(self._all(_ARTIFACT))
        node.click()
        self._until(f"what is in {folder}", lambda: len(self._all(_ARTIFACT)) > before)
        return [str(node.get_attribute("artifact-name")) for node in self._all(_ARTIFACT)]

    def report(self) -> list[WebElement]:
        """The report among the artifacts: its figures, once all are drawn."""
        self._open(f"{self._run(self.run_id)}/artifacts/report/report.html")
        self.driver.switch_to.frame(self._until("the report", lambda: self._one("iframe")))
        return self.figures()

    def figures(self) -> list[WebElement]:
        """The figures of the report that is open, once all are drawn."""
        self._until("the figures", lambda: self._all(".plotly-graph-div"))
        drawn = ".plotly-graph-div.js-plotly-plot .main-svg .xtitle"
        self._until("them drawn", lambda: len(self._all(drawn)) >= len(self._all(".plotly-graph-div")))
        return self._all(".plotly-graph-div")

    def comparison(self, runs: list[str]) -> set[str]:
        """Trials side by side, in a plot of parallel coordinates: its axes, once lines are drawn between them."""
        chosen = quote(json.dumps(runs)), quote(json.dumps([self.experiment_id]))
        self._open("compare-runs?runs={}&experiments={}".format(*chosen))
        self._until("lines", lambda: _coloured(self._one(".js-plotly-plot:has(.parcoords)")) > _LINES)
        return {axis.text for axis in self._all(_AXIS)}

    def ranked_by(self, metric: str) -> None:
        """Have the comparison show a metric in place of the one that it begins with."""
        chooser = self._all("[class*=select-multiple]")[-1]
        chooser.find_element(By.CSS_SELECTOR, "[class*=item-remove]").click()
        chooser.click()
        chooser.find_element(By.CSS_SELECTOR, "input").send_keys(metric, Keys.ENTER, Keys.ESCAPE)
        self._until(metric, lambda: metric in {axis.text for axis in self._all(_AXIS)})

    def metrics(self, run: str) -> list[str]:
        """The groups that a trial's metrics stand in."""
        self._open(f"{self._run(run)}/model-metrics")
        self._until("charts", lambda: self._all(f"{_CARD} .main-svg .xtitle"))
        return [section.text.splitlines()[0] for section in self._all(_SECTION)]

    def system(self, run: str) -> list[str]:
        """The names of a trial's charts of the machine's load."""
        self._open(f"{self._run(run)}/system-metrics")
        self._until("charts", lambda: self._all(f"{_CARD} .main-svg .xtitle"))
        return [card.text.splitlines()[0] for card in self._all(_CARD)]

    def pictures(self, run: str, key: str) -> dict[int, str]:
        """A trial's pictures of one name, moved through by the slider: base step to address."""
        self._open(f"{self._run(run)}/model-metrics")
        slider = self._until(key, lambda: self._slider(key))
        last, found = int(str(slider.get_attribute("aria-valuemax"))), {}
        while last not in found:
            slider.send_keys(Keys.ARROW_RIGHT)
            step, address = self._until(f"another {key}", lambda: self._shown(key, found))
            found[step] = address
        return found

    def enlarged(self, key: str) -> WebElement:
        """The picture that the slider stands at, in its own size."""
        self._one(f"{_card(key)} img").click()
        return self._until("the picture", lambda: self._loaded(self._one(".rc-image-preview-img")))

    def model(self, name: str) -> WebElement:
        """A registered model: the row of its version that has an alias."""
        self._open(f"models/{quote(name)}")
        return self._until("an alias", lambda: self._one_with("[role=row]", "@"))

    def _run(self, run: str) -> str:
        return f"experiments/{self.experiment_id}/runs/{run}"

    def _open(self, route: str) -> None:
        self.driver.switch_to.default_content()
        self.driver.get("about:blank")  # or the page before stands there for a while
        self.driver.get(f"{self.address}/#/{route}")

    def _until(self, what: str, condition: Callable[[], Found]) -> Found:
        passing = (NoSuchElementException, StaleElementReferenceException)
        wait = WebDriverWait(self.driver, _PATIENCE, poll_frequency=0.2, ignored_exceptions=passing)
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
        """The slider of a picture; cards are made as they come into view, and those of pictures are the last."""
        for section in self._all(_SECTION)[-1:]:
            self.driver.execute_script("arguments[0].scrollIntoView()", section)
        return self._one(f"{_card(key)} [role=slider]")

    def _shown(self, key: str, known: dict[int, str]) -> tuple[int, str] | None:
        """Where the slider stands and the picture of that step, if it is there and not known."""
        step = int(str(self._slider(key).get_attribute("aria-valuenow")))
        image = self._loaded(self._one(f"{_card(key)} img"))
        address = str(image.get_attribute("src")) if image else ""
        return (step, address) if step not in known and f"step%2B{step}%2B" in address else None

    def _loaded(self, image: WebElement) -> WebElement | None:
        width = self.driver.execute_script("return arguments[0].complete && arguments[0].naturalWidth", image)
        return image if width else None


def _card(title: str) -> str:
    return f'{_CARD}:has(h4[title="{title}"])'


def _coloured(element: WebElement) -> int:
    """How many pixels of it are no shade of grey."""
    with Image.open(io.BytesIO(element.screenshot_as_png)) as shown:
        return sum(shown.convert("HSV").getchannel("S").histogram()[60:])


def main() -> None:
    """Visit the pages, and keep what they show."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("server", help="address of an MLflow server")
    parser.add_argument("sweep", help="run id of a sweep that has ended")
    arguments = parser.parse_args()
    client = MlflowClient(arguments.server)
    sweep = client.get_run(arguments.sweep)
    place, folder = sweep.info.experiment_id, Path(tempfile.mkdtemp())
    trials = client.search_runs([place], f"tags.`mlflow.parentRunId` = '{arguments.sweep}'")
    [best] = [trial.info.run_id for trial in trials if trial.data.tags["trial"] == sweep.data.tags["best_trial"]]
    with browser(folder) as driver:
        review = Review(driver, arguments.server, place, arguments.sweep)
        review.settle()
        review.description()
        _keep(driver, "ui-sweep")
        review.comparison([trial.info.run_id for trial in trials])
        review.ranked_by(next(name for name in sweep.data.metrics if "/gebm" in name))
        _keep(driver, "ui-compare")
        review.metrics(best)
        _keep(driver, "ui-trial")
        review.pictures(best, "by_energy")
        review.enlarged("by_energy")
        _keep(driver, "ui-pictures")
        review.model(client.get_experiment(place).name)
        _keep(driver, "ui-model")
        driver.get(Path(client.download_artifacts(arguments.sweep, "report/report.html", str(folder))).as_uri())
        driver.set_window_size(_SIZE[0], 2 * _SIZE[1])
        first = review.figures()[0]
        _keep(driver, "report", height=first.rect["y"] + first.rect["height"])


def _keep(driver: Chrome, name: str, height: int | None = None) -> None:
    """What the browser shows, down to a height, in as many colours as a small file has."""
    time.sleep(1.0)  # until what moves has come to rest, which is asked of pictures alone
    with Image.open(io.BytesIO(driver.get_screenshot_as_png())) as shown:
        whole = shown.convert("RGB").crop((0, 0, shown.width, int(height or shown.height)))
        whole.quantize(256, dither=Image.Dither.NONE).save(IMAGES / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
