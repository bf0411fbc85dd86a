#!/usr/bin/env bash
# The example VMM of examples/: against a real server, without one, with prefetch and hot lists, and when the server is lost.
set -u -o pipefail

faultline=${FAULTLINE:-} vmm=${FAULTLINE_EXAMPLE:-}
[[ -n $faultline && -n $vmm ]] || { echo "skipped: FAULTLINE and FAULTLINE_EXAMPLE do not name the programs"; exit 77; }
[ "$(id -u)" -eq 0 ] || { echo "skipped: needs root, for userfaultfd"; exit 77; }

dir=$(mktemp -d /var/tmp/faultline-example.XXXXXX)
export FAULTLINE_RUN_DIR=$dir/run
unset FAULTLINE_SOCKET
server_pid='' failures=0 command='' status=''

cleanup() {
	[ -z "$server_pid" ] || kill -KILL "$server_pid" 2>/dev/null
	rm -rf -- "$dir"
}
trap cleanup EXIT

fail() {
	failures=$((failures + 1))
	printf 'FAILED: %s\n  command: %s\n  status:  %s\n  stdout:  %s\n  stderr:  %s\n' "$1" "$command" "$status" \
		"$(head -c 600 "$dir/out")" "$(head -c 600 "$dir/err")" >&2
}

# run STATUS ARGUMENT...: runs the VMM, and keeps its output in $dir/out and $dir/err.
run() {
	local expected=$1
	shift
	command="vmm $*"
	timeout 120 "$vmm" "$@" >"$dir/out" 2>"$dir/err" </dev/null
	status=$?
	[ "$status" -eq "$expected" ] || fail "expected status $expected"
}

out_has() { grep -qF -- "$1" "$dir/out" || fail "expected '$1' on stdout"; }
err_has() { grep -qF -- "$1" "$dir/err" || fail "expected '$1' on stderr"; }

# The saved memory is the image, page by page, and zeros after its end.
memory_is_right() {
	local size padded
	size=$(stat -c %s "$dir/image")
	padded=$(((size + 4095) / 4096 * 4096))
	[ "$(stat -c %s "$dir/memory")" -eq "$padded" ] || fail "expected $padded bytes of memory"
	cmp -n "$size" "$dir/image" "$dir/memory" || fail "the memory differs from the image"
	tail -c +$((size + 1)) "$dir/memory" | tr -d '\0' | grep -q . && fail "the memory does not end in zeros"
	rm -f -- "$dir/memory"
}

fork_has() {
	"$faultline" fork show "$1" --json | python3 -c '
import json, sys
fork = json.load(sys.stdin)
for pair in sys.argv[1:]:
    key, value = pair.split("=")
    if str(fork[key]) != value:
        sys.exit(f"{key} is {fork[key]} and should be {value}")' "${@:2}" || fail "the fork $1 is not as it should be"
}

start_server() {
	: >"$dir/log"
	"$faultline" serve --run-dir "$FAULTLINE_RUN_DIR" 2>>"$dir/log" &
	server_pid=$!
	# Ends with the server, at the latest.
	grep -q -m 1 "serves in" <(tail -n +1 -f --pid="$server_pid" "$dir/log" 2>/dev/null) && return
	cat "$dir/log" >&2
	echo "FAILED: the server did not start" >&2
	exit 1
}

# An image of pages that differ, with a hole, ending in the middle of a page.
head -c 3000000 /dev/urandom >"$dir/image"
dd if=/dev/zero of="$dir/image" bs=4096 seek=100 count=50 conv=notrunc status=none
sum=$(md5sum <"$dir/image")
pages=733
start_server
"$faultline" template add t --memory "$dir/image" >/dev/null || exit 1

# ---- with a server ----
socket=$("$faultline" fork create t --id plain --record)
FAULTLINE_SOCKET=$socket run 0 "$dir/image" --save "$dir/memory" --record "$dir/touched.csv"
out_has "from the page server"
out_has "guest: $pages pages, sum"
memory_is_right
result=$(grep guest: "$dir/out")
"$faultline" fork wait plain --for gone >/dev/null || fail "the fork did not end"
fork_has plain state=gone copied_pages=$pages faults=$pages
[ "$("$faultline" fork show plain --json | python3 -c 'import json, sys; print(json.load(sys.stdin)["ready_ms"] is None)')" = False ] ||
	fail "the guest's readiness was not told"

