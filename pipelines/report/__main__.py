"""`python -m pipelines.report`."""

from pipelines.command.cli import main
from pipelines.report.run import ReportConfig, run_report

if __name__ == "__main__":
    main("report", ReportConfig, run_report)
