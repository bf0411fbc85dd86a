#!/usr/bin/env bash
# The command line end to end against real servers: what is printed where, exit codes, bad input, start and stop.
set -u -o pipefail

here=$(cd "$(dirname "$0")" && pwd)
faultline=${FAULTLINE:-}
[ -n "$faultline" ] || { echo "skipped: FAULTLINE does not name the faultline binary"; exit 77; }
[ "$(id -u)" -eq 0 ] || { echo "skipped: needs root, for userfaultfd"; exit 77; }

dir=$(mktemp -d /tmp/faultline-cli.XXXXXX)
run_dir=$dir/run
long_dir=$dir/$(printf 'x%.0s' {1..120})
server_pid='' notify_pid=''
failures=0
unset FAULTLINE_RUN_DIR NOTIFY_SOCKET

cleanup() {
	[ -z "$server_pid" ] || kill -KILL "$server_pid" 2>/dev/null
	[ -z "$notify_pid" ] || kill "$notify_pid" 2>/dev/null
	rm -rf "$dir"
}
trap cleanup EXIT

# ---- what is expected ----

fail() {
	failures=$((failures + 1))
	printf 'FAILED: %s\n  command: %s\n  status:  %s\n  stdout:  %s\n  stderr:  %s\n' "$1" "$command" "$status" \
		"$(head -c 600 "$dir/out")" "$(head -c 600 "$dir/err")" >&2
}

# run STATUS ARGUMENT...: runs faultline, and keeps its output in $dir/out and $dir/err.
run() {
	local expected=$1
	shift
	command="faultline $*"
	"$faultline" "$@" >"$dir/out" 2>"$dir/err" </dev/null
	status=$?
	[ "$status" -eq "$expected" ] || fail "expected status $expected"
	# Whatever went wrong, somebody is told; and what went well is no matter for stderr.
	if [ "$expected" -eq 0 ]; then
		[ ! -s "$dir/err" ] || fail "expected nothing on stderr"
	else
		[ -s "$dir/err" ] || fail "expected a message on stderr"
		[ ! -s "$dir/out" ] || fail "expected nothing on stdout"
	fi
}

out_has() { grep -qF -- "$1" "$dir/out" || fail "expected '$1' on stdout"; }
err_has() { grep -qF -- "$1" "$dir/err" || fail "expected '$1' on stderr"; }
out_is() { [ "$(cat "$dir/out")" = "$1" ] || fail "expected '$1' on stdout"; }
err_is() { [ "$(cat "$dir/err")" = "$1" ] || fail "expected '$1' on stderr"; }

check() {
	command=$2 status=-
	: >"$dir/out"
	: >"$dir/err"
	eval "$2" || fail "$1"
}

# json FILE EXPRESSION: true if the Python expression over the parsed file, `j`, is.
json() {
	/usr/bin/python3 -c 'import json, sys; j = json.load(open(sys.argv[1])); sys.exit(not eval(sys.argv[2]))' "$1" "$2"
}
out_json() { json "$dir/out" "$1" || fail "expected JSON with $1 on stdout"; }
err_code() { json "$dir/err" "list(j) == ['error'] and j['error']['code'] == '$1' and j['error']['message']" ||
	fail "expected the error $1 as JSON on stderr"; }

# ---- servers ----

# Prints each line of what comes on the notification socket, as systemd would have it.
mkfifo "$dir/notices"
/usr/bin/python3 -u -c '
import socket, sys
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.bind(sys.argv[1])
print("bound")
while True:
    print(s.recv(4096).decode())' "$dir/notify.sock" >"$dir/notices" &
notify_pid=$!
exec {notices}<"$dir/notices"
read -r -t 60 -u "$notices" line && [ "$line" = bound ] || exit 1

await_notice() {
	local line
	while read -r -t 60 -u "$notices" line; do
		[ "$line" != "$1" ] || return 0
	done
	echo "no $1 on the notification socket" >&2
	exit 1
}

