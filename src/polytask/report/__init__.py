"""Records become a page: one HTML file that needs nothing but a browser."""

from polytask.report.page import write_merge_report, write_report

__all__ = ["write_merge_report", "write_report"]
