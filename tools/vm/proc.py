"""What /proc says of a process's memory."""
import re

PAGE = 4096


def resident(pid):
    """(RSS, PSS) in bytes: pages present, and the same with shared ones divided by those who share them."""
    with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
        sizes = dict(re.findall(r"^(Rss|Pss): +(\d+) kB", file.read(), re.MULTILINE))
    return int(sizes["Rss"]) << 10, int(sizes["Pss"]) << 10


def forget_touches(pid):
    """Clears the accessed marks of the process's pages: `touched_pages` counts from here on."""
    with open(f"/proc/{pid}/clear_refs", "w", encoding="ascii") as file:
        file.write("1")


def touched_pages(pid, start, size):
    """Present pages in a range that were touched, or came, since `forget_touches`. The range's own mappings only."""
    total, inside = 0, False
    with open(f"/proc/{pid}/smaps", encoding="ascii", errors="replace") as file:
        for line in file:
            if header := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
                inside = start <= int(header[1], 16) and int(header[2], 16) <= start + size
            elif inside and line.startswith("Referenced:"):
                total += int(line.split()[1]) << 10
    return total // PAGE
