"""The table at the end, and what it says in sentences."""
import statistics
import textwrap

WAYS = {  # in the order of the table
    "plain": "  plain mmap",
    "demand": "  demand faults",
    "record": "  the same, recorded",
    "prefetch": "  prefetched",
}
MIB = 1 << 20
WIDTH = 98  # columns, about the table's

HEADER = [
    ("", ""),
    ("first answer, ms", "median (min-max)"),
    ("resumed", "ms"),
    ("demand", "faults"),
    ("stall", "ms"),
    ("prefetched", "pages"),
    ("of them", "used"),
    ("memory, MiB", "RSS / PSS"),
]

LEGEND = """\
first answer  from QEMU's start until the guest's Python had started, computed and answered
resumed       the part of it before the guest ran; a prefetched fork waits there for its pages
stall         from the server's reading of a fault to the page's arrival, all faults together
used          prefetched pages that the guest had touched by then, by the kernel's accessed marks
Each figure is the median over the forks, taken at the first answer."""


def rows(runs):
    """One row for each way, alone and at once, from the runs that are there."""
    made = []
    for at_once in sorted({run["at_once"] for run in runs}):
        for way in WAYS:
            group = [run for run in runs if run["way"] == way and run["at_once"] == at_once]
            if group:
                made.append(_row(way, at_once, group))
    return made


def _row(way, at_once, group):
    def median(key):
        values = [run[key] for run in group if run[key] is not None]
        return statistics.median(values) if values else None

    answers = [run["answer_ms"] for run in group]
    return {
        "way": way, "at_once": at_once, "forks": len(group),
        "answer_ms": {"median": statistics.median(answers), "min": min(answers), "max": max(answers)},
        **{key: median(key) for key in ("resume_ms", "faults", "stall_ms", "prefetched_pages", "used_pages", "rss", "pss")},
    }  # fmt: skip


def _cells(row):
    def number(key):
        return "-" if row[key] is None else f"{row[key]:.0f}"

    return [
        WAYS[row["way"]], "{median:.0f} ({min:.0f}-{max:.0f})".format(**row["answer_ms"]), number("resume_ms"), number("faults"),
        number("stall_ms"), number("prefetched_pages"), number("used_pages"), f"{row['rss'] / MIB:.0f} / {row['pss'] / MIB:.0f}",
    ]  # fmt: skip


def table(all_rows):
    body = [_cells(row) for row in all_rows]
    titles = [list(line) for line in zip(*HEADER)]
    widths = [max(len(line[column]) for line in [*titles, *body]) for column in range(len(HEADER))]

    def text(cells):
        first, *others = (cell.rjust(width) for cell, width in zip(cells, widths))
        return "  ".join([cells[0].ljust(len(first)), *others]).rstrip()

    lines = [text(line) for line in titles]
    rule = "-" * len(text(["x" * width for width in widths]))
    section = None
    for row, cells in zip(all_rows, body):
        if row["at_once"] != section:
            section = row["at_once"]
            lines += [rule, "one at a time" if section == 1 else f"{section} at once"]
        lines.append(text(cells))
    return "\n".join([*lines, rule])


def conclusion(all_rows):
    """Differences between the ways, whichever way they went."""
    sentences = []
    for at_once in sorted({row["at_once"] for row in all_rows}):
        ways = {row["way"]: row for row in all_rows if row["at_once"] == at_once}
        prefetch, demand, plain = ways["prefetch"], ways["demand"], ways["plain"]
        sentences.append(
            f"{'One at a time' if at_once == 1 else f'{at_once} at once'}, prefetched forks answered "
            f"{_difference(prefetch, demand)} than by demand faults and {_difference(prefetch, plain)} than by plain mmap, "
            f"with {prefetch['faults']:.0f} of {demand['faults']:.0f} demand faults left."
        )
    return "\n".join(textwrap.fill(sentence, WIDTH) for sentence in sentences)


def _difference(row, other):
    ms = row["answer_ms"]["median"] - other["answer_ms"]["median"]
    return f"{abs(ms):.0f} ms {'later' if ms > 0 else 'sooner'}"
