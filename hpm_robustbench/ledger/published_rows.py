"""What RobustBench has published, in its own order: a table per dataset and threat model. None of it is ours."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby

from hpm_robustbench.threat import Corruptions
from hpm_robustbench.zoo.from_robustbench import PublishedEntry
from hpm_robustbench.zoo.spec import Paper


@dataclass(frozen=True)
class PublishedRow:
    """A published entry and its rank in its table."""

    rank: int
    entry: PublishedEntry

    @property
    def paper(self) -> Paper:
        """Where the figures come from, and the figures."""
        return self.entry.paper


@dataclass(frozen=True)
class PublishedTable:
    """Entries that RobustBench ranks together, whatever their budgets."""

    dataset: str
    threat_name: str
    rows: tuple[PublishedRow, ...]

    @property
    def anchor(self) -> str:
        """Name of the table's place on the page."""
        return f"{self.dataset}-{self.threat_name}"

    @property
    def corrupted(self) -> bool:
        """Whether its entries met corruptions instead of an attacker."""
        return self.threat_name == Corruptions.name

    @property
    def has_mce(self) -> bool:
        """Whether mean corruption errors are published, too."""
        return any(row.paper.corruptions_mce for row in self.rows)


def published_tables(entries: Iterable[PublishedEntry]) -> list[PublishedTable]:
    """Rank as RobustBench does: by the best known robust accuracy; ties go to standard accuracy, then to the name."""
    ordered = sorted(entries, key=lambda entry: (_table(entry), *_standing(entry)))
    return [
        PublishedTable(*table, tuple(PublishedRow(rank, entry) for rank, entry in enumerate(group, start=1)))
        for table, group in groupby(ordered, key=_table)
    ]


def _table(entry: PublishedEntry) -> tuple[str, str]:
    return entry.dataset, entry.threat.name


def _standing(entry: PublishedEntry) -> tuple[float, float, str]:
    paper = entry.paper
    robust = paper.external or paper.autoattack_acc or paper.corruptions_acc or "0"
    return -float(robust), -float(paper.clean_acc or "0"), entry.name
