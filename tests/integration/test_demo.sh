#!/usr/bin/env bash
# The demo itself, with few forks: its table and its figures are plausible, it leaves nothing behind, also when interrupted,
# and it fails with a sentence.
set -euo pipefail

if ((EUID != 0)); then
	echo "skipped: the demo needs root, for userfaultfd and for tools/setup"
	exit 77
fi
demo=$FAULTLINE_SOURCE/tools/demo
scratch=$(mktemp -d)
trap 'rm -rf -- "$scratch"' EXIT
export TMPDIR=$scratch/tmp
mkdir "$TMPDIR"
cd "$scratch"

fail() {
	echo "test_demo: $1" >&2
	tail -n 40 "$scratch"/*.out "$scratch"/*.err >&2
	exit 1
}

# Everything that the demo starts has its temporary directory on the command line.
expect_nothing_left() {
	[[ -z $(ls -A "$TMPDIR") ]] || fail "$1 left files: $(ls "$TMPDIR")"
	! pgrep -af -- "$TMPDIR" || fail "$1 left these processes"
}

whole() {
	"$demo" --forks 2 --json figures.json >whole.out 2>whole.err || fail "the demo failed with $?"
	expect_nothing_left "the demo"
	local row
	for row in 'plain mmap' 'demand faults' 'the same, recorded' 'prefetched'; do
		grep -Eq "^ +$row +[0-9]+ \([0-9]+-[0-9]+\) " whole.out || fail "the table has no row '$row'"
	done
	grep -q "^2 at once" whole.out || fail "the table has nothing of forks at once"
	! grep -q $'\033' whole.out whole.err || fail "there are terminal codes in a file"

	/usr/bin/python3 - figures.json <<'END' || fail "the figures are not plausible"
import json, sys

figures = json.load(open(sys.argv[1]))
assert figures["template_intact"] is True
rows = {(row["way"], row["at_once"]): row for row in figures["rows"]}
assert set(rows) == {(way, 1) for way in ("plain", "demand", "record", "prefetch")} | {
    (way, 2) for way in ("plain", "demand", "prefetch")
}, rows.keys()
assert len(figures["forks"]) == 14
for (way, _), row in rows.items():
    assert row["forks"] == 2, row
    assert 0 < row["resume_ms"] < row["answer_ms"]["min"] <= row["answer_ms"]["median"] <= row["answer_ms"]["max"], row
    assert 0 < row["pss"] <= row["rss"], row
    if way in ("demand", "record"):
        assert row["faults"] > 1000 and row["stall_ms"] > 0 and row["prefetched_pages"] is None, row
    if way == "prefetch":
        assert row["faults"] < rows["demand", 1]["faults"] / 4, row
        assert row["prefetched_pages"] > 1000 and row["prefetched_pages"] / 2 < row["used_pages"] <= row["prefetched_pages"], row
END
}

interrupted() {
	local pid status=0 line
	mkfifo progress
	"$demo" --forks 2 >interrupted.out 2>progress &
	pid=$!
	while read -r line; do
		echo "$line" >>interrupted.err
		case $line in
		*'one at a time, round 1'*) kill -INT "$pid" ;;
		esac
	done <progress
	wait "$pid" || status=$?
	((status == 130)) || fail "the interrupted demo ended with $status"
	grep -q interrupted interrupted.err || fail "the interrupted demo did not say so"
	expect_nothing_left "the interrupted demo"
}

without_a_server() {
	! FAULTLINE=/bin/false "$demo" >failed.out 2>failed.err || fail "the demo succeeds without a server"
	grep -q "tools/demo: .*serve. did not start" failed.err || fail "the demo does not say what failed"
	! grep -q Traceback failed.err || fail "the demo fails with a traceback"
	expect_nothing_left "the failed demo"
}

without_a_server
interrupted
whole
