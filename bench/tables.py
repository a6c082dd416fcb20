"""Results as tables: text for a terminal, Markdown for a page. A row a measure, a column a program.

The ratio in a cell is its figure by that of the first program; whether more or less is better, the unit tells.
"""

import re
from collections.abc import Iterable

from bench.results import Results

_BLOCK = re.compile(r"(<!-- bench: (?P<name>\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def format_figure(figure: float, unit: str) -> str:
    """With three digits that count, and seconds in the unit that suits."""
    if unit == "s":
        for scale, name in ((1, "s"), (1e3, "ms"), (1e6, "µs")):
            if figure * scale >= 1 or name == "µs":
                return f"{_three_digits(figure * scale)} {name}"
    if not unit:
        return f"{figure:,.0f}"
    return f"{_three_digits(figure)} {unit}"


def _three_digits(figure: float) -> str:
    for limit, digits in ((9.995, 2), (99.95, 1)):
        if abs(figure) < limit:
            return f"{figure:.{digits}f}"
    return f"{figure:,.0f}"


def format_ratio(figure: float, first: float) -> str:
    """Figure by first, as "2.3x"; empty if that means nothing."""
    if not first:
        return ""
    ratio = figure / first
    return f"{ratio:.2g}x" if ratio < 100 else f"{ratio:,.0f}x"


def cells(results: Results) -> tuple[list[str], list[tuple[str, list[tuple[str, str]]]]]:
    """The programs, and for each measure its name and a (figure, ratio) for each program; "-": not measured."""
    programs = results.programs()
    rows = []
    for measure, figures in results.rows():
        first = figures.get(programs[0])
        row = []
        for name in programs:
            if name not in figures:
                row.append(("-", ""))
            else:
                ratio = "" if first is None or name == programs[0] else format_ratio(figures[name], first)
                row.append((format_figure(figures[name], measure.unit), ratio))
        rows.append((measure.name, row))
    return programs, rows


def text_table(results: Results) -> str:
    programs, rows = cells(results)
    grid = [["", *programs]]
    grid += [[name, *(f"{figure} ({ratio})" if ratio else figure for figure, ratio in row)] for name, row in rows]
    widths = [max(map(len, column)) for column in zip(*grid, strict=True)]
    lines = [f"{results.scenario}: {results.title}", results.data, ""]
    lines += [
        f"{row[0]:<{widths[0]}}  "
        + "  ".join(f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True))
        for row in grid
    ]
    return "\n".join([*lines, "", *remarks(results)]).rstrip()


def markdown_table(results: Results) -> str:
    programs, rows = cells(results)
    lines = [f"Data: {results.data}.", "", f"| | {' | '.join(programs)} |", "|---|" + "--:|" * len(programs)]
    for name, row in rows:
        lines.append(
            f"| {name} | " + " | ".join(f"{figure} ({ratio})" if ratio else figure for figure, ratio in row) + " |"
        )
    if found := remarks(results):
        lines += ["", *(f"- {_escaped(remark)}" for remark in found)]
    lines += ["", "How each row is measured:", ""]
    lines += [f"- *{measure.name}*: {measure.how}." for measure, _ in results.rows()]
    return "\n".join(lines)


def _escaped(text: str) -> str:
    return re.sub(r"([<>*_`|])", r"\\\1", text)


def remarks(results: Results) -> list[str]:
    """What a reader of the table must know."""
    return [*results.notes, *(f"{name}: {what}" for name, found in results.trouble.items() for what in found)]


def facts_line(results: Results) -> str:
    """Where and when it ran, and the versions of the programs."""
    facts = results.facts
    versions = ", ".join(facts.get("versions", {}).values())
    machine = "; ".join(f"{name}: {value}" for name, value in facts.get("machine", {}).items())
    return f"{machine}. Versions: {versions}." if facts else ""


def fill_page(page: str, found: Iterable[Results]) -> str:
    """`page` with the tables of `found` between its lines `<!-- bench: NAME -->` and `<!-- end -->`."""
    by_name = {results.scenario: results for results in found}

    def filled(block: re.Match[str]) -> str:
        results = by_name.get(block["name"])
        if results is None:
            return block[0]
        return f"{block[1]}{markdown_table(results)}\n\nMeasured on: {_escaped(facts_line(results))}\n{block[3]}"

    return _BLOCK.sub(filled, page)
