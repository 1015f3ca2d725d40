"""The page of `explore app`: two tabs, their events, their look (`page.css`). What a picture shows is in `studio.py`.

    sliders --input--> latents --> PNG as a data: URL --> <img>

A slider's event goes past Gradio's queue and answers in one request, without a file; of moves that come faster than
answers the last one wins. Events are a person's input alone: sliders that a function puts back fire none. What a
visitor sees is in that visitor's `gr.State`; the studio is shared and never changes.
"""

import base64
import html
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from explore.page.studio import Dimension, Face, Studio, enlarged, png
from pipeline.errors import UserError

try:
    import gradio as gr
except ImportError as error:
    raise UserError(
        "the page must be made by gradio; got no such package. Install it: pip install 'leanstream[explore]'"
    ) from error

STYLE = Path(__file__).with_name("page.css")
SMOOTH, EXACT = "Smooth", "Exact pixels"
FIRST_ATTRIBUTES = 8
"""Sliders of attributes that are in sight at once."""
AMOUNT = 4.0
"""Where sliders end: deviations of a dimension, strengths of a direction."""
LARGEST_FILE = "64mb"
_LARGEST_SEED = 2**31 - 1
_SAVE = """async (file) => {
  if (!file) return;
  const link = document.createElement("a");
  link.download = file[0];
  // Browsers refuse to save long data: URLs.
  link.href = URL.createObjectURL(await (await fetch(file[1])).blob());
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}"""
_SCALING = f"(how) => document.body.classList.toggle('exact-pixels', how === '{EXACT}')"
_FAST: Any = {"queue": False, "show_progress": "hidden", "trigger_mode": "always_last", "api_visibility": "private"}
_ONCE: Any = {**_FAST, "show_progress": "minimal", "trigger_mode": "once"}


def theme() -> Any:
    """The project's colours on fonts that the visitor's system has."""
    made = gr.themes.Base(
        primary_hue=gr.themes.colors.sky,
        neutral_hue=gr.themes.colors.stone,
        font=["sans-serif"],
        font_mono=["monospace"],
    )
    return made.set(
        body_background_fill="#faf9f6",
        body_text_color="#282a30",
        block_background_fill="white",
        block_border_width="0px",
        block_shadow="none",
        button_primary_background_fill="#0072b2",
        button_primary_background_fill_hover="#005f96",
        button_primary_background_fill_dark="#0072b2",
        button_primary_background_fill_hover_dark="#2389c4",
        button_primary_text_color="white",
        slider_color="#0072b2",
        slider_color_dark="#56b4e9",
    )


def build_page(studio: Studio, title: str, seed: int) -> Any:
    """The page as `gr.Blocks`; `seed` draws the first faces."""
    size = studio.trained.model.architecture.image_size
    facts = f"{size} by {size} pixels · {studio.trained.model.latent} latent dimensions"
    # Uploads are deleted when they were read; this deletes what was uploaded and never read.
    with gr.Blocks(title=f"{title} · faces", analytics_enabled=False, delete_cache=(60, 300)) as page:
        gr.HTML(f"<h1>{html.escape(title)}</h1><p>{facts}</p>", elem_id="header", js_on_load=None)
        with gr.Tabs():
            with gr.Tab("Face"):
                _face_tab(studio, seed)
            with gr.Tab("Morph"):
                _morph_tab(studio, seed)
    return page


@dataclass(frozen=True)
class _Sliders:
    attributes: dict[str, Any]
    dimensions: dict[int, Any]

    @property
    def all(self) -> list[Any]:
        return [*self.attributes.values(), *self.dimensions.values()]

    def amounts(self, values: tuple[float | None, ...]) -> tuple[dict[str, float], dict[int, float]]:
        """What the sliders say, in the form that `Studio.edited` takes; an emptied number field says nothing."""
        numbers = [float(value or 0) for value in values]
        count = len(self.attributes)
        return (
            dict(zip(self.attributes, numbers[:count], strict=True)),
            dict(zip(self.dimensions, numbers[count:], strict=True)),
        )


