"""Serve a bundle: `bentoml serve` (HTTP and the page at /ui) or `python -m serve.demo` (the page alone)."""

import os


# The one place of the project that changes the environment at import: BentoML and Gradio read these when they are
# imported, and would report usage to their makers. Whoever wants that sets them before.
os.environ.setdefault("BENTOML_DO_NOT_TRACK", "True")
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
