"""The page: runs of one model as one self-contained HTML file."""

from analysis.page.render import RunView, render

__all__ = ["RunView", "render"]
