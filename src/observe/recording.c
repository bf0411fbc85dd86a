#include "observe/recording.h"

#include <errno.h>
#include <stdlib.h>

/* Makes room for one more of SIZE bytes. The recording is marked full where there is none. */
static int reserve(struct recording *recording, void **items, size_t size, size_t count, size_t *capacity)
{
	if (count >= RECORDING_MAX) {
		recording->full = true;
		return -ENOSPC;
	}
	if (count < *capacity)
		return 0;
	size_t grown = *capacity ? 2 * *capacity : 1024;
	void *more = reallocarray(*items, grown, size);
	if (!more) {
		recording->full = true;
		return -ENOMEM;
	}
	*items = more;
	*capacity = grown;
	return 0;
}

/* A and B are touches of one page, by whoever told of it. Which one is kept, with what the other one knows of it. */
static struct touch join(const struct touch *a, const struct touch *b)
{
	const struct touch *first = b->touch_ns < a->touch_ns ? b : a, *second = first == a ? b : a;
	struct touch joined = *first;

	if (first->present && !second->present && second->touch_ns - first->touch_ns <= TOUCH_FOLLOWED_NS) {
		joined.present = false;
		joined.run_ns = second->run_ns;
	}
	/* The demand fault may be a kernel thread's, and then it does not know what kind of access it was either. */
	if (joined.vcpu == VCPU_UNKNOWN && !joined.present && second->touch_ns - first->touch_ns <= TOUCH_FOLLOWED_NS)
		joined.vcpu = second->vcpu;
	if (joined.kind == TOUCH_UNKNOWN)
		joined.kind = second->kind;
	return joined;
}

int recording_add_touch(struct recording *recording, const struct touch *touch)
{
	uint32_t number = page_index_find(&recording->seen, touch->region, touch->offset);

	if (number != PAGE_INDEX_NONE) {
		recording->touches[number] = join(&recording->touches[number], touch);
		return 0;
	}
	void *touches = recording->touches;
	int r = reserve(recording, &touches, sizeof *touch, recording->touch_count, &recording->touch_capacity);
	recording->touches = touches;
	if (r < 0)
		return r;
	r = page_index_add(&recording->seen, touch->region, touch->offset, &number);
	if (r < 0) {
		recording->full = true;
		return r;
	}
	recording->touches[recording->touch_count++] = *touch;
	return 0;
}

int recording_add_sleep(struct recording *recording, const struct vcpu_sleep *sleep)
{
	void *sleeps = recording->sleeps;
	int r = reserve(recording, &sleeps, sizeof *sleep, recording->sleep_count, &recording->sleep_capacity);

	recording->sleeps = sleeps;
	if (r < 0)
		return r;
	recording->sleeps[recording->sleep_count++] = *sleep;
	return 0;
}

void recording_clear(struct recording *recording)
{
	free(recording->touches);
	free(recording->sleeps);
	page_index_clear(&recording->seen);
	*recording = (struct recording){ .touches = NULL };
}
