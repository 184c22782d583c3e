"""The pages: runs of one model, and detectors, each as one self-contained HTML file."""

from analysis.page.detection import render_detection
from analysis.page.render import render

__all__ = ["render", "render_detection"]
