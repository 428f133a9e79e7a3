"""The `report` section of `params.yaml`: what is drawn of very large runs. Nothing here changes a result."""

from pydantic import Field

from student.params import Section


class ReportConfig(Section):
    """How much the report looks at, and how it draws."""

    max_priors: int = Field(2000, ge=10)
    """Images whose priors and captions are read. Of more, each data set gives the same number (or all it has), those
    of the smallest sha256: a uniform draw which is the same in every run, and cheap to read."""
    perplexity: float = Field(30.0, gt=1)
    """Neighbours that t-SNE looks at; of few images at most a third."""
    seed: int = 0
    """Of t-SNE and the word clouds."""
    max_datasets: int = Field(12, ge=1)
    """Data sets with example pictures."""
