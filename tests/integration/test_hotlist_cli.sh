#!/usr/bin/env bash
# `faultline hotlist` from end to end: show, convert, diff and verify, their exit codes and what they say when they fail.
set -euo pipefail

faultline=${FAULTLINE:?names the faultline binary}
dir=$(mktemp -d /tmp/faultline-hotlist-cli.XXXXXX)
server=

clean_up() {
	# By then it has ended unless a check failed.
	[[ -z $server ]] || kill "$server" 2>/dev/null || true
	rm -rf -- "$dir"
}
trap clean_up EXIT
cd "$dir"

fail() {
	echo "FAILED: $1"
	[[ ! -s out ]] || sed 's/^/    stdout: /' out
	[[ ! -s err ]] || sed 's/^/    stderr: /' err
	exit 1
}

# run CODE ARGUMENT...: `faultline hotlist ARGUMENT...` must exit with CODE; its output stays in the files out and err.
run() {
	local expected=$1 status=0
	shift
	"$faultline" hotlist "$@" >out 2>err || status=$?
	((status == expected)) || fail "hotlist $*: exit code $status, expected $expected"
}

says() {
	grep -qF -- "$1" out || fail "standard output does not say: $1"
}

complains() {
	grep -qF -- "$1" err || fail "standard error does not say: $1"
}

quiet() {
	[[ ! -s err ]] || fail "something on standard error"
}

# json EXPRESSION: it must hold for the JSON in the file out, as a Python expression over j.
json() {
	/usr/bin/python3 -c 'import json, sys; j = json.load(open("out")); sys.exit(not eval(sys.argv[1]))' "$1" ||
		fail "does not hold: $1"
}

same_bytes() {
	cmp -s -- "$1" "$2" || fail "$1 and $2 differ"
}

printf 'HPL1\x03\x00\x00\x00\x80\x20\x02\x80\x80\x40' >three.hpl # {(0,0), (0,4096), (2,1 MiB)}
printf 'HPL1\x00' >empty.hpl

# ---- show ----

run 0 show three.hpl
quiet
says 'Format  hpl1'
says 'Pages   3, 12 KiB at 4 KiB each'
says 'Runs    2 of neighbouring pages: mean 1.5, longest 2'
says '       2           1048576'

run 0 show --json three.hpl
json 'j["format"] == "hpl1" and j["count"] == 3 and j["bytes"] == 12288 and j["runs"] == 2 and j["longest_run"] == 2'
json 'j["regions"][1] == {"region": 2, "pages": 1, "runs": 1, "lowest": 1048576, "highest": 1048576}'
json 'j["pages"] == [{"region": 0, "offset": 0}, {"region": 0, "offset": 4096}, {"region": 2, "offset": 1048576}]'

run 0 show three.hpl --limit 1
says "… and 2 more; '--limit all' prints them all"
run 0 show --limit=2 three.hpl --json
json 'len(j["pages"]) == 2 and j["count"] == 3'
run 0 show three.hpl --page-size 2M
says 'at 2 MiB each'
run 0 show - <three.hpl
says 'Pages   3,'
run 0 show <(cat three.hpl)
says 'Pages   3,'
run 0 show missing.hpl
says 'Pages   0,'
complains 'missing.hpl does not exist, which counts as an empty list'

run 2 show
run 2 show a b
run 2 show three.hpl --limit x
complains "not 'x'"
run 2 show three.hpl --page-size 5000
complains 'power of two'
run 2 show three.hpl --colour
run 2 nonsense
run 0 show --help
says 'faultline hotlist show FILE'
run 0 --help
for action in show convert diff verify merge plot; do
	says "  $action "
done

# ---- hpl2: all that is known of a list ----

