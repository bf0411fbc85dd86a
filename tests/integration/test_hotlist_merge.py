#!/usr/bin/python3
"""`faultline hotlist merge` and `plot` from end to end: files in and out, what they say, exit codes, and what they refuse."""
import json
import os
import subprocess
import tempfile
import unittest
import xml.etree.ElementTree as ET
from pathlib import Path

FAULTLINE = os.environ["FAULTLINE"]


def faultline(*arguments, stdin=None):
    return subprocess.run([FAULTLINE, "hotlist", *map(str, arguments)], input=stdin, capture_output=True, timeout=60)


class Case(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory(prefix="faultline-merge.")
        self.addCleanup(directory.cleanup)
        self.dir = Path(directory.name)

    def run_list(self, name, pages):
        """A list of one run: pages by number, touched 1 ms apart."""
        path = self.dir / name
        rows = [f"0,{page * 4096},{(i + 1) * 1000000},1" for i, page in enumerate(pages)]
        path.write_text("region,offset,first_touch_ns,seen\n" + "\n".join(rows) + "\n")
        return path

    def pages(self, path):
        shown = faultline("show", path, "--json")
        self.assertEqual(shown.returncode, 0, shown.stderr)
        return [page["offset"] // 4096 for page in json.loads(shown.stdout)["pages"]]

    def merge(self, *arguments):
        result = faultline("merge", *arguments, "--json")
        self.assertEqual(result.returncode, 0, result.stderr)
        return json.loads(result.stdout)


class Merge(Case):
    def test_runs_become_one_list(self):
        a = self.run_list("a.csv", [5, 1, 2, 3, 4])
        b = self.run_list("b.csv", [1, 2, 3, 4, 5])
        c = self.run_list("c.csv", [1, 2, 3, 4, 5])
        out = self.dir / "out.hpl2"
        result = self.merge("-o", out, a, b, c)
        self.assertEqual(self.pages(out), [1, 2, 3, 4, 5])
        self.assertEqual(out.read_bytes()[:4], b"HPL2")
        for key, value in {"runs": 3, "inputs": 3, "pages": 5, "placed": 5, "tail": 0, "dropped": 0, "format": "hpl2"}.items():
            self.assertEqual(result[key], value, key)
        # What was merged can be merged again, and knows its runs.
        self.assertEqual(self.merge("-o", out, out, a)["runs"], 4)

    def test_what_it_says(self):
        a = self.run_list("a.csv", range(100))
        result = faultline("merge", "-o", self.dir / "out.hpl2", a, a)
        self.assertEqual(result.returncode, 0)
        text = result.stdout.decode()
        for part in ("Runs    2, in 2 lists", "Clock   raw", "Pages   100: 100 in their places"):
            self.assertIn(part, text)
        # Behind a list on standard output nothing else stands.
        result = faultline("merge", "-o", "-", "--format", "csv", a, "-", stdin=a.read_bytes())
        self.assertEqual(result.returncode, 0)
        self.assertEqual(len(result.stdout.splitlines()), 101)
        self.assertIn(b"Runs    2", result.stderr)

    def test_formats(self):
        a = self.run_list("a.csv", [3, 1, 2])
        for name, expected in (("hpl1", [1, 2, 3]), ("hpl2", [3, 1, 2]), ("json", [3, 1, 2]), ("csv", [3, 1, 2])):
            out = self.dir / name
            self.assertEqual(self.merge("-o", out, "-f", name, a)["format"], name)
            self.assertEqual(self.pages(out), expected)

    def test_a_list_is_kept_fresh(self):
        old = self.dir / "old.hpl2"
        self.merge("-o", old, self.run_list("first.csv", range(100)))
        for run in range(60):
            new = self.run_list("run.csv", [*range(50), 500 + run % 2, *range(51, 100)])
            result = self.merge("--refresh", old, "--saw", "all", "-o", old, new)
            self.assertTrue(result["complete"])
        pages = self.pages(old)
        self.assertNotIn(50, pages)
        self.assertEqual({500, 501} & set(pages), {500, 501})
        self.assertIn(pages.index(501), range(48, 54))
        # A few misses make nothing sink.
        before = self.pages(old)
        result = self.merge("--refresh", old, "-o", old, self.run_list("misses.csv", [900]))
        self.assertFalse(result["complete"])
        self.assertEqual([page for page in self.pages(old) if page != 900], before)

    def test_what_is_refused(self):
        a = self.run_list("a.csv", [1])
        out = self.dir / "out"
        for arguments, code, message in (
            (["-o", out], 2, "IN"),
            ([a], 2, "--output"),
            (["-o", "-", "--json", a], 2, "standard output"),
            (["-o", out, "--saw", "all", a], 2, "--refresh"),
            (["-o", out, "--format", "xml", a], 2, "xml"),
            (["-o", out, a, self.dir], 1, str(self.dir)),
            (["-o", self.dir / "none" / "out", a], 1, "none"),
        ):
            result = faultline("merge", *arguments)
            self.assertEqual(result.returncode, code, arguments)
            self.assertIn(message, result.stderr.decode(), arguments)
            self.assertFalse(out.exists())

    def test_lists_of_other_regions_are_refused(self):
        lists = []
        for size in (1 << 20, 2 << 20):
            shown = self.dir / f"{size}.json"
            source = self.run_list("a.csv", [1, 2])
            self.merge("-o", shown, "-f", "json", source)
            document = json.loads(shown.read_text())
            document["origin"]["regions"] = [{"size": size, "offset": 0, "page_size": 4096}]
            shown.write_text(json.dumps(document))
            lists.append(shown)
        result = faultline("merge", "-o", self.dir / "out", *lists)
        self.assertEqual(result.returncode, 1)
        for part in (str(lists[0]), str(lists[1]), "different memory regions"):
            self.assertIn(part, result.stderr.decode())


class Plot(Case):
    def test_pictures_are_xml_and_hold_what_they_should(self):
        a = self.run_list("a.csv", range(100))
        b = self.run_list("b.csv", range(99, -1, -1))
        out = self.dir / "out.svg"
        result = faultline("plot", a, "-o", out, "--truth", b)
        self.assertEqual((result.returncode, result.stdout), (0, b""), result.stderr)
        text = "".join(ET.parse(out).getroot().itertext())
        for part in ("Hot list a.csv", "100 pages", "rank correlation -1.0000", "true order: b.csv"):
            self.assertIn(part, text)
        result = faultline("plot", "-", "-o", "-", stdin=a.read_bytes())
        self.assertEqual(result.returncode, 0)
        self.assertIn("from standard input", "".join(ET.fromstring(result.stdout).itertext()))

    def test_what_is_refused(self):
        a = self.run_list("a.csv", [1])
        self.assertEqual(faultline("plot", a).returncode, 2)
        self.assertEqual(faultline("plot", "-", "-o", "-", "--truth", "-").returncode, 2)
        self.assertEqual(faultline("plot", a, "-o", self.dir).returncode, 1)
        (self.dir / "bad").write_bytes(b"HPL1\xff")
        result = faultline("plot", self.dir / "bad", "-o", self.dir / "out.svg")
        self.assertEqual(result.returncode, 1)
        self.assertIn(b"bad", result.stderr)


if __name__ == "__main__":
    unittest.main(verbosity=2)
