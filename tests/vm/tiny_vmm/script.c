#include "script.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"

const char script_help[] = "A script has a line for each thing that a vCPU does, in each vCPU's own order:\n"
			   "  VCPU r PAGE          read the page (of the image, counted from 0)\n"
			   "  VCPU w PAGE          write to it\n"
			   "  VCPU x PAGE          run what is in it: its first byte must be 0xc3 (ret)\n"
			   "  VCPU at NS           go on no sooner than this many nanoseconds after the start\n"
			   "  VCPU pause NS        do nothing for so long, without sleeping\n"
			   "  VCPU work N          compute, N rounds: in whatever time it gets a processor for so long\n"
			   "  VCPU spin OTHER N    go on when vCPU OTHER has done N touches; until then, spin\n"
			   "  VCPU halt OTHER N    the same, halted; OTHER sends an interrupt then (--irqchip)\n"
			   "  VCPU ready           tell the server that the guest is ready\n"
			   "  VCPU hold            print {\"event\":\"hold\"} and go on when a line comes on stdin\n"
			   "Empty lines, and what follows a '#', don't count.\n";

/* Far more than a guest of 4 GiB has pages; what it needs of memory is small. */
#define ACTIONS_MAX (4u << 20)
#define WORK_MAX    (1000ull * 1000 * 1000 * 1000)

struct reader {
	struct script *script;
	const char *name;
	unsigned line;
};

__attribute__((format(printf, 2, 3))) static int refuse(const struct reader *reader, const char *format, ...)
{
	va_list args;

	fprintf(stderr, "faultline-tiny-vmm: %s:%u: ", reader->name, reader->line);
	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fputs(" (--help has the language)\n", stderr);
	return -1;
}

static int append(struct program *program, const struct action *action)
{
	if (program->count == ACTIONS_MAX)
		return -ENOSPC;
	if (program->count == program->capacity) {
		size_t capacity = program->capacity ? 2 * program->capacity : 256;
		struct action *actions = realloc(program->actions, capacity * sizeof *actions);

		if (!actions)
			return -ENOMEM;
		program->actions = actions;
		program->capacity = capacity;
	}
	program->actions[program->count++] = *action;
	program->touches += action->kind == ACTION_TOUCH;
	return 0;
}

static bool parse_number(const char *word, uint64_t max, uint64_t *ret)
{
	char *end;

	if (!word || *word < '0' || *word > '9')
		return false;
	errno = 0;
	unsigned long long value = strtoull(word, &end, 0);
	if (errno || *end || value > max)
		return false;
	*ret = value;
	return true;
}

static const struct verb {
	const char *name;
	enum action_kind kind;
	enum touch_kind touch;
	bool has_other, has_value;
	uint64_t max;
} verbs[] = {
	{ "r", ACTION_TOUCH, TOUCH_READ, false, true, UINT32_MAX },
	{ "w", ACTION_TOUCH, TOUCH_WRITE, false, true, UINT32_MAX },
	{ "x", ACTION_TOUCH, TOUCH_FETCH, false, true, UINT32_MAX },
	{ "at", ACTION_AT, 0, false, true, 1000ull * 1000 * 1000 * 1000 },
	{ "pause", ACTION_PAUSE, 0, false, true, 1000ull * 1000 * 1000 * 1000 },
	{ "work", ACTION_WORK, 0, false, true, WORK_MAX },
	{ "spin", ACTION_SPIN, 0, true, true, ACTIONS_MAX },
	{ "halt", ACTION_HALT, 0, true, true, ACTIONS_MAX },
	{ "ready", ACTION_READY, 0, false, false, 0 },
	{ "hold", ACTION_HOLD, 0, false, false, 0 },
};

static const struct verb *find_verb(const char *name)
{
	for (size_t i = 0; name && i < sizeof verbs / sizeof *verbs; i++)
		if (strcmp(verbs[i].name, name) == 0)
			return &verbs[i];
	return NULL;
}