cat >full.json <<'END'
{"format":"faultline-hotlist","version":1,
"origin":{"tier":"tp_btf","runs":3,"events_lost":2,"window_ns":1500000000,"window_end":"settled","clock":"corrected",
"agreement_raw":0.97,"agreement_corrected":-0.5,"page_size":4096,"image_size":8388608,
"regions":[{"size":6291456,"offset":0,"page_size":4096},{"size":2097152,"offset":6291456,"page_size":2097152}]},
"pages":[
{"region":1,"offset":0,"first_touch_ns":1234567,"corrected_ns":1000000,"seen":3,"spread":12345,"vcpu":1,"kind":"write","present":true},
{"region":0,"offset":8192,"first_touch_ns":2000000,"corrected_ns":1100000,"seen":1,"spread":0,"vcpu":0,"kind":"read","present":false},
{"region":0,"offset":4096}
]}
END
run 0 convert full.json full.hpl2
quiet
run 0 show full.hpl2
says 'Format  hpl2'
says 'Made    of 3 runs, observed by tp_btf, with 2 events lost: pages may be missing'
says 'Window  1.500 s, until faults became rare'
says 'Clock   corrected; the runs agree to 0.9700 by raw times, to -0.5000 by corrected ones'
says 'Image   8 MiB'
says 'Memory  2 regions: 6 MiB at offset 0, 2 MiB at offset 6291456 in pages of 2 MiB'
says '       1                 0             1.234             1.000      1      3  write    1.2345 %  present'
# A single run agrees with nobody.
sed 's/"runs":3/"runs":1/; s/"agreement_raw":0.97,"agreement_corrected":-0.5/"agreement_raw":0.13,"agreement_corrected":0.87/' full.json >one.json
run 0 show one.json
says 'Clock   corrected; while one vCPU stood still, the others touched on at 0.87 of their pace'
run 0 show full.hpl2 --limit 1
says "… and 2 more; '--limit all' prints them all"
run 0 show full.hpl2 --json
json '(j["format"], j["count"], j["touches"], j["origin"]["tier"], j["origin"]["regions"][1]["offset"]) == ("hpl2", 3, True, "tp_btf", 6291456)'
json 'j["pages"][0]["spread"] == 12345 and j["pages"][2] == {"region": 0, "offset": 4096}'
json 'j["origin"]["agreement_corrected"] == -0.5 and "image_identity" not in j["origin"]'
run 0 show three.hpl --json
json 'j["origin"] is None and j["touches"] is False'

# There and back: JSON keeps all, CSV all but the origin, and says so; HPL1 the set of pages.
run 0 convert full.hpl2 again.json
run 0 convert again.json again.hpl2
quiet
same_bytes full.hpl2 again.hpl2
run 0 convert full.hpl2 full.csv
complains 'csv does not keep the origin'
[[ $(sed -n 2p full.csv) == 1,0,1234567,3,1000000,1,write,12345,1 ]] || fail "row of full.csv"
run 0 convert full.csv plain.hpl2
run 0 convert plain.hpl2 plain.csv
same_bytes full.csv plain.csv
run 0 convert full.hpl2 full.hpl1
complains 'hpl1 keeps the set of pages, not the order of full.hpl2'
complains 'hpl1 does not keep the origin (tier, runs, window, clock, image, regions) and what is known of the pages'
run 0 convert plain.hpl2 full.hpl1
complains 'hpl1 does not keep what is known of the pages (times, vCPU, times seen, kind, spread, present) of plain.hpl2'
run 0 convert three.hpl three.hpl2
quiet
run 0 convert three.hpl2 three.hpl1
quiet
same_bytes three.hpl three.hpl1
printf 'region,offset\n0,8192\n0,0\n0,8192\n' >twice.csv
run 0 convert twice.csv twice.hpl2
complains 'hpl2 has each page once, where it comes first: 1 entry of twice.csv left out'
printf 'region,offset\n0,100\n' >odd.csv
run 1 convert odd.csv odd.hpl2
complains 'entry 0 of the list is at offset 100 of region 0, which is not a multiple of 4096'
[[ ! -e odd.hpl2 ]] || fail "odd.hpl2 was written"

run 0 diff full.hpl2 full.hpl1
says 'Order    -1.0000 rank correlation of the pages in both'
says 'Seen A   a page was touched in 1.33 of 3 runs, in the mean'
run 0 diff full.hpl2 again.json --json
json '(j["rank_correlation"], j["runs_a"], j["mean_seen_b"], j["same"]) == (1, 3, 1.333, True)'
run 1 diff full.hpl2 empty.hpl --json
json 'j["rank_correlation"] is None and j["pages_only_a"][2]["kind"] == "write" and "runs_b" not in j'

