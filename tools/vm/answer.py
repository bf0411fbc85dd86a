"""What a guest is asked to do: start Python, import what a small service imports, compute. The host imports answer() to check."""
import hashlib
import importlib
import sys

MODULES = """argparse collections configparser csv datetime email.message ipaddress logging pathlib pickle random re socket
    ssl subprocess threading typing urllib.parse"""


def answer(number):
    """A value that nobody can have stored, the same under every version of Python."""
    groups = {}
    state = number
    for _ in range(3000):
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        groups.setdefault(state >> 56, []).append(state >> 20 & 0xFFFF)
    text = "\n".join(f"{key},{sum(group)},{len(group)}" for key, group in sorted(groups.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


if __name__ == "__main__":
    for module in MODULES.split():
        importlib.import_module(module)
    print(answer(int(sys.argv[1])))
