"""What a kernel's log says about the kernel's health."""
import re

# Lines that tell of something that must not happen in a kernel, whatever the programs on it do.
TROUBLE = re.compile(
    r"WARNING: |BUG: |\bOops\b|general protection fault|kernel BUG at|Call Trace:|"
    r"rcu.*(self-detected|detected) stall|rcu.*kthread starved|blocked for more than \d+ seconds|"
    r"possible (circular|recursive) locking|suspicious RCU usage|inconsistent lock state|"
    r"refcount_t: |unchecked MSR access|UBSAN|KASAN|KFENCE|"
    r"Bad page state|Bad rss-counter|bad pmd|unable to handle|Kernel panic|"
    r"VM_FAULT_OOM|Out of memory:|page allocation failure|scheduling while atomic|soft lockup|hard LOCKUP|list_(add|del) corruption"
)

# Lines with such words that say nothing about faultline, and why.
HARMLESS = (
)

RECORD = re.compile(r"\d+,\d+,\d+,[^;]*;(.*)")


def lines_of(log):
    """The text of each record of /dev/kmsg; its continuation lines (key=value, indented) are left out."""
    for line in log.splitlines():
        if record := RECORD.fullmatch(line):
            yield record[1]


def troubles(lines):
    """Those of the lines that a test run must not have caused."""
    return [line for line in lines if TROUBLE.search(line) and not any(re.search(pattern, line) for pattern, _ in HARMLESS)]