# ---- malformed lists ----

# malformed BYTES TEXT: the bytes, as printf writes them, are refused with TEXT.
malformed() {
	# shellcheck disable=SC2059 # the bytes are a format on purpose
	printf -- "$1" >bad
	run 1 show bad
	complains "bad: $2"
	[[ ! -s out ]] || fail "something on standard output"
}

malformed '' 'shorter than the magic: the file ends at byte 0'
malformed 'XXXX\x00' 'bad magic at byte 0'
malformed 'HPL1\xff' 'bad count at byte 4'
malformed 'HPL1\x80\x80\x80\x80\x80\x80\x80\x80\x10' 'bad count at byte 4: 1152921504606846976 entries do not fit'
malformed 'HPL1\x01\x80\x80' 'truncated in entry 0 (region) at byte 5'
malformed 'HPL1\x01\x00\x80' 'truncated in entry 0 (offset) at byte 6'
malformed 'HPL1\x01\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x00\x00' 'varint over 64 bits in entry 0 (region) at byte 5'
malformed 'HPL1\x00\x00' '1 trailing byte at byte 5'
malformed 'HPL3\x00' 'bad magic at byte 0: "HPL3", a format that this version of faultline cannot read'
malformed 'HPL2\x02\x00' 'bad version at byte 4: 2'
malformed 'HPL2\x01\x00\x03' 'truncated: the file ends at byte 7, within its header'
malformed '{"pages":[}' 'line 1, column 11'
malformed 'region,offset\n0,x\n' 'line 2: offset must be a whole number'

head -c -1 full.hpl2 >bad
run 1 show bad
complains 'bad: truncated: the file ends at byte'
(cat full.hpl2 && printf x) >bad
run 1 show bad
complains 'bad: 1 trailing bytes at byte'
# The last byte before the checksum is another.
(head -c -5 full.hpl2 && printf '\xff' && tail -c 4 full.hpl2) >bad
run 1 show bad
complains 'bad: bad checksum at byte'
malformed 'region,offset\n0,x\n' 'line 2: offset must be a whole number'

run 1 show bad --json
[[ ! -s out ]] || fail "something on standard output"
mv err out
json 'j["error"]["code"] == "bad_hot_list" and "line 2" in j["error"]["message"]'

run 1 show "$dir"
complains 'it is a directory'

# ---- convert ----

run 0 convert three.hpl three.json --to json
quiet
run 0 convert --to csv three.json three.csv
[[ $(head -n 1 three.csv) == region,offset,first_touch_ns,seen,* ]] || fail "header of three.csv"
[[ $(sed -n 4p three.csv) == 2,1048576,,1,,,,, ]] || fail "row of three.csv"
run 0 convert three.csv --to=hpl1 back.hpl
same_bytes three.hpl back.hpl
"$faultline" hotlist convert - - --to hpl1 <three.csv >piped.hpl || fail "convert from and to pipes"
same_bytes three.hpl piped.hpl
run 0 convert missing.hpl new.hpl --to hpl1
same_bytes empty.hpl new.hpl
[[ -z $(find . -name '*.tmp') ]] || fail "a .tmp file is left"

# A list in an order of its own keeps it in json and csv; hpl1 says that it does not.
printf 'kind,offset,vcpu,region\nr,8192,0,1\nw,0,1,0\nr,8192,0,1\n' >touches.csv
run 0 convert touches.csv touches.json --to json
quiet
run 0 show touches.json --json
json '[(p["region"], p["offset"]) for p in j["pages"]] == [(1, 8192), (0, 0), (1, 8192)]'
json 'j["count"] == 2 and j["duplicates"] == 1 and not j["sorted"]'
run 0 convert touches.csv touches.hpl --to hpl1
complains 'hpl1 keeps the set of pages, not the order'
run 0 show touches.hpl --json
json '[(p["region"], p["offset"]) for p in j["pages"]] == [(0, 0), (1, 8192)]'