start_server() {
	NOTIFY_SOCKET=$dir/notify.sock "$faultline" serve --run-dir "$run_dir" "$@" 2>>"$dir/log" &
	server_pid=$!
	await_notice READY=1
}

# stop_server SIGNAL: it must end with status 0.
stop_server() {
	kill "-$1" "$server_pid"
	await_notice STOPPING=1
	wait "$server_pid"
	status=$?
	server_pid=
	command="serve, after SIG$1"
	cp "$dir/log" "$dir/err"
	[ "$status" -eq 0 ] || fail "expected status 0"
}

# ---- without a server ----

test_help() {
	run 2
	err_has "a command is missing; see 'faultline --help'"
	run 0 --version
	check "a version" "'$faultline' --version | grep -Eq '^faultline [0-9]+\.[0-9]+\.[0-9]+$'"
	for arguments in --help -h help; do
		run 0 "$arguments"
		for word in serve template fork hotlist "Exit status:" FAULTLINE_RUN_DIR; do out_has "$word"; done
	done
	run 0 fork --help
	for word in create list show wait ready prefetch remove hot-list --run-dir --json; do out_has "$word"; done
	run 0 template --help
	for word in add list show remove; do out_has "$word"; done
	run 0 fork create --help
	for word in "faultline fork create TEMPLATE" --id --record --prefetch --hot-list --dir --uid --run-dir --json --help; do
		out_has "$word"
	done
	run 0 fork --help create
	out_has "faultline fork create TEMPLATE"
	run 0 fork hot-list -h
	out_has "-o, --output FILE"
	run 0 serve --help
	for word in --run-dir --cpus --observe --observe-ring --log-format --log-level; do out_has "$word"; done
	# As the value of an option it is none.
	run 3 fork create base --id --help --run-dir "$dir/none"
}

test_slips() {
	run 2 forrk
	err_is "faultline: there is no command 'forrk': did you mean 'fork'? See 'faultline --help'"
	run 2 --verison
	err_has "option '--verison'"
	run 2 nonsense
	err_is "faultline: there is no command 'nonsense'; see 'faultline --help'"
	run 2 fork
	err_has "fork needs an action; see 'faultline fork --help'"
	run 2 fork --json
	err_code usage
	run 2 fork creat base
	err_has "did you mean 'create'"
	run 2 fork zzz
	err_has "fork has no action 'zzz'; see 'faultline fork --help'"
	run 2 fork create base --recrod
	err_has "did you mean '--record'"
	err_has "see 'faultline fork create --help'"
	run 2 fork create base -x
	err_has "there is no option '-x' here"
	run 2 fork list --record
	err_has "there is no option '--record' here"
	run 2 serve --jsn
	run 2 serve now
	err_has "'now' is one word too many"
}

test_usage() {
	run 2 fork create
	err_has "expected TEMPLATE"
	run 2 fork create a b
	err_has "'b' is one word too many"
	run 2 fork prefetch a
	err_has "expected ID LIST"
	run 2 fork create base --id
	err_has "'--id' needs a value (ID)"
	run 2 fork create base --record=yes
	err_has "'--record' takes no value"
	for uid in -1 "" x 1x 4294967295 99999999999999999999; do run 2 fork create base "--uid=$uid"; done
	run 2 fork wait a
	err_has "--for MILESTONE is missing"
	run 2 fork wait a --for over
	err_has "not 'over'"
	for timeout in -1 "" x 1s 1e3 1.2.3 inf 86401; do run 2 fork wait a --for gone "--timeout=$timeout"; done
	run 2 fork hot-list a
	err_has "--output FILE is missing"
	run 2 fork hot-list a -o x --from kernels
	run 2 fork hot-list a -o x --format 'hpl1&from=x'
	run 2 template add base
	err_has "--memory FILE is missing"
	run 2 template add base --json
	err_code usage
	run 2 serve --log-format xml --run-dir "$dir/never"
	run 2 serve --log-level loud --run-dir "$dir/never"
	check "no run directory is made for a bad command line" "[ ! -e '$dir/never' ]"
	run 1 template show "" --run-dir "$dir/none"
	err_has "a name is empty"
}

