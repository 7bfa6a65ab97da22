"""Records become a page: one HTML file that needs nothing but a browser.

What makes it loads when it is first used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what __getattr__ does, in words that editors and type checkers read
    from polytask.report.page import write_merge_report as write_merge_report
    from polytask.report.page import write_report as write_report

__all__ = ["write_merge_report", "write_report"]


def __getattr__(name: str) -> Any:
    """Import what writes pages when it is first asked for (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module 'polytask.report' has no attribute {name!r}")
    from polytask.report import page

    return getattr(page, name)
