"""The page: its tabs, made of gradio's components."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from earshot.app import api, examples, feature_maps, mistakes, plots, saliency
from earshot.app.session import Session
from earshot.audio import load
from earshot.audio.load import BadAudio
from earshot.core import fonts
from earshot.core.errors import TemporaryError, UserError
from earshot.prediction.events import list_events
from earshot.prediction.predictor import Prediction

TOP = 5  # classes shown
MOST_EVENTS = 50
CSS = """
.gradio-container{width:100%!important;max-width:72rem!important;margin:0 auto!important}
.gradio-container main{width:100%}
header{display:flex;justify-content:space-between;align-items:baseline}
.picture img{width:100%;max-width:860px;height:auto;display:block;margin:0 auto}
.picture img{background:#fff;border-radius:6px}
.refused{border-left:4px solid #D55E00;padding:.4rem .8rem;margin:0;overflow-wrap:anywhere}
.seen{border-left:4px solid #E69F00;padding:.2rem .8rem;margin:.3rem 0;overflow-wrap:anywhere}
.quiet{opacity:.75;margin:.2rem 0;overflow-wrap:anywhere}
.maps{display:grid;grid-template-columns:repeat(auto-fill,minmax(8.5rem,1fr));gap:.6rem;margin:.4rem 0 1rem}
.maps figure{margin:0}
.maps img{width:100%;height:6rem;image-rendering:pixelated;border:1px solid #bbb;background:#fff}
.maps figcaption{font-size:.8rem;line-height:1.3;overflow-wrap:anywhere}
.scale{display:flex;gap:.5rem;align-items:center;flex-wrap:wrap}
.scale img{width:10rem;height:1rem;border:1px solid #bbb}
details summary{cursor:pointer;padding:.2rem 0}
"""
# The browser's own check of a file's type answers with a list of MIME types: a sentence in its place.
JS = """() => new MutationObserver(() => {
  for (const toast of document.querySelectorAll("[data-testid='toast-text']")) {
    const name = /^Invalid file types?: (.*)\\. Only .* allowed\\.?$/s.exec(toast.textContent.trim())
    if (name) toast.textContent = `Can't read this file: ${name[1]} is not an audio file`
  }
}).observe(document.body, {childList: true, subtree: true})"""
# the machine's own: none is fetched
FONT = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
MONO = ["ui-monospace", "Consolas", "monospace"]
HIDDEN = {"api_visibility": "private", "show_progress": "minimal"}  # /api/predict is the API


def build_theme() -> gr.Theme:
    """The page's theme with the machine's own fonts."""
    return gr.themes.Base(primary_hue="blue", neutral_hue="slate", font=FONT, font_mono=MONO)


def build(session: Session, report: bool, scratch: Path) -> gr.Blocks:
    """The page of a session.

    Args:
        report: is the run's report served at /report? scratch: a folder for generated example clips.
    """
    predictor = session.predictor
    with gr.Blocks(
        title=f"Earshot: {session.name}", analytics_enabled=False, delete_cache=(600, 3600)
    ) as page:
        link = '<a id="report" href="report" target="_blank">Report ↗</a>' if report else ""
        gr.HTML(
            f"<header><h1>Earshot</h1>{link}</header><p class='quiet'>{escape(str(predictor.whole))}, "
            f"{len(predictor.classes)} classes</p>"
        )
        with gr.Tab("Predict"):
            _build_predict_tab(session, scratch)
        with gr.Tab("Mistakes") as tab:
            _build_mistakes_tab(session, tab)
        with gr.Tab("API") as tab:
            _build_api_tab(tab)
    return page


def _render_picture(png: bytes, about: str, classes: list[str]) -> str:
    """A picture, and the names of the classes that it shows as numbers because no font can draw them."""
    numbers = ", ".join(f"{number} is {name}" for number, name in fonts.build_legend(classes))
    return f'<div class="picture"><img alt="{escape(about)}" src="{plots.to_data_url(png)}"></div>' + (
        f"<p class='quiet'>In the picture {escape(numbers)}.</p>" if numbers else ""
    )


def _render_error(error: Exception) -> str:
    """An error as a sentence."""
    text = str(error)
    if isinstance(error, OSError) and not isinstance(error, TemporaryError):
        text = "This upload has expired: add the file again"
    elif isinstance(error, BadAudio):
        text = f"Can't read this file: {error}"
    return f'<p class="refused" role="alert">{escape(text)}</p>'


def _build_shares(session: Session, row: np.ndarray) -> dict[str, float]:
    """The likeliest classes, as gr.Label takes them."""
    return {one["class"]: one["probability"] for one in session.find_likeliest(row, TOP)}


def _build_events(session: Session, prediction: Prediction) -> list[list[str]]:
    """The events of a long recording in the order of time, as rows of a table."""
    windows, start, length = prediction.windows, prediction.start, prediction.length
    found = list_events(windows, start, length, session.predictor.classes, most=MOST_EVENTS)
    return [
        [one.label, f"{one.start:.1f} s", f"{one.end:.1f} s", f"{one.probability:.0%}"]
        for one in sorted(found, key=lambda one: one.start)
    ]


def _render_warning(session: Session, path: str) -> str:
    """A warning where the upload is a training clip, with the prediction of the models trained without it."""
    seen = session.seen.find(path)
    if seen is None:
        return ""
    text = f"{str(seen)[0].upper()}{str(seen)[1:]}."
    if seen.probabilities is not None:
        best = session.find_likeliest(seen.probabilities, 1)[0]
        text += (
            f" Models that were trained without it (fold {seen.fold}) predict "
            f"{best['class']} {best['probability']:.0%}."
        )
    return f'<p class="seen">{escape(text)}</p>'


def _build_predict_tab(session: Session, scratch: Path) -> None:
    """The tab that takes a clip and explains its prediction."""
    predictor = session.predictor
    runs = {run.folder.name: run for run in predictor.runs}
    models = {}
    for name, run in runs.items():
        heads = predictor.load_heads(run, predictor.get_checkpoint_kind(run))
        models[name] = [model for model, _ in heads]
    first = next(iter(runs))
    hint = f"<p class='quiet'>Drop a file or record one: {escape(str(session.limits))}.</p>"
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            clip = gr.Audio(
                sources=["upload", "microphone"],
                type="filepath",
                label="Clip",
                editable=False,
                buttons=[],
                elem_id="clip",
            )
            status = gr.HTML(hint, elem_id="status")
            classes = gr.Label(label="Prediction", visible=False, elem_id="classes")
            events = gr.Dataframe(
                headers=["class", "from", "to", "peak"],
                datatype="str",
                interactive=False,
                buttons=[],
                wrap=True,
                column_widths=["37%", "21%", "21%", "21%"],
                visible=False,
                elem_id="events",
            )
        with gr.Column(scale=3, min_width=280):
            picture = gr.HTML(elem_id="picture")
            found = examples.list_examples(predictor.whole, session.limits, scratch)
            # not gr.Examples: its addresses of files lack the prefix behind a proxy
            tries = gr.Dataset(
                components=[gr.Textbox(visible=False)],
                samples=[[label] for label, _ in found],
                sample_labels=[label for label, _ in found],
                type="index",
                label="Examples",
                elem_id="examples",
            )
    with gr.Group(visible=False) as why:
        with gr.Row():
            target = gr.Dropdown(predictor.classes, label="Evidence for", min_width=160)
            run = gr.Dropdown(list(runs), value=first, label="Run", visible=len(runs) > 1, min_width=160)
            model = gr.Dropdown(models[first], value=models[first][0], label="Feature maps of", min_width=160)
            window = gr.Slider(1, 2, 1, step=1, label="Window", visible=False, min_width=160)
        with gr.Row(equal_height=True):
            evidence = gr.Button("Why this prediction?", elem_id="evidence")
            layers = gr.Button("Feature maps", elem_id="layers")
    shown = gr.HTML(elem_id="shown")

    def predict(path: str | None) -> Iterator[dict]:
        hidden = gr.update(visible=False)
        blank = {picture: "", shown: "", why: hidden, classes: hidden, events: hidden}
        if path is None:
            yield {**blank, status: hint, tries: gr.update(visible=True)}
            return
        try:
            prediction, warning = session.predict(path), _render_warning(session, path)
        except (BadAudio, UserError, OSError) as error:
            yield {**blank, status: _render_error(error), tries: gr.update(visible=True)}
            return
        count = len(prediction.start)
        best = int(prediction.probabilities.argmax())
        lead = int(prediction.windows[:, best].argmax())
        rows = _build_events(session, prediction)
        length = f"{prediction.seconds:.1f} s" + (f", {count} windows" if count > 1 else "")
        if count > 1 and not rows:
            length += "; no class reaches 50% in any of them"
        yield {
            status: f"<p class='quiet'>{length}</p>" + warning,
            classes: gr.update(value=_build_shares(session, prediction.probabilities), visible=True),
            events: gr.update(value=rows, visible=True) if rows else hidden,
            shown: "",
            picture: "",
            tries: hidden,
            why: gr.update(visible=True),
            target: predictor.classes[best],
            window: gr.update(
                visible=count > 1, maximum=max(2, count), value=lead + 1, label=f"Window, 1 to {count}"
            ),
        }
        pipeline = predictor.get_pipeline(predictor.runs[0])
        decoded = prediction.inputs[pipeline.key]
        png = plots.draw_clip(
            decoded.wave,
            pipeline.extractor.rate,
            prediction.windows,
            prediction.start - decoded.offset,
            prediction.length,
            predictor.classes,
            prediction.probabilities,
        )
        yield {
            picture: _render_picture(
                png, "waveform and spectrogram of the clip", predictor.classes if count > 1 else []
            )
        }

    def explain(path: str, name: str, number: float, wanted: str) -> str:
        try:
            prediction, number = session.predict(path), int(number) - 1
            pipeline = predictor.get_pipeline(runs[name])
            decoded = prediction.inputs[pipeline.key]
            number = min(number, len(decoded.features.start) - 1)
            index = predictor.classes.index(wanted)
            found = saliency.explain(predictor, runs[name], prediction, number, index)
        except (BadAudio, UserError, OSError, TypeError) as error:
            return _render_error(error)
        start, rate = float(decoded.features.start[number]), pipeline.extractor.rate
        piece = feature_maps.cut_window(
            decoded.wave, start - decoded.offset, decoded.features.length[number], rate
        )
        short = plots.style.shorten_names(predictor.classes)[index]
        png = plots.draw_saliency(
            found, piece, rate, start, f"evidence for {short} (blue), against it (orange)"
        )
        return (
            _render_picture(png, f"evidence for {wanted}", predictor.classes)
            + f"<p class='quiet'>{escape(found.how)}</p>"
        )

    def show_maps(path: str, name: str, number: float, which: str) -> str:
        try:
            prediction = session.predict(path)
            with predictor.lock:
                return plots.render_maps(
                    feature_maps.compute_maps(predictor, runs[name], which, prediction, int(number) - 1)
                )
        except (BadAudio, UserError, OSError, TypeError) as error:
            return _render_error(error)

    outputs = [status, classes, events, picture, tries, shown, why, target, window]
    tries.click(lambda index: str(found[index][1]), tries, clip, **HIDDEN)
    clip.change(predict, clip, outputs, **HIDDEN)
    run.change(lambda name: gr.update(choices=models[name], value=models[name][0]), run, model, **HIDDEN)
    evidence.click(explain, [clip, run, window, target], shown, **HIDDEN)
    layers.click(show_maps, [clip, run, window, model], shown, **HIDDEN)


def _build_mistakes_tab(session: Session, tab: gr.Tab) -> None:
    """The tab that plays the misclassified clips, worst first."""
    found, summary = mistakes.find_mistakes(session.predictor.whole)
    gr.HTML(f"<p class='quiet'>{escape(summary)}</p>")
    if not found:
        return
    files = mistakes.find_files(session.predictor.whole, [one.id for one in found])
    if not files:
        gr.HTML(
            "<p class='quiet'>The competition's audio files are no longer where get_features.py found them: "
            "nothing can be played.</p>"
        )
    choices = [(str(one), index) for index, one in enumerate(found)]
    concerned = [name for name in session.predictor.classes if any(one.concerns(name) for one in found)]
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            kind = gr.Dropdown(
                [("all", ""), *((name, name) for name in concerned)],
                value="",
                label="Class, true or predicted",
                elem_id="kind",
            )
            chosen = gr.Dropdown(choices, value=0, label="Clip: predicted, true", elem_id="mistake")
            with gr.Row():
                previous = gr.Button("Previous", min_width=100, elem_id="previous")
                following = gr.Button("Next", min_width=100, elem_id="next")
            label = gr.Label(label="Prediction", elem_id="oof")
        with gr.Column(scale=3, min_width=280):
            player = gr.Audio(interactive=False, label="Clip", buttons=[], elem_id="player")
            about = gr.HTML(elem_id="about")

    def show(index: int | None) -> dict[Any, Any]:
        if index is None:
            return {label: None, player: None, about: ""}
        one = found[int(index)]
        line = (
            f"<p class='quiet'>{escape(one.id)}: true label <b>{escape(one.truth)}</b>; the model of fold "
            f"{one.fold} predicts {escape(one.predicted)} {one.probability:.0%}.</p>"
        )
        blank = {label: _build_shares(session, one.probabilities), player: None}
        if one.id not in files:
            return {**blank, about: line + "<p class='quiet'>Its file is no longer there.</p>"}
        try:
            wave, rate = _load_playable(session, files[one.id])
        except BadAudio as error:
            return {**blank, about: line + _render_error(error)}
        none = np.zeros((1, len(one.probabilities)))
        png = plots.draw_clip(
            wave, rate, none, np.zeros(1), np.ones(1), session.predictor.classes, one.probabilities
        )
        sound = np.clip(wave * 32767, -32768, 32767).astype(np.int16)
        return {
            **blank,
            player: (rate, sound),
            about: line + _render_picture(png, f"spectrogram of {one.id}", []),
        }

    def choose(name: str) -> Any:
        some = [choice for choice in choices if not name or found[choice[1]].concerns(name)]
        return gr.update(choices=some, value=some[0][1])

    def step(by: int, index: int | None, name: str) -> int:
        some = [choice[1] for choice in choices if not name or found[choice[1]].concerns(name)]
        at = some.index(int(index)) if index in some else -by
        return some[(at + by) % len(some)]

    shown = [label, player, about]
    tab.select(show, chosen, shown, **HIDDEN)
    chosen.change(show, chosen, shown, **HIDDEN)
    kind.change(choose, kind, chosen, **HIDDEN)
    previous.click(lambda index, name: step(-1, index, name), [chosen, kind], chosen, **HIDDEN)
    following.click(lambda index, name: step(1, index, name), [chosen, kind], chosen, **HIDDEN)


def _build_api_tab(tab: gr.Tab) -> None:
    """The tab with the API's commands."""
    gr.HTML(
        "<p>Send audio, get class probabilities as JSON</p>"
        '<p><a href="docs" target="_blank">API reference: the reply and its fields ↗</a></p>'
    )
    commands = gr.Code(
        language="shell",
        label="In a terminal",
        interactive=False,
        lines=2,
        wrap_lines=True,
        elem_id="commands",
    )

    def show(request: gr.Request) -> str:
        return "\n".join(api.list_commands(str(request.request.base_url).rstrip("/")))

    tab.select(show, None, commands, **HIDDEN)


def _load_playable(session: Session, path: Path) -> tuple[np.ndarray, int]:
    """A competition's file, whatever its format, as (samples,) at a rate that browsers play."""
    session.limits.check(path)
    wave, rate, *_ = load.read(path, None, load.AudioSettings())
    return np.array(wave), rate