def _face_tab(studio: Studio, seed: int) -> None:
    first = studio.random_face(seed)
    face = gr.State(first)
    saved = gr.JSON(visible=False)
    with gr.Row(elem_classes="studio"):
        with gr.Column(min_width=0, elem_classes="stage"):
            with gr.Row(elem_classes="pictures"):
                photo = gr.HTML(visible=False, elem_id="photo", js_on_load=None)
                picture = gr.HTML(_shown(studio, first), elem_id="face", js_on_load=None)
            with gr.Column(elem_classes="tools"):
                another = gr.Button("Random face", variant="primary", elem_id="random", min_width=0)
                upload = _upload("upload")
                reset = gr.Button("Reset sliders", elem_id="reset", min_width=0)
                download = gr.Button("Download PNG", elem_id="download", min_width=0)
                notice = gr.HTML(elem_id="notice", elem_classes="notice", js_on_load=None)
        with gr.Column(min_width=0, elem_classes="controls"):
            sliders = _face_sliders(studio)
            with gr.Column(elem_classes=["card", "draw"]):
                number = gr.Number(seed, label="Seed", precision=0, elem_id="seed", min_width=0)
                temperature = _slider(0, 1.5, 1, label="Temperature", step=0.05, elem_id="temperature")
                scaling = gr.Radio([SMOOTH, EXACT], value=SMOOTH, label="Enlarged", elem_id="scaling", min_width=0)

    zeros = [0.0] * len(sliders.all)
    changed = [face, picture, photo, notice, *sliders.all]

    def started(new: Face) -> list[Any]:
        original = gr.HTML(visible=False)
        if new.photo is not None:
            original = gr.HTML(_figure(Image.fromarray(new.photo), "Your photo"), visible=True)
        return [new, _shown(studio, new), original, "", *zeros]

    def shown(current: Face, *values: float | None) -> str:
        attributes, dimensions = sliders.amounts(values)
        if not any(values):
            return _shown(studio, current)
        return _figure(studio.picture(studio.edited(current, attributes, dimensions)), f"{current.title}, edited")

    def drawn(number: float | None, temperature: float | None) -> list[Any]:
        return started(studio.random_face(_seed(number), 1.0 if temperature is None else temperature))

    def next_drawn(number: float | None, temperature: float | None) -> list[Any]:
        following = _next(_seed(number))
        return [following, *drawn(following, temperature)]

    def uploaded(path: str | None) -> list[Any]:
        new, problem = _read(studio, path)
        if new is None:
            return [None, *[gr.skip()] * 3, _alert(problem), *[gr.skip()] * len(zeros)]
        return [None, *started(new)]

    def downloaded(current: Face, how: str, *values: float | None) -> list[str]:
        attributes, dimensions = sliders.amounts(values)
        image = enlarged(studio.picture(studio.edited(current, attributes, dimensions)), smooth=how == SMOOTH)
        return [f"{current.name}.png", _data_url(png(image), "png")]

    for slider in sliders.all:
        slider.input(shown, [face, *sliders.all], picture, **_FAST)
    another.click(next_drawn, [number, temperature], [number, *changed], **_FAST)
    number.input(drawn, [number, temperature], changed, **_FAST)
    temperature.input(drawn, [number, temperature], changed, **_FAST)
    reset.click(started, face, changed, **_FAST)
    upload.upload(uploaded, upload, [upload, *changed], **_ONCE)
    scaling.input(None, scaling, None, js=_SCALING)
    download.click(downloaded, [face, scaling, *sliders.all], saved, **_FAST).then(None, saved, None, js=_SAVE)


def _face_sliders(studio: Studio) -> _Sliders:
    attributes: dict[str, Any] = {}
    shown, rest = studio.attributes[:FIRST_ATTRIBUTES], studio.attributes[FIRST_ATTRIBUTES:]
    if shown:
        with gr.Column(elem_classes="card"):
            gr.HTML("<h2>Attributes</h2>", js_on_load=None)
            with gr.Column(elem_classes="sliders"):
                attributes |= {name: _attribute_slider(name) for name in shown}
    if rest:
        more = gr.Accordion(f"{len(rest)} more attributes", open=False, elem_id="more-attributes", elem_classes="card")
        with more, gr.Column(elem_classes="sliders"):
            attributes |= {name: _attribute_slider(name) for name in rest}
    heading = f"The {len(studio.dimensions)} strongest latent dimensions"
    strongest = gr.Accordion(heading, open=not attributes, elem_id="dimensions", elem_classes="card")
    with strongest, gr.Column(elem_classes="sliders"):
        dimensions = {dimension.number: _dimension_slider(dimension) for dimension in studio.dimensions}
    return _Sliders(attributes, dimensions)


def _attribute_slider(name: str) -> Any:
    return _slider(-AMOUNT, AMOUNT, 0, label=name.replace("_", " "), step=0.1, elem_id=f"attribute-{name}")


def _dimension_slider(dimension: Dimension) -> Any:
    label = f"z{dimension.number} · {dimension.strength}"
    return _slider(-AMOUNT, AMOUNT, 0, label=label, step=0.1, elem_id=f"dimension-{dimension.number}")


def _slider(low: float, high: float, value: float, **settings: Any) -> Any:
    """A slider that takes a number typed beside it as the nearest of its own; Gradio would raise an error."""
    slider: Any = gr.Slider(low, high, value, min_width=0, **settings)
    slider.preprocess = lambda typed: value if typed is None else min(max(typed, low), high)
    return slider


