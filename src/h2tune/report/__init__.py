"""What a person sees of a run: the progress display while it trains, and the HTML page afterwards."""

from h2tune.report.page import write_report
from h2tune.report.read import ReportError

__all__ = ["ReportError", "write_report"]
