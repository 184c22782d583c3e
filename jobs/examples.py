"""Examples under a command's ``--help``."""

__all__ = ["examples"]


def examples(*lines: str) -> str:
    """The lines as a block of examples; the command line's parser drops such a section from a docstring."""
    return "\n\n".join(["Examples:", *lines])