static int read_line(struct reader *reader, char *text)
{
	struct script *script = reader->script;
	char *rest = NULL;
	uint64_t vcpu, other = 0, value = 0;

	text[strcspn(text, "#")] = '\0';
	const char *word = strtok_r(text, " \t\r\n", &rest);
	if (!word)
		return 0;
	if (!parse_number(word, VCPUS_MAX - 1, &vcpu))
		return refuse(reader, "'%s' is no vCPU: they are counted from 0 to %d", word, VCPUS_MAX - 1);

	word = strtok_r(NULL, " \t\r\n", &rest);
	const struct verb *verb = find_verb(word);
	if (!verb)
		return refuse(reader, "a vCPU can't '%s'", word ? word : "");
	if (verb->has_other) {
		word = strtok_r(NULL, " \t\r\n", &rest);
		if (!parse_number(word, VCPUS_MAX - 1, &other) || other == vcpu)
			return refuse(reader, "'%s' waits for another vCPU, and '%s' is none", verb->name,
				      word ? word : "");
	}
	if (verb->has_value) {
		word = strtok_r(NULL, " \t\r\n", &rest);
		if (!parse_number(word, verb->max, &value))
			return refuse(reader, "'%s' wants a number up to %" PRIu64 ", and '%s' is none", verb->name,
				      verb->max, word ? word : "");
	}
	word = strtok_r(NULL, " \t\r\n", &rest);
	if (word)
		return refuse(reader, "'%s' is one word too many", word);

	struct action action = { value, verb->kind, verb->touch, (uint8_t)other };
	if (append(&script->vcpus[vcpu], &action) < 0)
		return refuse(reader, "no memory for more than %zu actions of a vCPU", script->vcpus[vcpu].count);
	if (vcpu >= script->vcpu_count)
		script->vcpu_count = (unsigned)vcpu + 1;
	if (verb->kind == ACTION_TOUCH && value >= script->page_end)
		script->page_end = value + 1;
	script->halts |= verb->kind == ACTION_HALT;
	return 0;
}

/* Who halts for this vCPU's Nth touch has to be woken after it. */
static int add_wakes_of(struct script *script, unsigned vcpu, const unsigned char *wanted)
{
	_cleanup_free_ struct action *old = script->vcpus[vcpu].actions;
	size_t count = script->vcpus[vcpu].count, touches = 0;

	script->vcpus[vcpu] = (struct program){ 0 };
	for (size_t i = 0; i < count; i++) {
		if (append(&script->vcpus[vcpu], &old[i]) < 0)
			return -1;
		if (old[i].kind != ACTION_TOUCH)
			continue;
		touches++;
		for (unsigned other = 0; other < script->vcpu_count; other++) {
			struct action wake = { .kind = ACTION_WAKE, .other = (uint8_t)other };

			if ((wanted[touches] >> other & 1) && append(&script->vcpus[vcpu], &wake) < 0)
				return -1;
		}
	}
	return 0;
}

static int check_waits(const struct script *script, const char *name)
{
	for (unsigned i = 0; i < script->vcpu_count; i++) {
		const struct program *program = &script->vcpus[i];

		for (size_t k = 0; k < program->count; k++) {
			const struct action *action = &program->actions[k];

			if (action->kind != ACTION_SPIN && action->kind != ACTION_HALT)
				continue;
			if (action->value > script->vcpus[action->other].touches) {
				fprintf(stderr,
					"faultline-tiny-vmm: %s: vCPU %u waits for touch %" PRIu64
					" of vCPU %u, which has only %zu\n",
					name, i, action->value, action->other, script->vcpus[action->other].touches);
				return -1;
			}
		}
	}
	return 0;
}

static int add_wakes(struct script *script)
{
	for (unsigned vcpu = 0; vcpu < script->vcpu_count; vcpu++) {
		/* A bit for each other vCPU, by number of touches done. */
		_cleanup_free_ unsigned char *wanted = calloc(script->vcpus[vcpu].touches + 1, 1);

		if (!wanted)
			return -1;
		for (unsigned i = 0; i < script->vcpu_count; i++)
			for (size_t k = 0; k < script->vcpus[i].count; k++) {
				const struct action *action = &script->vcpus[i].actions[k];

				if (action->kind == ACTION_HALT && action->other == vcpu)
					wanted[action->value] |= (unsigned char)(1u << i);
			}
		if (add_wakes_of(script, vcpu, wanted) < 0)
			return -1;
	}
	return 0;
}

int script_read(struct script *script, FILE *file, const char *name)
{
	struct reader reader = { script, name, 0 };
	_cleanup_free_ char *text = NULL;
	size_t size = 0;

	*script = (struct script){ 0 };
	while (getline(&text, &size, file) >= 0) {
		reader.line++;
		if (read_line(&reader, text) < 0)
			return -1;
	}
	if (ferror(file)) {
		fprintf(stderr, "faultline-tiny-vmm: reading %s: %s\n", name, strerror(errno));
		return -1;
	}
	if (script->page_end == 0) {
		fprintf(stderr, "faultline-tiny-vmm: %s: no vCPU touches a page (--help has the language)\n", name);
		return -1;
	}
	if (check_waits(script, name) < 0)
		return -1;
	if (add_wakes(script) < 0) {
		fprintf(stderr, "faultline-tiny-vmm: no memory for the script\n");
		return -1;
	}
	return 0;
}

void script_clear(struct script *script)
{
	for (unsigned i = 0; i < VCPUS_MAX; i++)
		free(script->vcpus[i].actions);
	*script = (struct script){ 0 };
}