run 2 convert three.hpl x
complains "'x' does not end in .hpl1, .hpl2, .json or .csv: say the format with --to"
run 2 convert three.hpl dir.csv/x
run 2 convert three.hpl - </dev/null
run 2 convert three.hpl x --to xml
complains "'hpl1', 'hpl2', 'json' or 'csv', not 'xml'"
run 1 convert bad x --to csv
[[ ! -e x ]] || fail "x was written"
run 1 convert three.hpl none/x --to csv
complains 'Make the directory first'
run 1 convert three.hpl /dev/full --to csv
complains 'No space left on device'
status=0
"$faultline" hotlist convert three.hpl - --to csv >/dev/full 2>err || status=$?
((status == 1)) || fail "convert to a full standard output: exit code $status"

# ---- diff ----

run 0 diff three.hpl three.csv
says 'Jaccard  1.0000'
run 1 diff three.hpl touches.csv
says 'Only A   2 pages'
says 'Only B   1 page'
says 'Jaccard  0.2500'
run 1 diff --json three.hpl touches.csv
json 'j["same"] is False and (j["only_a"], j["only_b"], j["both"], j["jaccard"]) == (2, 1, 1, 0.25)'
json '[(p["region"], p["offset"], p["kind"]) for p in j["pages_only_b"]] == [(1, 8192, "read")]'
json 'j["pages_only_a"] == [{"region": 0, "offset": 4096}, {"region": 2, "offset": 1048576}]'
run 0 diff empty.hpl missing.hpl --json
json 'j["same"] is True and j["jaccard"] == 1'
run 0 diff - three.hpl <three.json
run 2 diff three.hpl bad
complains 'line 2'
run 2 diff three.hpl
run 2 diff - -

# ---- verify against an image ----

truncate -s 8193 small.img # its last page is cut short, and served with zeros behind
truncate -s 8M large.img
printf 'region,offset\n0,0\n0,8192\n' >fits.csv
printf 'region,offset\n0,0\n0,12288\n' >past.csv

run 0 verify fits.csv --template small.img
says 'fits.csv fits small.img'
run 0 verify --template ./small.img fits.csv --json
json 'j["ok"] is True and j["entries"] == 2 and j["memory_size"] == 8193 and j["template"] is None'
run 1 verify past.csv --template ./small.img
complains 'past.csv does not fit ./small.img: entry 1 of the list is at offset 12288 of region 0, which ends at 12288'
run 1 verify three.hpl --template large.img --json
mv err out
json 'j["error"]["code"] == "bad_region" and "entry 2" in j["error"]["message"]'
run 0 verify three.hpl --template large.img --regions 4M,1M,2M
says '3 regions'
run 0 verify three.hpl --template large.img --regions 2M:6M:2M,4K:0,0x200000:2097152
run 1 verify three.hpl --template large.img --regions 4M,1M,1M
complains 'entry 2 of the list is at offset 1048576 of region 2, which ends at 1048576'
run 1 verify three.hpl --template large.img --regions 4M,1M,1M:7M,2M:7M
complains 'region 3 of --regions ends at byte 9437184'
run 1 verify three.hpl --template ./none.img
complains './none.img: No such file or directory'
run 1 verify three.hpl --template "$dir"
complains 'not a regular file'
for spec in '' '4M,' '4M,,1M' 1.5G -1 4M:0:4096:0 4M:0:5000 4M:0:2048 4M:100 5000 0 99999999T 8E; do
	run 2 verify three.hpl --template large.img --regions "$spec"
	grep -q 'region [01]' err || fail "--regions '$spec': no region is named"
done
run 2 verify three.hpl
complains '--template NAME|IMAGE is missing'

