#!/usr/bin/python3
"""Every subcommand, action, option and argument of the tables is in its man page, where it belongs, and in docs/cli.md, which names nothing
else; and the pages are good man(7)."""
import os
import re
import shutil
import subprocess
import sys

from api_client import skip
from docs_tables import DEADLINE_S, Docs

SECTIONS = ("NAME", "SYNOPSIS", "DESCRIPTION", "EXIT STATUS", "SEE ALSO")
COMMON = {"run-dir", "json", "help", "version"}


def rendered(path):
    """The page as a reader sees it, without bold and italics."""
    run = subprocess.run(["mandoc", "-T", "utf8", "-O", "width=200", path], check=True, capture_output=True, text=True,
                         timeout=DEADLINE_S)
    return re.sub(r".\x08", "", run.stdout)


def sections(text):
    """Heading -> what stands below it; headings begin their line."""
    parts = re.split(r"^(?=[A-Z])(.+)\n", text, flags=re.M)
    return dict(zip(parts[1::2], parts[2::2]))


def tagged(text, option):
    """Whether a paragraph in TEXT has OPTION as its tag."""
    letter = f"-{option.letter}, " if option.letter != "-" else ""
    value = f" {re.escape(option.value)}" if option.value != "-" else ""
    return re.search(rf"^ +{letter}--{option.name}{value}( |$)", text, flags=re.M)


def squeezed(text):
    return " ".join(text.split())


def check_lint(docs):
    pages = [docs.page(command) for command in ["", *docs.commands]]
    assert sorted(os.listdir(docs.path("man1"))) == sorted(map(os.path.basename, pages))
    run = subprocess.run(["mandoc", "-T", "lint", "-W", "warning", *pages], capture_output=True, text=True, timeout=DEADLINE_S)
    assert run.returncode == 0 and not run.stdout, run.stdout


def check_page(docs, command):
    text = rendered(docs.page(command))
    parts = sections(text)
    for heading in SECTIONS:
        assert squeezed(parts.get(heading, "")), f"faultline-{command}(1) has no {heading}"
    assert f"faultline-{command} - " in parts["NAME"]

    actions = [s for s in docs.synopses if s.command == command]
    named = actions[0].action != "-"
    body = parts["ACTIONS" if named else "OPTIONS"]
    for synopsis in actions:
        # The page names the common options too.
        assert synopsis.text in squeezed(parts["SYNOPSIS"]), f"{synopsis.text!r} is not in the synopsis of faultline-{command}(1)"
        own = re.split(r"^   (?=\S)", body, flags=re.M) if named else [body]
        if named:
            own = [part for part in own if part.split(None, 1)[:1] == [synopsis.action]]
            assert len(own) == 1, f"faultline-{command}(1) has {len(own)} descriptions of {synopsis.action}"
        for option in docs.options:
            if (option.command, option.action) == (command, synopsis.action):
                common = parts.get("COMMON OPTIONS", "") if option.name in COMMON else ""
                assert tagged(own[0] + common, option), f"faultline-{command}(1) has no --{option.name} below {synopsis.action}"


def check_program_page(docs):
    text = rendered(docs.page(""))
    for command in docs.commands:
        assert f"faultline-{command}(1)" in sections(text)["COMMANDS"], command


def check_markdown(docs, text):
    """docs/cli.md is written by hand: what it says of names and synopses is what the tables say."""
    parts = re.split(r"^## (.+)\n", text, flags=re.M)
    headings = dict(zip(parts[1::2], parts[2::2]))
    known = {option.name for option in docs.options} | COMMON

    for command in docs.commands:
        section = headings.get(command) or sys.exit(f"docs/cli.md has no section '## {command}'")
        # An indented line goes on in those that are indented deeper.
        written = [squeezed(block) for block in re.findall(rf"^    (faultline {command}\b.*(?:\n {{8,}}\S.*)*)", section, flags=re.M)]
        for synopsis in docs.synopses:
            if synopsis.command == command:
                assert synopsis.text in written, f"docs/cli.md, {command}: this synopsis is missing:\n    {synopsis.text}"
        for option in docs.options:
            if option.command == command and option.name not in COMMON:
                names = [f"--{option.name}"] + ([f"-{option.letter} "] if option.letter != "-" else [])
                assert any(name in section for name in names), f"docs/cli.md does not describe --{option.name} of {command}"
        for name in re.findall(r"(?<![\w-])--([a-z][a-z-]*)", section):
            assert name in known, f"docs/cli.md, {command}: there is no option --{name}"


def main():
    if not shutil.which("mandoc"):
        skip("mandoc is not installed: see tools/setup")
    with Docs() as docs:
        check_lint(docs)
        check_program_page(docs)
        for command in docs.commands:
            check_page(docs, command)
        with open(os.path.join(os.environ["FAULTLINE_SOURCE"], "docs/cli.md"), encoding="utf-8") as file:
            check_markdown(docs, file.read())
    print(f"{len(docs.commands) + 1} pages, {len(docs.synopses)} actions, {len(docs.options)} options")


if __name__ == "__main__":
    main()
