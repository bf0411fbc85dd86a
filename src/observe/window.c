#include "observe/window.h"

#include <errno.h>
#include <stdlib.h>

/* Rates are counted in steps of this. */
#define STEP_NS (100ull * 1000 * 1000)
/* Quiet: fewer touches in a step than this part of the most in any. */
#define QUIET_PART 50
/* A fork that waits for its first request is quiet too: nothing settles before a step had this part of the most in any. */
#define LOUD_PART 4

/* Touches in one step of the time in which the fork got on. */
struct step {
	uint64_t number;
	size_t touches;
	uint64_t last_ns; /* the last one's time */
};

struct moment {
	uint64_t progress_ns, touch_ns;
};

static int compare_moments(const void *a, const void *b)
{
	const struct moment *x = a, *y = b;

	if (x->progress_ns != y->progress_ns)
		return x->progress_ns < y->progress_ns ? -1 : 1;
	return (x->touch_ns > y->touch_ns) - (x->touch_ns < y->touch_ns);
}

/* The steps that had touches, up to UNTIL. RET_END: the step in which the recording ends. */
static int count_steps(const struct recording *recording, const struct clocks *clocks, uint64_t until,
		       struct step **ret, size_t *ret_count, uint64_t *ret_end)
{
	_cleanup_free_ struct moment *moments = calloc(recording->touch_count + 1, sizeof *moments);
	struct step *steps = calloc(recording->touch_count + 1, sizeof *steps);
	uint64_t last_run = 0, last_progress = 0;
	size_t count = 0, step_count = 0;

	if (!moments || !steps) {
		free(steps);
		return -ENOMEM;
	}
	for (size_t i = 0; i < recording->touch_count; i++) {
		const struct touch *touch = &recording->touches[i];

		if (touch->touch_ns > until)
			continue;
		moments[count++] = (struct moment){ clocks->progress_ns[i], touch->touch_ns };
		last_run = touch->run_ns > last_run ? touch->run_ns : last_run;
		last_progress = clocks->progress_ns[i] > last_progress ? clocks->progress_ns[i] : last_progress;
	}
	qsort(moments, count, sizeof *moments, compare_moments);
	for (size_t i = 0; i < count; i++) {
		uint64_t number = moments[i].progress_ns / STEP_NS;

		if (!step_count || steps[step_count - 1].number != number)
			steps[step_count++] = (struct step){ .number = number };
		steps[step_count - 1].touches++;
		if (moments[i].touch_ns > steps[step_count - 1].last_ns)
			steps[step_count - 1].last_ns = moments[i].touch_ns;
	}
	/* Who waits for a page isn't quiet: what follows the last touch counts from its end. */
	*ret_end = (last_progress + (until > last_run ? until - last_run : 0)) / STEP_NS;
	*ret = steps;
	*ret_count = step_count;
	return 0;
}

/* Whether the touches settled before step END, and the time of the last one before. */
static bool find_settled(const struct step *steps, size_t count, uint64_t end, uint64_t settle_ns, uint64_t *ret)
{
	uint64_t quiet_steps = settle_ns / STEP_NS + !!(settle_ns % STEP_NS);
	const struct step *loud = NULL; /* the last one that wasn't quiet */
	bool started = false;
	size_t most = 0;

	for (size_t i = 0; i < count; i++)
		most = steps[i].touches > most ? steps[i].touches : most;
	for (size_t i = 0; i < count; i++) {
		const struct step *step = &steps[i];

		if (step->touches * QUIET_PART < most)
			continue;
		if (started && step->number - loud->number > quiet_steps)
			break;
		started = started || step->touches * LOUD_PART >= most;
		loud = step;
	}
	if (!started || end - loud->number <= quiet_steps)
		return false;
	*ret = loud->last_ns;
	return true;
}

int window_find(const struct recording *recording, const struct clocks *clocks, const struct window_rules *rules,
		struct window *ret)
{
	uint64_t timeout = rules->timeout_ns ?: WINDOW_TIMEOUT_NS, settle = rules->settle_ns ?: WINDOW_SETTLE_NS;
	uint64_t until = rules->now_ns < timeout ? rules->now_ns : timeout, settled, end;
	_cleanup_free_ struct step *steps = NULL;
	size_t count;

	if (rules->ready_ns && rules->ready_ns <= timeout) {
		*ret = (struct window){ rules->ready_ns, HOT_WINDOW_READY };
		return 0;
	}
	if (count_steps(recording, clocks, until, &steps, &count, &end) < 0)
		return -ENOMEM;
	if (settle != UINT64_MAX && find_settled(steps, count, end, settle, &settled))
		*ret = (struct window){ settled, HOT_WINDOW_SETTLED };
	else if (rules->now_ns >= timeout)
		*ret = (struct window){ timeout, HOT_WINDOW_TIMEOUT };
	else
		*ret = (struct window){ rules->now_ns, rules->gone ? HOT_WINDOW_GONE : HOT_WINDOW_UNKNOWN };
	return 0;
}
