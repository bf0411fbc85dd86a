/* Whether vCPUs touch on while another one is stalled: see clock.h. */
#include <errno.h>
#include <stdlib.h>

#include "observe/clock.h"

/*
 * A vCPU that waits by spinning gets that far after the other one's stall began, or after its own ended: to where it needs what the other was to do.
 * Shorter stalls (pages from memory) say nothing; neither clock is far from the other then.
 */
#define HEAD_START_NS 100000u
/* A vCPU with fewer touches at other times has no rate. */
#define RATE_TOUCHES_MIN 8

enum point_kind { STALL_END, AWAKE, STALL_LONG, FREE_AFTER_STALL, FREE_AFTER_SLEEP, TOUCH, ASLEEP };

struct point {
	uint64_t at;
	uint32_t index;
	uint32_t kind;
};

enum vcpu_state { WAITS, STARTS, FREE }; /* STARTS: it runs, and still has its head start */

/* One vCPU between its first touch and its last: time in which it was free to touch, and touches, while ... */
struct vcpu {
	double free_ns[2]; /* [0]: no other was in a long stall, [1]: one was */
	uint64_t touches[2];
	uint64_t since[2]; /* the time of that kind until it was free */
	uint64_t first, last;
	uint64_t lost; /* as the last event said, with the stall behind it */
	enum vcpu_state state;
	bool stalled;
	uint32_t pending; /* the touch or sleep that it is in, or was last */
};

struct measurement {
	const struct recording *recording;
	uint64_t until_ns;
	struct point *points;
	size_t point_count;
	struct vcpu *vcpus;
	size_t vcpu_count;
	uint64_t time[2]; /* until now, with no vCPU in a long stall, and with one */
	uint64_t now;
	unsigned long_stalls;
};

static int compare_points(const void *a, const void *b)
{
	const struct point *x = a, *y = b;

	if (x->at != y->at)
		return x->at < y->at ? -1 : 1;
	if (x->kind != y->kind)
		return x->kind < y->kind ? -1 : 1;
	return (x->index > y->index) - (x->index < y->index);
}

static void add_point(struct measurement *m, uint64_t at, enum point_kind kind, size_t index)
{
	m->points[m->point_count++] = (struct point){ .at = at, .index = (uint32_t)index, .kind = kind };
}

static bool waits(const struct touch *touch)
{
	return !touch->present && touch->run_ns > touch->touch_ns;
}

static bool is_long(const struct touch *touch)
{
	return waits(touch) && touch->run_ns - touch->touch_ns > HEAD_START_NS;
}

/*
 * A timer or a device wakes a vCPU whatever the others do: in such a sleep it is as free to touch as in between, and where each touch comes from a timer, as at
 * any time.
 */
static bool waits_for_a_vcpu(const struct vcpu_sleep *sleep)
{
	return sleep->waker != VCPU_UNKNOWN && sleep->waker != sleep->vcpu;
}

/* A head start later. */
static uint64_t later(uint64_t ns)
{
	return ns < UINT64_MAX - HEAD_START_NS ? ns + HEAD_START_NS : UINT64_MAX;
}

static bool counts(const struct measurement *m, const struct touch *touch)
{
	return touch->vcpu != VCPU_UNKNOWN && touch->touch_ns <= m->until_ns;
}

static void add_touch(struct measurement *m, size_t index)
{
	const struct touch *touch = &m->recording->touches[index];

	if (!counts(m, touch))
		return;
	if (touch->vcpu >= m->vcpu_count)
		m->vcpu_count = touch->vcpu + 1u;
	add_point(m, touch->touch_ns, TOUCH, index);
	if (is_long(touch))
		add_point(m, touch->touch_ns + HEAD_START_NS, STALL_LONG, index);
	if (waits(touch)) {
		add_point(m, touch->run_ns, STALL_END, index);
		add_point(m, later(touch->run_ns), FREE_AFTER_STALL, index);
	}
}

static int collect_points(struct measurement *m)
{
	const struct recording *recording = m->recording;

	m->points = calloc(4 * recording->touch_count + 3 * recording->sleep_count + 1, sizeof *m->points);
	if (!m->points)
		return -ENOMEM;
	for (size_t i = 0; i < recording->touch_count; i++)
		add_touch(m, i);
	for (size_t i = 0; i < recording->sleep_count; i++) {
		const struct vcpu_sleep *sleep = &recording->sleeps[i];

		if (sleep->vcpu >= m->vcpu_count || sleep->run_ns < sleep->sleep_ns || !waits_for_a_vcpu(sleep))
			continue;
		add_point(m, sleep->sleep_ns, ASLEEP, i);
		add_point(m, sleep->run_ns, AWAKE, i);
		add_point(m, later(sleep->run_ns), FREE_AFTER_SLEEP, i);
	}
	qsort(m->points, m->point_count, sizeof *m->points, compare_points);

	m->vcpus = calloc(m->vcpu_count + 1, sizeof *m->vcpus);
	if (!m->vcpus)
		return -ENOMEM;
	for (size_t v = 0; v < m->vcpu_count; v++)
		m->vcpus[v].first = UINT64_MAX;
	for (size_t i = 0; i < recording->touch_count; i++) {
		const struct touch *touch = &recording->touches[i];

		if (!counts(m, touch))
			continue;
		struct vcpu *vcpu = &m->vcpus[touch->vcpu];
		vcpu->first = touch->touch_ns < vcpu->first ? touch->touch_ns : vcpu->first;
		vcpu->last = touch->touch_ns > vcpu->last ? touch->touch_ns : vcpu->last;
	}
	return 0;
}