test_no_server() {
	local none=$dir/none
	local message="no faultline server answers at $none/control.sock: start one with 'faultline serve --run-dir $none', or name another directory with --run-dir"
	run 3 fork list --run-dir "$none"
	err_is "faultline: $message"
	run 3 template list --run-dir "$none" --json
	err_code no_server
	err_has "$message"
	FAULTLINE_RUN_DIR=$none run 3 fork list
	err_is "faultline: $message"
	FAULTLINE_RUN_DIR=$dir/other run 3 fork list --run-dir "$none"
	err_is "faultline: $message"
	if [ ! -e /run/faultline ]; then
		run 3 fork list
		err_has "at /run/faultline/control.sock"
	fi
	# A file that nobody listens on, as a server that was killed leaves it.
	mkdir "$none"
	/usr/bin/python3 -c 'import socket, sys; socket.socket(socket.AF_UNIX).bind(sys.argv[1])' "$none/control.sock"
	run 3 fork list --run-dir "$none"
	run 1 fork list --run-dir "$long_dir"
	err_has "too long"
}

test_bad_servers() {
	: >"$dir/file"
	run 1 serve --run-dir "$dir/file"
	run 1 serve --run-dir "$dir/no/such/dir"
	run 1 serve --run-dir "$dir/run" --cpus 99999
	run 1 serve --run-dir "$dir/run" --cpus ""
	run 1 serve --run-dir "$long_dir"
	rm -rf "$long_dir"
	mkdir -p "$dir/blocked/control.sock"
	run 1 serve --run-dir "$dir/blocked"
	err_has "is no socket"
}

# ---- with one ----

test_run_dir() {
	check "mode 0700" "[ \"\$(stat -c %a '$run_dir')\" = 700 ]"
	check "mode 0600" "[ \"\$(stat -c '%a %F' '$run_dir/control.sock')\" = '600 socket' ]"
	check "what the log says first" \
		"head -3 '$dir/log' | grep -q 'serves in $run_dir: API at $run_dir/control.sock, [0-9]* pager'"
	run 1 serve --run-dir "$run_dir"
	err_has "$server_pid"
	run 1 serve --run-dir "$dir/./run/../run"
	run 0 fork list --run-dir "$run_dir"
}

test_options_anywhere() {
	for words in "fork list --run-dir $run_dir --json" "fork --run-dir $run_dir list --json" \
		"fork --json --run-dir=$run_dir list" "fork --json list --run-dir $run_dir"; do
		# shellcheck disable=SC2086
		run 0 $words
		out_json "j == {'forks': []}"
	done
}

test_templates() {
	export FAULTLINE_RUN_DIR=$run_dir
	run 0 template list
	run 0 template add base --memory image.mem --state ./state.vm
	out_is "added template base (1 MiB)"
	run 0 template add listed --json --hot-list "$dir/none.hpl" --memory "$dir/image.mem"
	out_json "j['name'] == 'listed' and j['memory_size'] == 1048576 and j['hot_list'] == '$dir/none.hpl'"
	run 0 template list
	check "two templates under a heading" "[ \"\$('$faultline' template list | wc -l)\" -eq 3 ]"
	run 0 template list --json
	out_json "[t['name'] for t in j['templates']] == ['base', 'listed']"
	run 0 template show base
	out_has "$dir/image.mem (1 MiB)"
	run 0 template show base --json
	out_json "j['memory'] == '$dir/image.mem' and j['state'] == '$dir/state.vm' and j['inject'] is None"
	run 0 template remove listed
	run 4 template remove listed
	run 4 template show listed
	err_has "no template 'listed'"
	run 4 template show listed --json
	err_code template_unknown
	run 4 template show ..
	run 4 template show 'a/b?c#d%'
	run 1 template add base --memory image.mem
	run 1 template add new --memory missing.mem --json
	err_code bad_memory
	run 1 template add 'bad name' --memory image.mem
	run 1 template add new --memory image.mem --inject nonsense --json
	err_code bad_inject
	run 1 template add new --memory $'not-utf8-\xff'
	err_has "UTF-8"
	run 1 template add new --memory $'not-utf8-\xff' --json
}

