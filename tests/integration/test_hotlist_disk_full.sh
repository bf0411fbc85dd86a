#!/usr/bin/env bash
# A disk that fills up while a list is saved: the old list stays whole, nothing is left behind, and the message says what to do.
set -euo pipefail

faultline=${FAULTLINE:?names the faultline binary}
((EUID == 0)) || { echo "skipped: mounting a small tmpfs needs root"; exit 77; }

dir=$(mktemp -d /tmp/faultline-disk-full.XXXXXX)
small=$dir/small
mkdir "$small"

clean_up() {
	! mountpoint -q -- "$small" || umount -- "$small"
	rm -rf -- "$dir"
}
trap clean_up EXIT

fail() {
	echo "FAILED: $1"
	[[ ! -s $dir/err ]] || sed 's/^/    stderr: /' "$dir/err"
	exit 1
}

mount -t tmpfs -o size=1m,mode=0755 faultline-test "$small" || { echo "skipped: tmpfs can't be mounted here"; exit 77; }

# Of 300,000 pages each format needs more than the 1 MiB that there is.
/usr/bin/python3 -c '
import random
random.seed(1)
print("region,offset,first_touch_ns")
for page in random.sample(range(1 << 28), 300000):
    print(f"0,{page * 4096},{random.getrandbits(30)}")' >"$dir/large.csv"
printf 'HPL1\x01\x00\x80\x20' >"$dir/old.hpl"

# refused WHAT FORMAT: saving the large list there as FORMAT must fail, and leave what was there as it was.
refused() {
	local before status=0
	before=$(ls -lA "$small")

	"$faultline" hotlist convert "$dir/large.csv" "$small/list" --to "$2" >"$dir/out" 2>"$dir/err" || status=$?
	((status == 1)) || fail "$1, $2: exit code $status, expected 1"
	grep -qF "cannot save the hot list $small/list: " "$dir/err" || fail "$1, $2: the file is not named"
	grep -qF 'No space left on device' "$dir/err" || fail "$1, $2: the cause is not named"
	grep -qF 'Free some space there, or save the list elsewhere' "$dir/err" || fail "$1, $2: no remedy"
	[[ $(ls -lA "$small") == "$before" ]] || fail "$1, $2: the directory has changed: $(ls -lA "$small")"
}

for format in hpl1 hpl2 json csv; do
	refused 'no list before' "$format"
	grep -qF 'Nothing was saved' "$dir/err" || fail "no list before, $format: it does not say that nothing was saved"
done

cp "$dir/old.hpl" "$small/list"
for format in hpl1 hpl2 json csv; do
	refused 'a list before' "$format"
	grep -qF 'What was there before is as it was' "$dir/err" || fail "a list before, $format: it does not say what became of it"
	cmp -s "$dir/old.hpl" "$small/list" || fail "a list before, $format: it has changed"
	"$faultline" hotlist show "$small/list" >/dev/null || fail "a list before, $format: it can't be read any more"
done

# Not even room for one more file.
full() {
	head -c 2M /dev/zero >"$small/filler" 2>/dev/null || true
}
full
refused 'a full disk' hpl1
cmp -s "$dir/old.hpl" "$small/list" || fail "a full disk: the old list has changed"

# With room again, the same command goes through.
rm "$small/filler"
"$faultline" hotlist convert "$dir/old.hpl" "$small/list" --to csv 2>"$dir/err" || fail "saving with room again"
"$faultline" hotlist diff "$dir/old.hpl" "$small/list" >/dev/null || fail "what was saved with room again"

# The rest of a writer that died on the full disk takes up the room that the next one needs: it is replaced, not kept.
full
mv "$small/filler" "$small/list.tmp"
"$faultline" hotlist convert "$dir/old.hpl" "$small/list" --to hpl1 2>"$dir/err" || fail "saving over a dead writer's rest"
cmp -s "$dir/old.hpl" "$small/list" || fail "what was saved over a dead writer's rest"
[[ ! -e $small/list.tmp ]] || fail "a dead writer's rest is still there"

# A limit on file sizes is the same to whoever saves.
status=0
(ulimit -f 16 && exec "$faultline" hotlist convert "$dir/large.csv" "$dir/old.hpl" --to hpl1) 2>"$dir/err" || status=$?
((status == 1)) || fail "a limit on file sizes: exit code $status, expected 1"
grep -qF 'ulimit -f' "$dir/err" || fail "a limit on file sizes: no remedy"
cmp -s "$dir/old.hpl" "$small/list" || fail "a limit on file sizes: the old list has changed"
[[ ! -e $dir/old.hpl.tmp ]] || fail "a limit on file sizes: a .tmp file is left"

echo "ok"