# What the VMM saw touched first is what the server was asked for first: with one vCPU, in the same order.
socket=$("$faultline" fork create t --id one --record)
run 0 "$dir/image" --socket "$socket" --vcpus 1 --record "$dir/one.csv"
"$faultline" fork wait one --for gone >/dev/null
"$faultline" fork hot-list one --format csv -o "$dir/server.csv"
recorded=$(($(wc -l <"$dir/server.csv") - 1))
# It ends at readiness, which is told half way, but the server may hear of that a little early or late.
least=$((pages / 2 - 5))
((recorded >= least)) || fail "the recording has $recorded pages"
diff <(head -n $least "$dir/server.csv" | cut -d, -f1,2) <(head -n $least "$dir/one.csv" | cut -d, -f1,2) ||
	fail "the VMM's list has another order than the server's"

# ---- with prefetch of the VMM's own list ----
socket=$("$faultline" fork create t --id fast --prefetch eager --hot-list "$dir/touched.csv")
run 0 "$dir/image" --socket "$socket" --wait-prefetched --save "$dir/memory"
out_has "prefetched"
memory_is_right
"$faultline" fork wait fast --for gone >/dev/null
fork_has fast faults=0 prefetched_pages=$pages prefetch_state=done
[ "$(grep guest: "$dir/out")" = "$result" ] || fail "the guest computed something else"

socket=$("$faultline" fork create t --id none)
run 0 "$dir/image" --socket "$socket" --wait-prefetched --save "$dir/memory"
out_has "not prefetched: "
memory_is_right

# ---- without a server ----
run 0 "$dir/image" --save "$dir/memory"
out_has "mapped from the image"
[ "$(grep guest: "$dir/out")" = "$result" ] || fail "the guest computed something else"
memory_is_right
run 0 "$dir/image" --hot-list "$dir/touched.csv" --wait-prefetched --save "$dir/memory"
out_has "$pages pages read ahead"
memory_is_right
FAULTLINE_SOCKET='' run 0 "$dir/image"
out_has "mapped from the image"

# ---- mistakes ----
run 1 "$dir/image" --socket "$FAULTLINE_RUN_DIR/none.uffd"
err_has "No page server listens"
err_has "faultline serve"
run 1 "$dir/image" --socket "$(printf '/x%.0s' {1..100})"
err_has "shorter"
run 1 "$dir/image" --hot-list "$dir/image"
err_has "no hot list"
printf 'region,offset\n7,0\n' >"$dir/elsewhere.csv"
run 1 "$dir/image" --hot-list "$dir/elsewhere.csv"
err_has "region 7"
head -c 4000000 /dev/urandom >"$dir/longer"
socket=$("$faultline" fork create t --id wrong)
run 1 "$dir/longer" --socket "$socket"
err_has "past the memory image"
run 1 "$dir/nothing"
run 2
run 2 "$dir/image" --vcpus 0

# An image of one page, and one of two: slots that are empty or small.
for bytes in 1 4096 4097; do
	head -c $bytes "$dir/longer" >"$dir/image.small"
	"$faultline" template add small$bytes --memory "$dir/image.small" >/dev/null
	socket=$("$faultline" fork create small$bytes --id small$bytes)
	run 0 "$dir/image.small" --socket "$socket" --vcpus 3 --save "$dir/memory" --record "$dir/small.csv"
	cmp -n $bytes "$dir/image.small" "$dir/memory" || fail "the memory differs from the image"
	"$faultline" template remove small$bytes >/dev/null || fail "the fork of a small image did not end"
	rm -f -- "$dir/memory" "$dir/image.small"
done

# ---- the server is lost while the guest needs it ----
"$faultline" template add slow --memory "$dir/image" --inject delay=1s >/dev/null
socket=$("$faultline" fork create slow --id lost)
command="vmm with a server that is killed"
timeout 120 "$vmm" "$dir/image" --socket "$socket" >"$dir/out" 2>"$dir/err" </dev/null &
vmm_pid=$!
"$faultline" fork wait lost --for connected >/dev/null || fail "the VMM did not connect"
kill -KILL "$server_pid"
wait "$vmm_pid"
status=$?
wait "$server_pid" 2>/dev/null
server_pid=''
[ "$status" -eq 3 ] || fail "expected status 3"
err_has "has gone away"

[ "$(md5sum <"$dir/image")" = "$sum" ] || fail "the image was changed"
if [ "$failures" -gt 0 ]; then
	echo "$failures failures"
	exit 1
fi
echo "all as expected"
