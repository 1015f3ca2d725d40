"""How soon the page of `explore app` answers: from a slider's move to the painted picture, in headless Chromium.

    python benchmarks/app.py --run runs/NAME      (about a minute; Chromium and its driver must be installed)

One slider after the other is moved, each move once the picture of the one before was painted: encoding of the request,
Gradio, latents, decoder, PNG, the way back, and the browser's work are all in it. Beside it, what of that is ours:
latents, decoder and PNG, timed in this process.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.browser import browsing, missing, served  # noqa: E402
from explore.commands import App  # noqa: E402
from explore.model import load_trained  # noqa: E402
from explore.page.studio import Face, Studio, open_studio, png  # noqa: E402
from pipeline.errors import EXIT_FAULT, LeanstreamError, UserError, report_error  # noqa: E402

LIMIT_MS = 200.0
_MOVES = """
const [moves, done] = arguments;
const sliders = [...document.querySelectorAll(".sliders input[type=range]")].filter((slider) => slider.offsetParent);
const picture = document.querySelector("#face");
const times = [];
const move = () => {
  if (times.length === moves) return done(times);
  const slider = sliders[times.length % sliders.length];
  const before = picture.querySelector("img").src;
  const start = performance.now();
  const observer = new MutationObserver(async () => {
    const image = picture.querySelector("img");
    if (!image || image.src === before) return;
    observer.disconnect();
    await image.decode();
    requestAnimationFrame(() => { times.push(performance.now() - start); setTimeout(move); });
  });
  observer.observe(picture, {subtree: true, childList: true, attributes: true});
  slider.value = Number(slider.value) > 0 ? slider.min : slider.max;
  slider.dispatchEvent(new Event("input", {bubbles: true}));
};
move();
"""


def main() -> int:
    """Measure, print, and write the figures as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    chosen = parser.add_mutually_exclusive_group(required=True)
    chosen.add_argument("--run", type=Path, help="run folder")
    chosen.add_argument("--model", help="finished model")
    parser.add_argument("--moves", type=int, default=200, help="of sliders")
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args()
    try:
        lacking = missing()
        if lacking:
            raise UserError(f"the browser must be installed; got {lacking}.")
        named = ["--run", str(options.run)] if options.run else ["--model", options.model]
        figures = {
            "page": summary(page_times(named, options.moves)),
            "ours": summary(our_times(App(run=options.run, model=options.model), options.moves)),
        }
    except LeanstreamError as error:
        return report_error(error, "measuring")
    show(figures)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 0 if figures["page"]["p95_ms"] <= LIMIT_MS else EXIT_FAULT


def page_times(named: list[str], moves: int) -> list[float]:
    """Milliseconds from each slider's move to its painted picture."""
    with tempfile.TemporaryDirectory() as folder, served(*named) as (url, _), browsing(Path(folder)) as driver:
        driver.set_script_timeout(300)
        driver.get(url)
        driver.implicitly_wait(30)
        driver.find_element("css selector", "#face img")
        driver.find_element("css selector", ".sliders input[type=range]")
        driver.execute_async_script(_MOVES, 5)  # What only the first moves cost.
        found: list[float] = driver.execute_async_script(_MOVES, moves)
    return found


def our_times(command: App, moves: int) -> list[float]:
    """Milliseconds of latents, decoder and PNG of each move."""
    studio = open_studio(load_trained(command), Console())
    torch.set_num_threads(1)  # As the page does.
    face = studio.random_face(0)
    amounts = np.linspace(-4, 4, moves + 5)
    return [_timed(studio, face, float(amount)) for amount in amounts][5:]


def _timed(studio: Studio, face: Face, amount: float) -> float:
    began = time.perf_counter()
    attributes = {studio.attributes[0]: amount} if studio.attributes else {}
    png(studio.picture(studio.edited(face, attributes, {studio.dimensions[0].number: amount})))
    return 1000 * (time.perf_counter() - began)


def summary(times: list[float]) -> dict[str, float]:
    """Median, 95th percentile and maximum."""
    return {
        "median_ms": statistics.median(times),
        "p95_ms": statistics.quantiles(times, n=20)[-1],
        "max_ms": max(times),
        "moves": len(times),
    }


def show(figures: dict[str, dict[str, float]]) -> None:
    """Print the figures as a table."""
    table = Table(title=f"From a slider's move to the picture (limit {LIMIT_MS:.0f} ms)")
    for column in ("", "median ms", "95% ms", "max ms", "moves"):
        table.add_column(column, justify="right" if column else "left")
    for text, name in (("page, in the browser", "page"), ("of that: latents, decoder, PNG", "ours")):
        found = figures[name]
        table.add_row(text, *(f"{found[key]:.1f}" for key in ("median_ms", "p95_ms", "max_ms")), str(found["moves"]))
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
