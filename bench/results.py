"""What was measured: figures by measure and program, as values and as JSON. Pure: no files, no clock.

A `Measure` is declared once, by its scenario, and says how it is taken; its order there is the order of the table. A
figure may have several samples: tables show the median.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple


class Measure(NamedTuple):
    """A row. `unit`: "s" (shown as µs, ms or s), "MB/s", "MiB", or what is counted."""

    name: str
    unit: str
    how: str


@dataclass
class Curves:
    """A plot: `lines[program]` are points [x, y]; `logarithmic` names the axes that are."""

    x: str
    y: str
    logarithmic: str
    lines: dict[str, list[list[float]]] = field(default_factory=dict)


@dataclass
class Results:
    """One scenario, once run. `samples[measure][program]` are figures in the unit of the measure."""

    scenario: str
    title: str
    data: str
    measures: tuple[Measure, ...]
    facts: dict[str, Any] = field(default_factory=dict)
    columns: list[str] = field(default_factory=list)
    samples: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    curves: dict[str, Curves] = field(default_factory=dict)
    trouble: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, measure: str, program: str, *figures: float) -> None:
        assert measure in [known.name for known in self.measures], measure
        if figures:
            self.samples.setdefault(measure, {}).setdefault(program, []).extend(figures)

    def add_trouble(self, program: str, what: str) -> None:
        self.trouble.setdefault(program, []).append(what)

    def programs(self) -> list[str]:
        """Those with figures, in the order of `columns`; others follow."""
        measured = dict.fromkeys(name for found in self.samples.values() for name in found)
        return [*(name for name in self.columns if name in measured), *(n for n in measured if n not in self.columns)]

    def rows(self) -> list[tuple[Measure, dict[str, float]]]:
        """The medians of what was measured at all."""
        return [
            (measure, {name: statistics.median(figures) for name, figures in self.samples[measure.name].items()})
            for measure in self.measures
            if measure.name in self.samples
        ]

    def to_json(self) -> dict[str, Any]:
        return {
            **vars(self),
            "measures": [measure._asdict() for measure in self.measures],
            "curves": {title: vars(curves) for title, curves in self.curves.items()},
        }

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> "Results":
        measures = tuple(Measure(**measure) for measure in found["measures"])
        curves = {title: Curves(**one) for title, one in found["curves"].items()}
        return cls(**{**found, "measures": measures, "curves": curves})


def percentile(samples: Sequence[float], percent: float) -> float:
    """The smallest sample that at least `percent` of all are not above; ValueError without samples."""
    if not samples:
        raise ValueError("no samples")
    ordered = sorted(samples)
    rank = -(-len(ordered) * percent // 100)  # rounded up
    return ordered[max(int(rank), 1) - 1]


def distribution(samples: Sequence[float]) -> list[list[float]]:
    """Points [percentile, percent] for 1 to 100 percent."""
    return [[percentile(samples, percent), percent] for percent in range(1, 101)]
