"""The `report` section of `params.yaml`: what is shown of very large runs. Nothing here changes a result."""

from pydantic import Field

from student.params import Section


class ReportConfig(Section):
    """How much the report looks at."""

    max_priors: int = Field(2000, ge=10)
    """Images whose priors and captions are read. Of more, each data set gives the same number (or all it has), those
    of the smallest sha256: a uniform draw which is the same in every run, and cheap to read."""
    max_datasets: int = Field(12, ge=1)
    """Data sets, and domains, with example pictures."""
