"""The verification report: a self-contained HTML page from score states."""

from verification.report.page import write_report

__all__ = ["write_report"]