def _morph_tab(studio: Studio, seed: int) -> None:
    drawn = gr.State(seed + 1)
    saved = gr.JSON(visible=False)
    with gr.Row(elem_classes="morph"):
        left = _end("left", studio, studio.random_face(seed))
        right = _end("right", studio, studio.random_face(seed + 1))
        with gr.Column(min_width=0, elem_classes="between"):
            half = studio.between(left.first, right.first, 0.5, "spherical")
            result = gr.HTML(_figure(studio.picture(half), "Half way"), elem_id="morph", js_on_load=None)
            with gr.Column(elem_classes="card"):
                share = _slider(0, 1, 0.5, label="From left to right", step=0.01, elem_id="share")
                ways = [("Spherical", "spherical"), ("Linear", "linear")]
                way = gr.Radio(ways, value="spherical", label="Path", elem_id="path", min_width=0)
            download = gr.Button("Download GIF", variant="primary", elem_id="download-gif", min_width=0)

    place = [left.face, right.face, share, way]

    def shown(left: Face, right: Face, share: float, way: str) -> str:
        caption = f"{1 - share:.0%} left, {share:.0%} right"
        return _figure(studio.picture(studio.between(left, right, share, way)), caption)

    def changed(side: str, new: Face, old_left: Face, old_right: Face, share: float, way: str) -> list[Any]:
        ends = (new, old_right) if side == "left" else (old_left, new)
        return [new, _shown(studio, new), "", shown(*ends, share, way)]

    def draw(side: str, seed: int, *place: Any) -> list[Any]:
        new = studio.random_face(_next(seed))
        return [new.seed, *changed(side, new, *place)]

    def upload(side: str, path: str | None, *place: Any) -> list[Any]:
        new, problem = _read(studio, path)
        if new is None:
            return [None, gr.skip(), gr.skip(), _alert(problem), gr.skip()]
        return [None, *changed(side, new, *place)]

    def downloaded(left: Face, right: Face, way: str) -> list[str]:
        return [f"{left.name}-{right.name}.gif", _data_url(studio.film(left, right, way), "gif")]

    for side, end in (("left", left), ("right", right)):
        outputs = [end.face, end.picture, end.notice, result]
        end.another.click(partial(draw, side), [drawn, *place], [drawn, *outputs], **_FAST)
        end.upload.upload(partial(upload, side), [end.upload, *place], [end.upload, *outputs], **_ONCE)
    share.input(shown, place, result, **_FAST)
    way.input(shown, place, result, **_FAST)
    download.click(downloaded, [left.face, right.face, way], saved, **_ONCE).then(None, saved, None, js=_SAVE)


@dataclass(frozen=True)
class _End:
    """One of the two faces of a morph, with what chooses it."""

    first: Face
    face: Any
    picture: Any
    another: Any
    upload: Any
    notice: Any


def _end(side: str, studio: Studio, first: Face) -> _End:
    with gr.Column(min_width=0, elem_classes=["end", side]):
        return _End(
            first,
            gr.State(first),
            gr.HTML(_shown(studio, first), elem_id=side, js_on_load=None),
            gr.Button("Random face", elem_id=f"{side}-random", min_width=0),
            _upload(f"{side}-upload"),
            gr.HTML(elem_id=f"{side}-notice", elem_classes="notice", js_on_load=None),
        )


def _upload(name: str) -> Any:
    # Any file may be chosen: what is no photo gets our answer, and HEIC is not an image to every browser.
    return gr.UploadButton("Your photo", elem_id=name, min_width=0)


def _read(studio: Studio, path: str | None) -> tuple[Face | None, str]:
    """The face of an uploaded photo, or why there is none; the file is gone after it."""
    if path is None:
        return None, "The upload did not arrive. Try it again."
    try:
        return studio.photo_face(Path(path)), ""
    except UserError as error:
        return None, str(error)
    finally:
        Path(path).unlink(missing_ok=True)


def _shown(studio: Studio, face: Face) -> str:
    return _figure(studio.picture(face.latent), ", ".join(filter(None, (face.title, face.note))))


def _figure(image: Image.Image, caption: str) -> str:
    text = html.escape(caption)
    return (
        f'<figure><img src="{_data_url(png(image), "png")}" width="{image.width}" height="{image.height}" alt="{text}">'
        f"<figcaption>{text}</figcaption></figure>"
    )


def _alert(text: str) -> str:
    return f'<p role="alert">{html.escape(text)}</p>'


def _data_url(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _seed(number: float | None) -> int:
    return 0 if number is None else int(min(max(number, 0), _LARGEST_SEED))


def _next(seed: int) -> int:
    return (seed + 1) % (_LARGEST_SEED + 1)
