"""The interactive page: everything a run recorded, in one HTML file that needs neither Python nor a network."""

from .page import report_page, write_report

__all__ = ["report_page", "write_report"]
