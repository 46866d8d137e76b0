"""What people see of a curation: the funnel, the page with its pictures, the cost ledger, a comparison of two curations."""

from pipelines.curation.report.funnel import FunnelRow, funnel

__all__ = ["FunnelRow", "funnel"]