# A list's own regions and its image are held against what it is to be used on.
run 0 verify full.hpl2 --template large.img
says 'full.hpl2 fits large.img (8 MiB): 3 pages, 2 regions'
run 1 verify full.hpl2 --template small.img
complains 'region 0 of the list ends at byte 6291456 of the image small.img, which has only 8193'
run 1 verify full.hpl2 --template large.img --regions 8M
complains 'the list was recorded on a fork of 2 memory regions, and here is 1: it belongs to another memory layout'
run 1 verify full.hpl2 --template large.img --regions 4M,4M
complains 'region 0 had 6291456 bytes when the list was recorded, and has 4194304 here'
bind() {
	sed "s/\"image_size\":8388608/&,\"image_identity\":\"$1\"/" full.json >bound.json
	run 0 convert bound.json "$2"
}
bind "$(printf '%064d' 7)" other.hpl2
run 1 verify other.hpl2 --template large.img
complains 'other.hpl2 is not for large.img: the list was recorded on another image than large.img: on one with the identity 0000000000000000…'
run 1 verify other.hpl2 --template small.img --json
mv err out
json 'j["error"]["code"] == "bad_hot_list" and "on one of 8388608 bytes, and this one has 8193" in j["error"]["message"]'
# Eight MiB of zeros have this identity.
identity=$(/usr/bin/python3 -c '
import hashlib, struct
print(hashlib.sha256(b"faultline-image-1\0" + struct.pack("<Q", 8 << 20) + bytes(4096 * 1024)).hexdigest())')
bind "$identity" bound.hpl2
run 0 verify bound.hpl2 --template large.img
says 'bound.hpl2 was recorded on large.img (8 MiB): 3 pages, 2 regions'
run 0 verify bound.hpl2 --template large.img --json
json 'j["bound"] is True and j["regions"] == 2'
printf x | dd of=large.img conv=notrunc status=none # page 0 is always looked at
run 1 verify bound.hpl2 --template large.img
complains 'with the identity'
printf '\0' | dd of=large.img conv=notrunc status=none
run 0 verify bound.hpl2 --template large.img

# ---- verify against a template ----

run 3 verify three.hpl --template base --run-dir "$dir/run"
complains 'faultline serve --run-dir'

mkdir run
coproc SERVER { exec "$faultline" serve --run-dir "$dir/run" 2>&1; }
# shellcheck disable=SC2153 # set by coproc
server=$SERVER_PID
# Each line of the log may be the one that says that the API is there.
while [[ ! -S run/control.sock ]]; do
	read -r -t 60 line <&"${SERVER[0]}" || fail "the server did not start: ${line:-nothing in its log}"
done
"$faultline" template add base --memory "$dir/large.img" --run-dir "$dir/run" >out 2>err || fail "template add"

run 0 verify fits.csv --template base --run-dir "$dir/run"
says "fits.csv fits template base ($dir/large.img, 8 MiB)"
FAULTLINE_RUN_DIR=$dir/run run 0 verify --json --template base fits.csv
json 'j["template"] == "base" and j["memory_size"] == 8388608'
run 1 verify three.hpl --template base --run-dir "$dir/run"
complains 'three.hpl does not fit base: entry 2 of the list is in region 2'
run 0 verify three.hpl --template base --run-dir "$dir/run" --regions 4M,1M,2M
run 4 verify three.hpl --template other --run-dir "$dir/run"
run 0 verify bound.hpl2 --template base --run-dir "$dir/run"
says "bound.hpl2 was recorded on template base"
run 1 verify other.hpl2 --template base --run-dir "$dir/run"

# ---- the server refuses a list of another image ----

# refused COMMAND...: `faultline COMMAND --run-dir …` is refused with the code bad_hot_list and the reason.
refused() {
	local status=0
	"$faultline" "$@" --run-dir "$dir/run" --json >out 2>err || status=$?
	((status == 1)) || fail "$*: exit code $status, expected 1"
	mv err out
	json 'j["error"]["code"] == "bad_hot_list" and "was recorded on another image than" in j["error"]["message"]'
}
refused template add second --memory "$dir/large.img" --hot-list "$dir/other.hpl2"
refused template add second --memory "$dir/small.img" --hot-list "$dir/bound.hpl2"
refused fork create base --id one --prefetch eager --hot-list "$dir/other.hpl2"
"$faultline" template add second --memory "$dir/large.img" --hot-list "$dir/bound.hpl2" --run-dir "$dir/run" >out 2>err ||
	fail "template add with its own list"
"$faultline" fork create second --id two --prefetch eager --hot-list "$dir/bound.hpl2" --run-dir "$dir/run" >out 2>err ||
	fail "fork create with its own list"
"$faultline" fork create second --id three --prefetch eager --run-dir "$dir/run" >out 2>err || fail "fork create with the template's list"

kill -TERM "$server"
status=0
wait "$server" || status=$?
server=
((status == 0)) || fail "the server ended with exit code $status"

echo "ok"
