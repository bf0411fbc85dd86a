"""What faultline-docs makes out of the program's tables of options, and the tables themselves: for the tests of both."""
import collections
import os
import subprocess
import tempfile

from api_client import skip

DEADLINE_S = 60

Option = collections.namedtuple("Option", "command action name letter value offer")
Argument = collections.namedtuple("Argument", "command action name offer")
Synopsis = collections.namedtuple("Synopsis", "command action text")


class Docs:
    """The tables as lists; as a context, also a directory with man1, bash, zsh and fish."""

    def __init__(self):
        self.program = os.environ.get("FAULTLINE_DOCS") or skip("FAULTLINE_DOCS does not name the program faultline-docs")
        tables = subprocess.run([self.program, "--tables"], check=True, capture_output=True, text=True, timeout=DEADLINE_S)
        self.options, self.arguments, self.synopses = [], [], []
        rows = {"option": (Option, self.options), "argument": (Argument, self.arguments), "synopsis": (Synopsis, self.synopses)}
        for line in tables.stdout.splitlines():
            kind, *fields = line.split("\t")
            row, rows_of_kind = rows[kind]
            rows_of_kind.append(row(*fields))
        self.commands = list(dict.fromkeys(s.command for s in self.synopses))
        assert {"serve", "template", "fork", "hotlist"} <= set(self.commands), self.commands
        assert len(self.options) > 30 and len(self.arguments) > 10

    def __enter__(self):
        self.directory = tempfile.TemporaryDirectory(prefix="faultline-docs.")
        subprocess.run([self.program, self.directory.name], check=True, timeout=DEADLINE_S)
        return self

    def __exit__(self, *_):
        self.directory.cleanup()

    def path(self, *names):
        return os.path.join(self.directory.name, *names)

    def page(self, command):
        """The path of a command's man page; of the program's own, where COMMAND is empty."""
        return self.path("man1", f"faultline-{command}.1" if command else "faultline.1")
