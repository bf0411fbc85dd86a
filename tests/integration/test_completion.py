#!/usr/bin/python3
"""Completion in real shells: every command, action, option and value of the tables is offered where it may stand, the names of a running
server's templates and forks too, and without a server nothing is said. bash and zsh are typed at over a terminal; fish tells
what it would offer."""
import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time

from api_client import Server, make_image, skip
from docs_tables import DEADLINE_S, Docs

NONE = "/nonexistent/faultline-run"


# ---- asking a shell ----


class Bash:
    """What bash's completion function answers to a line, whose last word is the one to be completed."""

    def __init__(self, docs, environment):
        self.script, self.environment = docs.path("bash", "faultline"), environment

    def offers(self, *words):
        code = 'source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _faultline; printf "%s\\n" "${COMPREPLY[@]}"'
        run = subprocess.run(["bash", "--norc", "-c", code, "bash", self.script, "faultline", *words], capture_output=True, text=True,
                             env=self.environment, timeout=DEADLINE_S)
        assert run.returncode == 0 and not run.stderr, run.stderr
        return [word for word in run.stdout.splitlines() if word]


class Fish:
    def __init__(self, docs, environment):
        self.script, self.environment = docs.path("fish", "faultline.fish"), environment

    def offers(self, *words):
        code = "source $argv[1]; complete -C \"$argv[2]\""
        line = " ".join(("faultline", *words))
        run = subprocess.run(["fish", "--no-config", "-c", code, self.script, line], capture_output=True, text=True, env=self.environment,
                             timeout=DEADLINE_S)
        assert run.returncode == 0 and not run.stderr, run.stderr
        return [word.split("\t")[0] for word in run.stdout.splitlines() if word]


class Terminal:
    """A shell on a terminal of its own."""

    def __init__(self, arguments, environment):
        self.seen = ""
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execvpe(arguments[0], arguments, dict(environment, TERM="dumb", PS1="> ", HISTFILE="/dev/null"))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        os.close(self.fd)
        os.waitpid(self.pid, 0)

    def type(self, text):
        self.seen = ""
        os.write(self.fd, text.encode())

    def screen(self):
        """What was seen, as it stands after each backspace."""
        text = ""
        for c in re.sub(r"\x1b\[[?0-9;]*[a-zA-Z]", "", self.seen).replace("\r", ""):
            text = text[:-1] if c == "\b" else text + c
        return text

    def expect(self, pattern):
        end = time.monotonic() + DEADLINE_S
        while not re.search(pattern, self.screen()):
            ready, _, _ = select.select([self.fd], [], [], max(0, end - time.monotonic()))
            assert ready, f"{pattern!r} did not come: {self.seen!r}"
            try:
                self.seen += os.read(self.fd, 4096).decode(errors="replace")
            except OSError:
                raise AssertionError(f"the shell ended: {self.seen!r}") from None


# ---- what is offered ----


def where(row):
    return (row.command,) if row.action == "-" else (row.command, row.action)


def check_tables(docs, shell):
    for command in docs.commands:
        assert command in shell.offers(command[:2]), command
        actions = [s.action for s in docs.synopses if s.command == command and s.action != "-"]
        if actions:
            assert set(actions) <= set(shell.offers(command, "")), command
    for synopsis in docs.synopses:
        options = {f"--{o.name}" for o in docs.options if where(o) == where(synopsis)}
        offered = set(shell.offers(*where(synopsis), "--"))
        assert options == {word for word in offered if word.startswith("--")}, (synopsis.text, offered)
    for option in docs.options:
        words = [word for word in option.offer.split() if not word.startswith("@")]
        if option.value != "-" and words == option.offer.split():
            offered = shell.offers(*where(option), f"--{option.name}", "")
            assert offered == words or sorted(offered) == sorted(words), (option, offered)


def check_lines(docs, shell):
    """Options before the action, with the value in the same word, after '--', and slips."""
    assert shell.offers("fork", "--run-dir", NONE, "cre") == ["create"]
    assert "--for" in shell.offers("fork", "wait", "a1", "--f")
    assert [word.removeprefix("--for=") for word in shell.offers("fork", "wait", "a1", "--for=g")] == ["gone"]
    assert sorted(shell.offers("fork", "hot-list", "-o", "x", "--format", "h")) == ["hpl1", "hpl2"]
    assert shell.offers("fork", "show", "--run-dir", NONE, "") == []
    assert shell.offers("fork", "create", "--id", "") == []
    assert shell.offers("nonsense", "") == []
    assert not [word for word in shell.offers("hotlist", "show", "--", "--") if word.startswith("--")]


