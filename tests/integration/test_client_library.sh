#!/usr/bin/env bash
# The library as a thing to build against: headers for every C and for C++, what is exported, what it needs.
set -u -o pipefail

shared=${FAULTLINE_LIBRARY:-} archive=${FAULTLINE_STATIC_LIBRARY:-} source=${FAULTLINE_SOURCE:-}
[[ -n $shared && -n $archive && -n $source ]] ||
	{ echo "skipped: FAULTLINE_LIBRARY, FAULTLINE_STATIC_LIBRARY and FAULTLINE_SOURCE do not name what is tested"; exit 77; }

dir=$(mktemp -d)
trap 'rm -rf -- "$dir"' EXIT
failures=0
fail() {
	failures=$((failures + 1))
	echo "FAILED: $1" >&2
}

# Each header alone, as strictly as there is, and all of them.
cat "$source"/include/faultline/*.h >/dev/null || exit 1
for header in "$source"/include/faultline/*.h; do
	echo "#include <faultline/${header##*/}>" >"$dir/${header##*/}.c"
	echo "#include <faultline/${header##*/}>" >>"$dir/all.c"
done
compilers=0
for compiler in gcc clang; do
	command -v "$compiler" >/dev/null || continue
	for file in "$dir"/*.c; do
		for standard in c99 c11 c17; do
			"$compiler" -std=$standard -pedantic -Wall -Wextra -Wstrict-prototypes -Werror -I"$source/include" -fsyntax-only "$file" ||
				fail "$compiler -std=$standard ${file##*/}"
			compilers=$((compilers + 1))
		done
		# gcc without g++ has no C++.
		if "$compiler" -x c++ -fsyntax-only /dev/null 2>/dev/null; then
			for standard in c++11 c++20; do
				"$compiler" -x c++ -std=$standard -pedantic -Wall -Wextra -Werror -I"$source/include" -fsyntax-only "$file" ||
					fail "$compiler -std=$standard ${file##*/}"
				compilers=$((compilers + 100))
			done
		fi
	done
done
[ "$compilers" -ge 100 ] || fail "no compiler was found that knows both C and C++"

# What headers declare is what is exported, by either library, under a version.
grep -ho '\bfaultline_[a-z_]*(' "$source"/include/faultline/*.h | tr -d '(' | sort -u >"$dir/mentioned"
sed -n 's/^FAULTLINE_API .*\b\(faultline_[a-z_]*\)(.*/\1/p' "$source"/include/faultline/*.h | sort -u >"$dir/declared"
[ "$(wc -l <"$dir/declared")" -ge 20 ] || fail "the headers declare next to nothing"
nm -D --defined-only --with-symbol-versions "$shared" | awk '$2 == "T" { sub(/@@FAULTLINE_[01]$/, "", $3); print $3 }' | sort -u >"$dir/exported"
nm -g --defined-only "$archive" | awk 'NF == 3 { print $3 }' | sort -u >"$dir/archived"
diff "$dir/declared" "$dir/exported" || fail "the shared library does not export what the headers declare, under a version"
# A sanitizer adds symbols of its own.
[[ -n ${FAULTLINE_SANITIZE:-} ]] || diff "$dir/declared" "$dir/archived" || fail "the static library's symbols are not the public ones"

soname=$(objdump -p "$shared" | awk '$1 == "SONAME" { print $2 }')
[ "$soname" = libfaultline.so.0 ] || fail "the soname is '$soname'"
if [ -z "${FAULTLINE_SANITIZE:-}" ]; then
	needs=$(objdump -p "$shared" | awk '$1 == "NEEDED" && $2 !~ /^(libc|libz|libpthread|ld-linux.*)\.so/ { print $2 }')
	[ -z "$needs" ] || fail "the shared library needs $needs"
fi

if [ "$failures" -gt 0 ]; then
	echo "$failures failures"
	exit 1
fi
echo "all as expected"