static void become_free(struct measurement *m, struct vcpu *vcpu)
{
	vcpu->state = FREE;
	vcpu->since[0] = m->time[0];
	vcpu->since[1] = m->time[1];
}

/*
 * An event says what the vCPU had lost. Since the one before, it was not free for so long: it had no CPU. That comes together with others' long stalls, where
 * the machine is so busy that whoever would serve them has none either.
 */
static void settle(struct measurement *m, struct vcpu *vcpu, uint64_t lost)
{
	double late = lost > vcpu->lost ? (double)(lost - vcpu->lost) : 0;

	vcpu->lost = lost > vcpu->lost ? lost : vcpu->lost;
	if (vcpu->state != FREE)
		return;
	double spent[2] = { (double)(m->time[0] - vcpu->since[0]), (double)(m->time[1] - vcpu->since[1]) };
	double all = spent[0] + spent[1];
	double kept = all > late ? (all - late) / all : 0;

	vcpu->free_ns[0] += kept * spent[0];
	vcpu->free_ns[1] += kept * spent[1];
	become_free(m, vcpu);
}

static void take_touch(struct measurement *m, struct vcpu *vcpu, uint32_t index)
{
	const struct touch *touch = &m->recording->touches[index];

	settle(m, vcpu, touch->lost_ns);
	if (vcpu->state == FREE)
		vcpu->touches[m->long_stalls > 0]++;
	if (waits(touch)) {
		vcpu->state = WAITS;
		vcpu->stalled = true;
		vcpu->pending = index;
	} else if (touch->touch_ns == vcpu->first && vcpu->state == WAITS) {
		become_free(m, vcpu);
	}
	if (touch->touch_ns >= vcpu->last)
		vcpu->state = WAITS;
}

/* It runs again, after the touch or sleep INDEX. */
static void start(struct measurement *m, struct vcpu *vcpu, uint32_t index)
{
	if (vcpu->state != WAITS || vcpu->stalled || m->now < vcpu->first || m->now >= vcpu->last)
		return;
	vcpu->state = STARTS;
	vcpu->pending = index;
}

static void take_point(struct measurement *m, const struct point *point)
{
	const struct recording *recording = m->recording;
	bool of_sleep = point->kind == AWAKE || point->kind == ASLEEP || point->kind == FREE_AFTER_SLEEP;
	struct vcpu *vcpu =
		&m->vcpus[of_sleep ? recording->sleeps[point->index].vcpu : recording->touches[point->index].vcpu];

	m->time[m->long_stalls > 0] += point->at - m->now;
	m->now = point->at;
	switch ((enum point_kind)point->kind) {
	case TOUCH:
		take_touch(m, vcpu, point->index);
		break;
	case STALL_LONG:
		m->long_stalls++;
		break;
	case STALL_END:
		m->long_stalls -= is_long(&recording->touches[point->index]);
		if (!vcpu->stalled || vcpu->pending != point->index)
			break;
		vcpu->stalled = false;
		vcpu->lost += m->now - recording->touches[point->index].touch_ns;
		start(m, vcpu, point->index);
		break;
	case ASLEEP:
		settle(m, vcpu, recording->sleeps[point->index].lost_ns);
		vcpu->state = WAITS;
		break;
	case AWAKE:
		start(m, vcpu, point->index);
		break;
	case FREE_AFTER_STALL:
	case FREE_AFTER_SLEEP:
		if (vcpu->state == STARTS && vcpu->pending == point->index)
			become_free(m, vcpu);
		break;
	}
}

static struct independence sum_up(const struct measurement *m)
{
	struct independence sum = { .ratio = 0 };
	double made = 0;

	for (size_t v = 0; v < m->vcpu_count; v++) {
		const struct vcpu *vcpu = &m->vcpus[v];

		sum.vcpus += vcpu->first != UINT64_MAX;
		if (vcpu->touches[0] < RATE_TOUCHES_MIN || vcpu->free_ns[0] < 1)
			continue;
		sum.expected += (double)vcpu->touches[0] / vcpu->free_ns[0] * vcpu->free_ns[1];
		made += (double)vcpu->touches[1];
	}
	if (sum.expected > 0)
		sum.ratio = made < sum.expected ? made / sum.expected : 1;
	return sum;
}

int independence_measure(const struct recording *recording, uint64_t until_ns, struct independence *ret)
{
	struct measurement m = { .recording = recording, .until_ns = until_ns };
	int r = collect_points(&m);

	for (size_t i = 0; r >= 0 && i < m.point_count; i++)
		take_point(&m, &m.points[i]);
	if (r >= 0)
		*ret = sum_up(&m);
	free(m.points);
	free(m.vcpus);
	return r;
}
