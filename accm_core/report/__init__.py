"""The report: one self-contained HTML page by which a person judges a sort."""

from accm_core.report.page import check_report_path, render_report, write_report
from accm_core.report.payload import list_warnings

__all__ = ["check_report_path", "list_warnings", "render_report", "write_report"]
