"""The page: gradio's components and what they show."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from earshot.app import feature_maps, mistakes, plots, saliency
from earshot.app.session import Session
from earshot.audio import load
from earshot.audio.load import BadAudio
from earshot.core import fonts
from earshot.core.errors import TemporaryError, UserError

TOP = 5  # classes shown
CSS = """
.gradio-container{width:100%!important;max-width:72rem!important;margin:0 auto!important}
.gradio-container main{width:100%}
.classes{display:grid;grid-template-columns:minmax(0,max-content) minmax(3rem,1fr) max-content}
.classes{gap:.35rem .7rem;align-items:center;margin:.3rem 0}
.classes span{overflow-wrap:anywhere}
.classes i{display:block;height:.7rem;background:#3380ff;border-radius:2px;min-width:2px}
.classes .first{grid-column:1/-1;font-size:1.6rem;font-weight:700;line-height:1.2}
.classes .number{font-variant-numeric:tabular-nums}
.picture img{width:100%;max-width:860px;height:auto;display:block;margin:0 auto}
.picture img{background:#fff;border-radius:6px}
.refused{border-left:4px solid #D55E00;padding:.4rem .8rem;margin:0;overflow-wrap:anywhere}
.learnt{border-left:4px solid #E69F00;padding:.2rem .8rem;margin:.3rem 0;overflow-wrap:anywhere}
.quiet{opacity:.75;margin:.2rem 0;overflow-wrap:anywhere}
.maps{display:grid;grid-template-columns:repeat(auto-fill,minmax(8.5rem,1fr));gap:.6rem;margin:.4rem 0 1rem}
.maps figure{margin:0}
.maps img{width:100%;height:6rem;image-rendering:pixelated;border:1px solid #bbb;background:#fff}
.maps figcaption{font-size:.8rem;line-height:1.3;overflow-wrap:anywhere}
.scale{display:flex;gap:.5rem;align-items:center;flex-wrap:wrap}
.scale img{width:10rem;height:1rem;border:1px solid #bbb}
details summary{cursor:pointer;padding:.2rem 0}
iframe.report{width:100%;height:80vh;border:1px solid #bbb;background:#fff}
"""
# the machine's own: none is fetched
FONT = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
MONO = ["ui-monospace", "Consolas", "monospace"]
HIDDEN = {"api_visibility": "private", "show_progress": "minimal"}  # /api/predict is the API


def build_theme() -> gr.Theme:
    """The page's theme, its fonts those of the machine."""
    return gr.themes.Base(primary_hue="blue", neutral_hue="slate", font=FONT, font_mono=MONO)


def build(session: Session, report: bool) -> gr.Blocks:
    """The page over a session; `report`: is there a run's report at /report?"""
    hearing = session.hearing
    found, summary = mistakes.find_mistakes(hearing.whole)
    with gr.Blocks(
        title=f"Earshot: {session.name}", analytics_enabled=False, delete_cache=(600, 3600)
    ) as page:
        gr.HTML(
            f"<h1>Earshot</h1><p class='quiet'>{escape(str(hearing.whole))}, {len(hearing.classes)} "
            "classes</p>"
        )
        with gr.Tab("Listen"):
            _build_listen_tab(session)
        with gr.Tab("Mistakes"):
            _build_mistakes_tab(session, found, summary)
        if report:
            with gr.Tab("Report"):
                gr.HTML(
                    '<iframe class="report" title="the run\'s report" src="report" sandbox="" '
                    'loading="lazy"></iframe>'
                )
        with gr.Tab("API"):
            gr.HTML(
                "<p><code>POST /api/predict</code> takes audio and answers classes, as JSON: "
                '<a href="docs" target="_blank">how</a>.</p>'
            )
    return page


def _render_picture(png: bytes, about: str, classes: list[str]) -> str:
    """A picture, and the names of the classes that it shows as numbers because no font can draw them."""
    numbers = ", ".join(f"{number} is {name}" for number, name in fonts.build_legend(classes))
    return f'<div class="picture"><img alt="{escape(about)}" src="{plots.to_data_url(png)}"></div>' + (
        f"<p class='quiet'>In the picture {escape(numbers)}.</p>" if numbers else ""
    )


def _render_refusal(reason: object) -> str:
    return f'<p class="refused" role="alert">Cannot be heard: {escape(str(reason))}</p>'


def _render_classes(session: Session, row: np.ndarray) -> str:
    """The likeliest classes with bars."""
    best = session.find_likeliest(row, TOP)
    rows = "".join(
        f'<span>{escape(one["class"])}</span><i style="width:{100 * one["probability"]:.2f}%"></i>'
        f'<span class="number">{one["probability"]:.3f}</span>'
        for one in best
    )
    return f'<div class="classes"><div class="first">{escape(best[0]["class"])}</div>{rows}</div>'


def _render_warning(session: Session, path: str) -> str:
    """A warning where the upload is a training clip, with what the models predict that were trained without
    it."""
    seen = session.seen.find(path)
    if seen is None:
        return ""
    text = f"{str(seen)[0].upper()}{str(seen)[1:]}."
    if seen.probabilities is not None:
        best = session.find_likeliest(seen.probabilities, 1)[0]
        text += (
            f" Models that were trained without it (fold {seen.fold}) predict "
            f"{best['class']} {best['probability']:.3f}."
        )
    return f'<p class="learnt">{escape(text)}</p>'


def _build_listen_tab(session: Session) -> None:
    """The tab that takes a clip."""
    hearing = session.hearing
    runs = {run.folder.name: run for run in hearing.runs}
    models = {}
    for name, run in runs.items():
        heads = hearing.load_heads(run, hearing.get_checkpoint_kind(run))
        models[name] = [model for model, _ in heads]
    first = next(iter(runs))
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            clip = gr.Audio(
                sources=["upload", "microphone"],
                type="filepath",
                label="A clip",
                editable=False,
                buttons=[],
                elem_id="clip",
            )
            said = gr.HTML(
                f"<p class='quiet'>Drop a file or record: {escape(str(session.limits))}.</p>", elem_id="said"
            )
            label = gr.HTML(elem_id="classes")
        with gr.Column(scale=3, min_width=280):
            picture = gr.HTML(elem_id="picture")
    with gr.Group(visible=False) as why:
        with gr.Row():
            target = gr.Dropdown(hearing.classes, label="Evidence for", min_width=160)
            run = gr.Dropdown(list(runs), value=first, label="Run", visible=len(runs) > 1, min_width=160)
            model = gr.Dropdown(models[first], value=models[first][0], label="Feature maps of", min_width=160)
            window = gr.Slider(1, 2, 1, step=1, label="Window", visible=False, min_width=160)
        with gr.Row():
            evidence = gr.Button("What carried the decision", elem_id="evidence")
            layers = gr.Button("Feature maps", elem_id="layers")
    shown = gr.HTML(elem_id="shown")

    def hear(path: str | None) -> Iterator[dict]:
        blank = {said: "", label: "", picture: "", shown: "", why: gr.update(visible=False)}
        if path is None:
            yield blank
            return
        try:
            answer, learnt = session.predict(path), _render_warning(session, path)
        except (BadAudio, UserError, OSError) as error:
            lost = isinstance(error, OSError) and not isinstance(error, TemporaryError)
            reason = "the upload is gone: drop the file again" if lost else error
            yield {**blank, said: _render_refusal(reason)}
            return
        count = len(answer.start)
        best = int(answer.probabilities.argmax())
        lead = int(answer.windows[:, best].argmax())
        length = f"{answer.seconds:.1f} s" + (f", {count} windows" if count > 1 else "")
        yield {
            said: f"<p class='quiet'>{length}</p>" + learnt,
            label: _render_classes(session, answer.probabilities),
            shown: "",
            picture: "",
            why: gr.update(visible=True),
            target: hearing.classes[best],
            window: gr.update(
                visible=count > 1, maximum=max(2, count), value=lead + 1, label=f"Window, 1 to {count}"
            ),
        }
        ears = hearing.get_pipeline(hearing.runs[0])
        heard = answer.heard[ears.key]
        png = plots.draw_clip(
            heard.wave,
            ears.extractor.rate,
            answer.windows,
            answer.start - heard.offset,
            answer.length,
            hearing.classes,
            answer.probabilities,
        )
        yield {
            picture: _render_picture(
                png, "waveform and spectrogram of the clip", hearing.classes if count > 1 else []
            )
        }

    def explain(path: str, name: str, number: float, wanted: str) -> str:
        try:
            answer, number = session.predict(path), int(number) - 1
            which = runs[name]
            ears = hearing.get_pipeline(which)
            heard = answer.heard[ears.key]
            number = min(number, len(heard.features.start) - 1)
            found = saliency.explain(hearing, which, answer, number, hearing.classes.index(wanted))
        except (BadAudio, UserError, OSError, TypeError) as error:
            return _render_refusal(error)
        start = float(heard.features.start[number])
        piece = feature_maps.cut_window(
            heard.wave, start - heard.offset, heard.features.length[number], ears.extractor.rate
        )
        at = hearing.classes.index(wanted)
        title = f"evidence for {plots.style.shorten_names(hearing.classes)[at]} (blue), against it (orange)"
        png = plots.draw_saliency(found, piece, ears.extractor.rate, start, title)
        return (
            _render_picture(png, f"evidence for {wanted}", hearing.classes)
            + f"<p class='quiet'>{escape(found.how)}; in log probability</p>"
        )

    def look(path: str, name: str, number: float, which: str) -> str:
        try:
            answer = session.predict(path)
            with hearing.lock:
                return plots.render_maps(
                    feature_maps.compute_maps(hearing, runs[name], which, answer, int(number) - 1)
                )
        except (BadAudio, UserError, OSError, TypeError) as error:
            return _render_refusal(error)

    clip.change(hear, clip, [said, label, picture, shown, why, target, window], **HIDDEN)
    run.change(lambda name: gr.update(choices=models[name], value=models[name][0]), run, model, **HIDDEN)
    evidence.click(explain, [clip, run, window, target], shown, **HIDDEN)
    layers.click(look, [clip, run, window, model], shown, **HIDDEN)


def _build_mistakes_tab(session: Session, found: list[mistakes.Mistake], summary: str) -> None:
    """The tab that plays what was wrong out of fold."""
    gr.HTML(f"<p class='quiet'>{escape(summary)}</p>")
    if not found:
        return
    files = mistakes.find_files(session.hearing.whole, found)
    if not files:
        gr.HTML(
            "<p class='quiet'>The competition's audio is not where get_features.py found it: there is "
            "nothing to play.</p>"
        )
    names = [str(one) for one in found]
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            chosen = gr.Dropdown(
                [(name, index) for index, name in enumerate(names)],
                value=None,
                label="Clip: said, is",
                elem_id="mistake",
            )
            following = gr.Button("Next", elem_id="next")
            label = gr.HTML(elem_id="oof")
        with gr.Column(scale=3, min_width=280):
            player = gr.Audio(interactive=False, label="The clip", buttons=[], elem_id="player")
            about = gr.HTML(elem_id="about")

    def show(index: int | None) -> dict[Any, Any]:
        if index is None:
            return {label: "", player: None, about: ""}
        one = found[int(index)]
        line = (
            f"<p class='quiet'>{escape(one.id)} is <b>{escape(one.truth)}</b>; "
            f"fold {one.fold} said {escape(one.said)} {one.sure:.3f}.</p>"
        )
        blank = {label: _render_classes(session, one.probabilities), player: None}
        if one.id not in files:
            return {**blank, about: line + "<p class='quiet'>Its file is not there.</p>"}
        try:
            wave, rate = _load_playable(session, files[one.id])
        except BadAudio as error:
            return {**blank, about: line + _render_refusal(error)}
        none = np.zeros((1, len(one.probabilities)))
        png = plots.draw_clip(
            wave, rate, none, np.zeros(1), np.ones(1), session.hearing.classes, one.probabilities
        )
        sound = np.clip(wave * 32767, -32768, 32767).astype(np.int16)
        return {
            **blank,
            player: (rate, sound),
            about: line + _render_picture(png, f"spectrogram of {one.id}", []),
        }

    chosen.change(show, chosen, [label, player, about], **HIDDEN)
    following.click(
        lambda index: 0 if index is None else (int(index) + 1) % len(found), chosen, chosen, **HIDDEN
    )


def _load_playable(session: Session, path: Path) -> tuple[np.ndarray, int]:
    """A competition's file as browsers play it, whatever its format."""
    session.limits.check(path)
    wave, rate, *_ = load.read(path, None, load.AudioSettings())
    return np.array(wave), rate