def check_files(docs, shell, directory):
    path = os.path.join(directory, "a file.hpl1")
    with open(path, "w", encoding="ascii"):
        pass
    os.mkdir(os.path.join(directory, "a folder"))
    for words in (("hotlist", "show"), ("template", "add", "x", "--memory"), ("fork", "prefetch", "a1")):
        offered = [word.rstrip("/").replace("\\", "") for word in shell.offers(*words, directory + "/a")]
        assert path in offered, (words, offered)
    offered = [word.rstrip("/").replace("\\", "") for word in shell.offers("fork", "create", "base", "--dir", directory + "/a")]
    assert offered == [os.path.join(directory, "a folder")], offered


def check_names(shell, server):
    run_dir = ("--run-dir", server.run_dir)
    assert shell.offers("fork", *run_dir, "create", "") == ["base", "other"]
    assert shell.offers("template", "show", *run_dir, "o") == ["other"]
    assert shell.offers("template", "add", *run_dir, "") == []
    assert shell.offers("fork", "show", f"--run-dir={server.run_dir}", "") == ["a1"]
    assert shell.offers("fork", "prefetch", *run_dir, "") == ["a1"]
    assert "base" in shell.offers("hotlist", "verify", "x", *run_dir, "--template", "b")


def check_zsh_text(docs):
    """Each option stands in the branch of its action, for zsh is typed at for a few lines only."""
    with open(docs.path("zsh", "_faultline"), encoding="utf-8") as file:
        functions = dict(re.findall(r"^_faultline_(\w+)\(\) \{\n(.*?)^\}", file.read(), flags=re.M | re.S))
    for synopsis in docs.synopses:
        text = functions[synopsis.command]
        if synopsis.action != "-":
            text = re.search(rf"^\t\t{synopsis.action}\)\n(.*?)^\t\t\t;;", text, flags=re.M | re.S).group(1)
        expected = {o.name for o in docs.options if where(o) == where(synopsis)}
        assert set(re.findall(r"[',]--([a-z-]+)[=\[}]", text)) == expected, synopsis.text
        assert len(re.findall(r"^\t*'[0-9*]", text, flags=re.M)) == len([a for a in docs.arguments if where(a) == where(synopsis)])


def check_bash_terminal(docs, environment):
    with Terminal(["bash", "--norc", "--noprofile", "-i"], environment) as bash:
        bash.expect("> $")
        bash.type(f"source {docs.path('bash', 'faultline')}\n")
        bash.expect("> $")
        bash.type("faultline hotl\tconv\tx y --to=j\t")
        bash.expect("faultline hotlist convert x y --to=json ")
        bash.type("\x15exit\n")
        bash.expect("exit")


def check_zsh_terminal(docs, environment, run_dir):
    with Terminal(["zsh", "-f", "-i"], environment) as zsh:
        zsh.expect("> $")
        zsh.type("unsetopt zle_bracketed_paste prompt_cr prompt_sp; "
                 f"fpath=({docs.path('zsh')} $fpath); autoload -Uz compinit; compinit -u -D; PS1='$ '\n")
        zsh.expect(r"\n\$ $")
        zsh.type("faultline hotl\tconv\tx y --to=j\t")
        zsh.expect("faultline hotlist convert x y --to=json ")
        zsh.type("\x15faultline fork wait --for g\t")
        zsh.expect("faultline fork wait --for gone ")
        zsh.type(f"\x15faultline fork --run-dir {run_dir} show a\t")
        zsh.expect(f"fork --run-dir {run_dir} show a1 ")
        zsh.type("\x15exit\n")


def main():
    missing = [shell for shell in ("zsh", "fish") if not shutil.which(shell)]
    program = os.environ.get("FAULTLINE") or skip("FAULTLINE does not name the faultline binary")

    with Docs() as docs, Server() as server:
        links = os.path.join(server.dir, "bin")
        os.mkdir(links)
        os.symlink(program, os.path.join(links, "faultline"))
        environment = dict(os.environ, PATH=f"{links}:{os.environ['PATH']}", HOME=server.dir,
                           FAULTLINE_RUN_DIR=NONE, XDG_CONFIG_HOME=server.dir, XDG_DATA_HOME=server.dir)
        image = os.path.join(server.dir, "image")
        make_image(image)
        for name in ("base", "other"):
            assert server.call("POST", "/v1/templates", {"name": name, "memory": image}).status == 201
        assert server.call("POST", "/v1/forks", {"template": "base", "id": "a1"}).status == 201

        for shell in [Bash(docs, environment)] + ([Fish(docs, environment)] if "fish" not in missing else []):
            kind = type(shell).__name__
            directory = os.path.join(server.dir, kind)
            os.mkdir(directory)
            check_tables(docs, shell)
            check_lines(docs, shell)
            check_files(docs, shell, directory)
            check_names(shell, server)
            print(f"{kind}: all offers are as the tables have them", flush=True)
        check_zsh_text(docs)
        check_bash_terminal(docs, environment)
        if "zsh" not in missing:
            check_zsh_terminal(docs, environment, server.run_dir)
    if missing:
        skip(f"{' and '.join(missing)} not installed: see tools/setup")


if __name__ == "__main__":
    sys.exit(main())
