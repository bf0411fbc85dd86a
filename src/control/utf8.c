/* UTF-8 as RFC 3629 has it: see utf8.h. */
#include "control/utf8.h"

#include <stddef.h>
#include <string.h>

#include "base/cleanup.h"

/* Length of the sequence at S: 1 to 4, or 0 where it isn't one (neither overlong, nor a surrogate, nor over U+10FFFF). */
static size_t sequence_length(const unsigned char *s)
{
	size_t n = 0;

	if (s[0] < 0x80)
		return 1;
	if (s[0] >= 0xc2 && s[0] <= 0xdf)
		n = 2;
	else if (s[0] >= 0xe0 && s[0] <= 0xef)
		n = 3;
	else if (s[0] >= 0xf0 && s[0] <= 0xf4)
		n = 4;
	for (size_t i = 1; i < n; i++)
		if ((s[i] & 0xc0) != 0x80)
			return 0;
	if ((s[0] == 0xe0 && s[1] < 0xa0) || (s[0] == 0xed && s[1] > 0x9f) || (s[0] == 0xf0 && s[1] < 0x90) ||
	    (s[0] == 0xf4 && s[1] > 0x8f))
		return 0;
	return n;
}

bool utf8_valid(const char *text)
{
	for (const unsigned char *p = (const unsigned char *)text; *p;) {
		size_t n = sequence_length(p);

		if (!n)
			return false;
		p += n;
	}
	return true;
}

json_t *utf8_json(const char *text)
{
	if (!text)
		return json_null();
	if (utf8_valid(text))
		return json_string(text);

	_cleanup_free_ char *copy = strdup(text);

	if (!copy)
		return NULL;
	for (unsigned char *p = (unsigned char *)copy; *p;) {
		size_t n = sequence_length(p);

		if (!n)
			*p = '?';
		p += n ?: 1;
	}
	return json_string(copy);
}
