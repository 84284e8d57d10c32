"""The page on the claim, its figures and the README's paragraph, from the results' files that are there.

No number of them is typed by hand: all come from the files or from the settings that the runs were made with.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from benchmarks.claim import causes_section, outcome_section, setup_section
from benchmarks.claim.figures import draw
from benchmarks.claim.formatting import paragraph, share_of
from benchmarks.claim.results import Results
from benchmarks.claim.settings import OBJECTIVES, SEEDS, SETTINGS
from benchmarks.claim.verdict import summary

__all__ = ["IMAGES", "PAGE", "README", "document", "marked", "summary", "write_page"]

PAGE, IMAGES, README = Path("docs/results/images.md"), Path("docs/images"), Path("README.md")
_ROOT = Path(__file__).resolve().parents[2]
_BEGIN, _END = "<!-- claim -->", "<!-- /claim -->"

COMMANDS = """## Made by

```sh
python -m benchmarks.claim stores --photographs cifar10-jpeg.zip    # the stores, once
python -m benchmarks.claim penalties                                # The penalty of each objective
python -m benchmarks.claim guard                                    # The knocked-out energy
python -m benchmarks.claim runs --setting {settings}
python -m benchmarks.claim why                                      # Flat energies, Overfitting
python -m benchmarks.claim page                                     # this page, and the README's paragraph
```

Each part resumes what is there; `--share 0/2` and `--share 1/2` divide it between two processes. `runs` makes all
sections that are not named here.
"""


def write_page(results: Path, root: Path = _ROOT) -> None:
    """Write the page, its figures and the README's paragraph.

    Args:
        results: The folder of the results' files; any of them may be missing.
        root: The project's folder.

    Raises:
        ValueError: If the README has no place for the paragraph.
    """
    found = Results.load(results)
    readme = root / README
    with_claim = marked(readme.read_text(), summary(found))
    drawn = draw(found, root / IMAGES)
    page = root / PAGE
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(_with_links(document(found, set(drawn)), drawn, page.parent))
    readme.write_text(with_claim)
    print(f"written: {page}")


def document(results: Results, figures: set[str]) -> str:
    """Return the page; figures are named ``FIGURE:<name>`` in it.

    Args:
        results: Whatever is there.
        figures: Names of those that were drawn.

    Returns:
        The page in Markdown.
    """
    total = len(SETTINGS) * len(OBJECTIVES) * len(SEEDS)
    number = share_of(len(results.runs), total)
    sections = [
        "# Does a GEBM beat the GAN?",
        summary(results),
        paragraph(_WHAT.format(number=number, judges=_judges(results))),
        setup_section.setup(results),
    ]
    if results.runs:
        sections += [
            outcome_section.scores(results, figures),
            outcome_section.comparisons(results),
            outcome_section.precision(results, figures),
            outcome_section.curves(results, figures),
        ]
    sections += [
        "## Why",
        causes_section.guard(results),
        causes_section.flat(results),
        causes_section.temperature(results, figures),
        causes_section.phase(results, figures),
        causes_section.overfit(results, figures),
        causes_section.lag(results),
        COMMANDS.format(settings=" ".join(SETTINGS)),
    ]
    return "\n\n".join(section.strip() for section in sections if section) + "\n"


def marked(text: str, claim: str) -> str:
    r"""Return a text with the claim between its markers.

    Args:
        text: With both markers, once each.
        claim: What is to be between them.

    Returns:
        The text.

    Raises:
        ValueError: If there are no markers.

    Example:
        >>> print(marked("a\n<!-- claim -->\nold\n<!-- /claim -->\nb", "new"))
        a
        <!-- claim -->
        new
        <!-- /claim -->
        b
    """
    pattern = re.compile(f"{re.escape(_BEGIN)}.*?{re.escape(_END)}", re.DOTALL)
    if len(pattern.findall(text)) != 1:
        raise ValueError(f"the text must have one place for the claim, between {_BEGIN} and {_END}")
    return pattern.sub(lambda match: f"{_BEGIN}\n{claim}\n{_END}", text)


_WHAT = """
A *GEBM* is a generator, its *base*, together with an *energy* that reweights the base's samples; both are trained in
turn by KALE (Arbel, Zhou and Gretton, ICLR 2021), and samples are drawn by MCMC on the base's latents. A *GAN* trains
the same two networks by another pair of losses, and is usually sampled by its generator alone; with its discriminator
as an energy it can be sampled as a GEBM is. The paper claims that, all else being equal, a GEBM outperforms the GAN.
Here the training is equal: networks, data, rates, seeds and its length. Sampling is not: a generator alone has neither
chains nor a search for them, so the GAN with its discriminator and a KALE energy on the GAN's base are there to tell
what the energy of the GEBM adds. Networks and images are small, so that two cores can train them until they improve
slowly; many were still improving. {number} runs are there. {judges}
"""


def _judges(results: Results) -> str:
    names = outcome_section.extractors(results)
    if not names:
        return ""
    return (
        f"FID and all other scores are by classifiers trained here on the same images, {names}, and not by Inception: "
        f"compare them with each other only, of one data set and one number of samples."
    )


def _with_links(text: str, drawn: dict[str, Path], folder: Path) -> str:
    return re.sub(r"FIGURE:([a-z]+)", lambda match: os.path.relpath(drawn[match[1]], folder), text)