test_forks() {
	run 0 fork create base --id a
	out_is "$run_dir/a.uffd"
	run 0 fork create base --id b --dir . --uid 0 --json --record --prefetch off
	out_json "j['id'] == 'b' and j['socket'] == '$dir/b.uffd' and j['record'] and j['prefetch'] == 'off'"
	run 0 fork create base
	check "a socket" "[ -S \"\$('$faultline' fork list --json | /usr/bin/python3 -c '
import json, sys; print(json.load(sys.stdin)[\"forks\"][2][\"socket\"])')\" ]"
	run 1 fork create base --id a --json
	err_code fork_exists
	run 4 fork create none
	run 2 fork create base --prefetch trickle
	err_has "'eager'"
	run 1 fork create base --prefetch eager --json
	err_code bad_prefetch
	run 1 fork create base --hot-list image.mem --json
	err_code bad_hot_list
	run 0 fork list
	out_has "TEMPLATE"
	run 0 fork show a
	out_has "waiting"
	run 4 fork show none
	run 4 fork ready none --json
	err_code fork_unknown
	run 1 fork ready a --json
	err_code not_connected
	run 1 fork prefetch a list.hpl
	run 5 fork wait a --for connected --timeout 0
	err_has "not connected"
	run 5 fork wait a --for gone --timeout 0.05 --json
	err_code timeout
	run 4 fork wait none --for connected
	run 1 fork hot-list a -o "$dir/a.hpl" --json
	err_code not_recorded
	check "no list of it" "[ ! -e '$dir/a.hpl' ]"
	run 0 fork remove a
	run 0 fork remove a
	run 0 fork remove -- -odd-
	run 0 fork remove b --force --json
	out_is ""
	check "stdout that is full is noticed" "! '$faultline' fork list >/dev/full 2>/dev/null"
}

# The raw bytes of the API and what --json prints are the same.
test_json_is_the_api() {
	for pair in "fork list:/v1/forks" "template list:/v1/templates" "template show base:/v1/templates/base"; do
		# shellcheck disable=SC2086
		run 0 ${pair%%:*} --json
		check "as the API" "curl -sS --unix-socket '$run_dir/control.sock' 'http://localhost${pair#*:}' | cmp - <('$faultline' ${pair%%:*} --json)"
	done
}

ask_vmm() {
	echo "$*" >&"${vmm[1]}"
	read -r -t 60 -u "${vmm[0]}" answer || fail "the VMM does not answer"
}

test_life_of_a_fork() {
	local socket
	socket=$("$faultline" fork create base --id rec --record)
	coproc vmm { exec "$here/fake_vmm.py" "$socket" 1048576; }
	# shellcheck disable=SC2154 # the shell sets it
	local pid=$vmm_PID
	read -r -t 60 -u "${vmm[0]}" answer
	run 0 fork wait rec --for connected
	out_is ""
	run 0 fork wait rec --for connected --json
	out_json "j['state'] == 'connected' and j['pid'] == $pid"
	ask_vmm read 8192
	check "the template's bytes" "[ '$answer' = 0300000000000000 ]"
	ask_vmm read 4096
	run 0 fork ready rec
	run 0 fork wait rec --for ready --timeout 5
	run 0 fork show rec
	out_has "$pid"
	run 0 fork show rec --json
	out_json "j['recorded_pages'] == 2 and j['faults'] == 2 and j['copied_pages'] == 2 and j['state'] == 'ready'"
	run 0 fork hot-list rec -o list.hpl --from loop --format hpl1
	out_is ""
	check "HPL1" "cmp '$dir/list.hpl' <(printf 'HPL1\x02\x00\x80\x20\x00\x80\x40')"
	run 0 fork hot-list rec -o - --format csv --from loop
	out_has "0,8192,"
	run 0 fork hot-list rec --format json -o "$dir/list.json" --from loop
	# Which recording is the best one is worth a word.
	"$faultline" fork hot-list rec -o "$dir/best.hpl" >"$dir/out" 2>"$dir/err"
	check "HPL2 by default" "[ \"\$(head -c 4 '$dir/best.hpl')\" = HPL2 ]"
	"$faultline" fork hot-list rec -o "$dir/best.hpl" >"$dir/out" 2>"$dir/err"
	out_is ""
	err_has "recording: "
	run 0 fork hot-list rec -o "$dir/best.hpl" --json
	out_json "j['from'] in ('kernel', 'loop') and j['why']"
	check "JSON" "json '$dir/list.json' 'True'"
	run 1 fork hot-list rec -o /no/such/dir/list.hpl --json
	run 0 fork prefetch rec list.hpl
	out_has "0 pages prefetched in"
	out_has "2 were there already"
	run 0 fork prefetch rec list.hpl --json
	out_json "j['prefetch_present_pages'] >= 2"
	run 1 fork prefetch rec image.mem --json
	err_code bad_hot_list
	run 1 fork remove rec
	err_has "--force"
	run 1 template remove base --json
	err_code template_in_use
	run 0 fork remove rec --force
	wait "$pid" 2>/dev/null
	check "the VMM was killed" "[ $? -eq 137 ]"
}

test_prefetched_fork() {
	local socket
	socket=$("$faultline" fork create base --id pre --hot-list list.hpl)
	coproc vmm { exec "$here/fake_vmm.py" "$socket" 1048576; }
	read -r -t 60 -u "${vmm[0]}" answer
	run 0 fork wait pre --for prefetched
	out_is "" # a wait says nothing
	run 0 fork show pre --json
	out_json "j['prefetched_pages'] == 2 and j['prefetch'] == 'eager' and j['prefetch_ms'] > 0"
	local pid=$vmm_PID
	echo quit >&"${vmm[1]}"
	wait "$pid"
	run 0 fork wait pre --for gone
	run 1 fork wait pre --for ready --json
	err_code fork_gone
	run 0 fork remove pre
}

test_stop() {
	run 0 fork create base --id left
	stop_server TERM
	check "its sockets are gone" "[ -z \"\$(find '$run_dir' -type s)\" ]"
	run 3 fork list
	check "text log" "! grep -vE '^[0-9T:.-]+Z (info|warning|error|debug) ' '$dir/log'"

	# Again in the same directory, with all of the log as JSON, and stopped by the other signal.
	: >"$dir/log"
	start_server --log-format json --log-level debug
	run 0 template show base
	run 0 fork create base --id $'c'
	stop_server INT
	check "each line of the log is JSON" "/usr/bin/python3 -c '
import json, sys
lines = [json.loads(line) for line in sys.stdin]
assert len(lines) >= 3
assert all(set(line) == {\"time\", \"level\", \"object\", \"message\"} for line in lines), lines' <'$dir/log'"
}

test_kill_and_restart() {
	: >"$dir/log"
	start_server --log-level error
	kill -KILL "$server_pid"
	wait "$server_pid" 2>/dev/null
	check "the socket is left over" "[ -S '$run_dir/control.sock' ]"
	run 3 fork list
	start_server --log-level error
	run 0 fork list
	stop_server TERM
	check "nothing to complain about" "[ ! -s '$dir/log' ]"
}

cd "$dir" || exit 1
/usr/bin/python3 -c '
import struct, sys
with open(sys.argv[1], "wb") as f:
    for page in range(256):
        f.write(struct.pack("<Q", page + 1).ljust(4096, b"\0"))' image.mem
: >state.vm

test_help
test_slips
test_usage
test_no_server
test_bad_servers
start_server
test_run_dir
test_options_anywhere
test_templates
test_forks
test_json_is_the_api
test_life_of_a_fork
test_prefetched_fork
test_stop
test_kill_and_restart

[ "$failures" -eq 0 ] || { echo "$failures expectations failed"; cat "$dir/log"; exit 1; }
echo "the command line behaves"
