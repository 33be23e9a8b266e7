"""The page itself, by Gradio: an image is dropped, and score, threshold and map are shown."""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from anomalib_msacl.demo.examiner import Examiner
from anomalib_msacl.errors import InputError

_KEPT = 3600  # seconds that Gradio keeps its copies of dropped files
_INTRODUCTION = """# What does the model say of an image?

Drop an image: PNG, JPEG, TIFF, DICOM or NIfTI. Score and map are those of `anomalib-msacl screen`.
This is no medical device. Images stay on this computer.
"""
_PHANTOMS = """
The model is a small PatchCore on ImageNet's features, fitted on rendered phantoms. It knows nothing else: try the
phantoms below. Every second one has a lesion, and it misses faint ones.
"""


def show_page(model: str | None, port: int, model_class: str | None = None) -> None:
    """Serve the page on this computer until it is stopped.

    Args:
        model: A checkpoint, an exported ``model.xml``, or the folder of an export; a small model is fitted on phantoms
            if None.
        port: Port of the page.
        model_class: Class of a checkpoint's model, where its settings do not tell.

    Raises:
        InputError: If Gradio is missing, the model cannot be used, or the port is taken.
    """
    gradio = _gradio()
    if model is not None:
        _launch(gradio, build_page(Examiner(model, model_class)), port)
        return
    from anomalib_msacl.demo.phantom_model import fit_phantom_model  # noqa: PLC0415  # brings all models along

    with tempfile.TemporaryDirectory() as folder:
        print("fits a small model on phantoms, which takes half a minute", flush=True)
        fitted = fit_phantom_model(Path(folder))
        _launch(gradio, build_page(Examiner(fitted.checkpoint), fitted.examples, _PHANTOMS), port)


def build_page(examiner: Examiner, examples: Sequence[Path] = (), note: str = "") -> Any:
    """Return the page.

    Args:
        examiner: The model.
        examples: Images that can be chosen by a click.
        note: What else is to be said about the model, as Markdown.

    Returns:
        ``gradio.Blocks``, not served yet.

    Raises:
        InputError: If Gradio is missing.
    """
    gradio = _gradio()

    def answer(path: str | None, index: float | None) -> tuple[str, Image.Image | None, Image.Image | None]:
        return shown(examiner, path, int(index or 0))

    told = examiner.threshold and f"Threshold: {examiner.threshold}"
    about = "  \n".join(line for line in (f"Model: {examiner.version}", told) if line)
    with gradio.Blocks(title="anomalib-msacl", analytics_enabled=False, delete_cache=(_KEPT, _KEPT)) as page:
        gradio.Markdown(_INTRODUCTION + note)
        with gradio.Row():
            with gradio.Column(scale=1, min_width=260):
                file = gradio.File(label="Image", type="filepath", height=160)
                index = gradio.Number(0, label="Slice or frame, of files with several", precision=0, minimum=0)
                verdict = gradio.Markdown("")
            buttons = ["fullscreen", "download"]  # Gradio's third one, share, would upload the image
            image = gradio.Image(label="As read", type="pil", format="png", interactive=False, buttons=buttons)
            heat_map = gradio.Image(
                label="Map",
                type="pil",
                format="png",
                interactive=False,
                buttons=buttons,
            )
        for change in (file.change, index.change):
            change(answer, [file, index], [verdict, image, heat_map])
        if examples:
            names = [f"phantom {number}" for number, _ in enumerate(examples, 1)]
            gradio.Examples([[str(path)] for path in examples], [file], example_labels=names)
        gradio.Markdown(about)
    return page


def shown(examiner: Examiner, path: str | None, index: int) -> tuple[str, Image.Image | None, Image.Image | None]:
    """Return what the page shows of a dropped file: text, image and map; a sentence alone where it cannot be read."""
    if not path:
        return "", None, None
    try:
        found = examiner.examine(path, index)
    except InputError as error:
        return f"**Cannot be scored:** {error}", None, None
    return found.text, found.image, found.heat_map


def _launch(gradio: Any, page: Any, port: int) -> None:
    """Serve a page to this computer alone, with letters that it has already."""
    letters = gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])
    # Quiet, because Gradio would suggest to share the page with the world.
    options = {"share": False, "quiet": True, "prevent_thread_lock": True}
    try:
        page.launch(server_name="127.0.0.1", server_port=port, theme=letters, footer_links=[], **options)
    except OSError as error:
        raise InputError(f"the page cannot be served on port {port} ({error}): set --port to another") from error
    print(f"http://127.0.0.1:{port} on this computer; Ctrl-C ends it", flush=True)
    page.block_thread()


def _gradio() -> Any:
    """Import Gradio, which is in the extra ``demo``."""
    try:
        return importlib.import_module("gradio")
    except ImportError as error:
        raise InputError('the page needs gradio: run pip install "anomalib-msacl[demo]"') from error
