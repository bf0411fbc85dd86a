#include "observe/clock.h"

#include <errno.h>
#include <stdlib.h>

#include "base/cleanup.h"

/* Times beyond are nonsense; below, sums and differences fit 64 bits with a sign. */
#define TIME_MAX (INT64_MAX / 4)

/* Of the gaps between a stall and the next touch, one in so many is the kernel's own work alone; with fewer gaps than that there is no telling. */
#define WORK_PART     50
#define WORK_GAPS_MIN 200
/* No kernel needs longer, unless it does something else as well. */
#define WORK_MAX_NS 5000

/* What may happen, in the order in which it counts where the times are the same: ends before beginnings. */
enum point_kind { STALL_END, SLEEP_WAKE, SLEEP_RUN, TOUCH, SLEEP_BEGIN };

struct point {
	int64_t at;
	uint32_t index; /* of the touch or the sleep */
	uint32_t kind;
};

enum vcpu_state { VCPU_UNSEEN, VCPU_RUNNING, VCPU_STALLED, VCPU_SLEEPING, VCPU_RUNNABLE, VCPU_DONE };

struct vcpu {
	enum vcpu_state state;
	uint32_t pending;    /* the touch or the sleep that it is in */
	int64_t clock;	     /* where it stood when it was last set: a floor for what follows */
	int64_t lost;	     /* as the last event said, and what was seen since */
	int64_t late;	     /* of it: without a CPU, and not made good yet */
	int64_t shift;	     /* running: the clock is time - lost + shift */
	int64_t idle;	     /* of the clock: sleeps since its last touch that nobody else's doing ended */
	int64_t slept_at;    /* sleeping: since then ... */
	int64_t held_then;   /* ... and `held` at that time */
	uint32_t last_point; /* of all that are known of it */
	uint32_t halted;     /* stalled: the sleep that its thread is in meanwhile, plus 1 */
};

struct computation {
	const struct recording *recording;
	struct clocks *clocks;
	struct vcpu *vcpus;
	size_t vcpu_count;
	struct point *points;
	size_t point_count;
	unsigned running, waiting; /* vCPUs that get on; stalls under way, and vCPUs that are runnable and don't run */
	unsigned unknown;	   /* stalls under way in the name of no vCPU */
	int64_t now, blocked;	   /* BLOCKED: how long somebody waited and nobody got on, until now */
	int64_t held;		   /* of it: while a stall was in the name of no vCPU */
	int64_t work;		   /* the kernel's, after a stall */
	struct vcpu *leader;	   /* whose clock is the furthest; NULL: none is known */
	int64_t fork_clock;
};

static int64_t clamp_time(uint64_t ns)
{
	return ns > TIME_MAX ? TIME_MAX : (int64_t)ns;
}

static int64_t larger(int64_t a, int64_t b)
{
	return a > b ? a : b;
}

static int64_t smaller(int64_t a, int64_t b)
{
	return a < b ? a : b;
}

/* ---- all that happened, in order of time ---- */

static int compare_points(const void *a, const void *b)
{
	const struct point *x = a, *y = b;

	if (x->at != y->at)
		return x->at < y->at ? -1 : 1;
	if (x->kind != y->kind)
		return x->kind < y->kind ? -1 : 1;
	return (x->index > y->index) - (x->index < y->index);
}

static bool waits(const struct touch *touch)
{
	return !touch->present && touch->run_ns > touch->touch_ns;
}

static void add_point(struct computation *c, int64_t at, enum point_kind kind, size_t index)
{
	c->points[c->point_count++] = (struct point){ .at = at, .index = (uint32_t)index, .kind = kind };
}

static void see_vcpu(struct computation *c, uint16_t vcpu)
{
	if (vcpu != VCPU_UNKNOWN && vcpu >= c->vcpu_count)
		c->vcpu_count = vcpu + 1u;
}

static int collect_points(struct computation *c)
{
	const struct recording *recording = c->recording;

	c->points = calloc(2 * recording->touch_count + 3 * recording->sleep_count + 1, sizeof *c->points);
	if (!c->points)
		return -ENOMEM;
	for (size_t i = 0; i < recording->touch_count; i++) {
		const struct touch *touch = &recording->touches[i];

		see_vcpu(c, touch->vcpu);
		add_point(c, clamp_time(touch->touch_ns), TOUCH, i);
		if (waits(touch))
			add_point(c, clamp_time(touch->run_ns), STALL_END, i);
	}
	for (size_t i = 0; i < recording->sleep_count; i++) {
		const struct vcpu_sleep *sleep = &recording->sleeps[i];
		int64_t begin = clamp_time(sleep->sleep_ns);
		int64_t run = larger(clamp_time(sleep->run_ns), begin);
		int64_t wake = sleep->wake_ns ? smaller(larger(clamp_time(sleep->wake_ns), begin), run) : run;

		if (sleep->vcpu == VCPU_UNKNOWN)
			continue;
		see_vcpu(c, sleep->vcpu);
		see_vcpu(c, sleep->waker);
		add_point(c, begin, SLEEP_BEGIN, i);
		add_point(c, wake, SLEEP_WAKE, i);
		add_point(c, run, SLEEP_RUN, i);
	}
	qsort(c->points, c->point_count, sizeof *c->points, compare_points);
	return 0;
}

static uint16_t vcpu_of_point(const struct computation *c, const struct point *point)
{
	return point->kind == TOUCH || point->kind == STALL_END ? c->recording->touches[point->index].vcpu
								: c->recording->sleeps[point->index].vcpu;
}

static int make_vcpus(struct computation *c)
{
	c->vcpus = calloc(c->vcpu_count + 1, sizeof *c->vcpus);
	if (!c->vcpus)
		return -ENOMEM;
	for (size_t i = 0; i < c->point_count; i++) {
		uint16_t vcpu = vcpu_of_point(c, &c->points[i]);

		if (vcpu != VCPU_UNKNOWN)
			c->vcpus[vcpu].last_point = (uint32_t)i;
	}
	return 0;
}

/* ---- the kernel's own work ---- */

static int compare_times(const void *a, const void *b)
{
	int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;

	return (x > y) - (x < y);
}

/* The times from the ends of stalls to their vCPUs' next touches. How many. */
static size_t collect_gaps(const struct computation *c, int64_t *gaps)
{
	size_t count = 0;

	for (size_t v = 0; v < c->vcpu_count; v++)
		c->vcpus[v].clock = -1;
	for (size_t i = 0; i < c->point_count; i++) {
		const struct point *point = &c->points[i];
		uint16_t number = vcpu_of_point(c, point);

		if (number == VCPU_UNKNOWN)
			continue;
		int64_t *ended = &c->vcpus[number].clock;
		if (point->kind == TOUCH && *ended >= 0)
			gaps[count++] = point->at - *ended;
		*ended = point->kind == STALL_END ? point->at : -1;
	}
	for (size_t v = 0; v < c->vcpu_count; v++)
		c->vcpus[v].clock = 0;
	return count;
}

/*
 * What of a fault's cost comes after its stall, as recorded: back into the guest, and to the next touch's record. Guests touch pages right after one another often
 * enough for the shortest times between to be that and nothing else.
 */
static int measure_work(struct computation *c)
{
	_cleanup_free_ int64_t *gaps = calloc(c->recording->touch_count + 1, sizeof *gaps);

	if (!gaps)
		return -ENOMEM;
	size_t count = collect_gaps(c, gaps);
	qsort(gaps, count, sizeof *gaps, compare_times);
	c->work = count < WORK_GAPS_MIN ? 0 : smaller(gaps[count / WORK_PART], WORK_MAX_NS);
	return 0;
}

/* ---- clocks ---- */

static void set_state(struct computation *c, struct vcpu *vcpu, enum vcpu_state state)
{
	c->running -= vcpu->state == VCPU_RUNNING;
	c->waiting -= vcpu->state == VCPU_STALLED || vcpu->state == VCPU_RUNNABLE;
	vcpu->state = state;
	c->running += vcpu->state == VCPU_RUNNING;
	c->waiting += vcpu->state == VCPU_STALLED || vcpu->state == VCPU_RUNNABLE;
}

/*
 * How long it has slept by now, if something else than a vCPU were to wake it: timers and devices don't wait for anybody. But one that sleeps while a kernel
 * thread waits for a page may sleep for that page.
 */
static int64_t slept(const struct computation *c, const struct vcpu *vcpu)
{
	return c->now - vcpu->slept_at - (c->held - vcpu->held_then);
}

/*
 * A timer's time does not depend on when its vCPU went to sleep: one that was kept from its CPU before sleeps the less for it. What a sleep made good
 * so is no more than its length, as other sleeps (for a device, say) do begin the later.
 */
static int64_t made_good(const struct computation *c, const struct vcpu *vcpu)
{
	return smaller(vcpu->late, slept(c, vcpu));
}

/* Its clock by now. */
static int64_t clock_of(const struct computation *c, const struct vcpu *vcpu)
{
	int64_t clock = vcpu->clock;

	if (vcpu->state == VCPU_RUNNING)
		clock = larger(clock, c->now - vcpu->lost + vcpu->shift);
	else if (vcpu->state == VCPU_SLEEPING)
		clock += slept(c, vcpu) + made_good(c, vcpu);
	return smaller(clock, c->now);
}

static int64_t fork_clock(struct computation *c)
{
	int64_t clock = c->leader ? clock_of(c, c->leader) : c->now - c->blocked;

	c->fork_clock = larger(c->fork_clock, clock);
	return c->fork_clock;
}

static void set_clock(struct computation *c, struct vcpu *vcpu, int64_t clock)
{
	vcpu->clock = larger(vcpu->clock, clock);
	if (!c->leader || clock_of(c, c->leader) <= vcpu->clock)
		c->leader = vcpu;
}

/* From now on its clock goes with the time again. */
static void go_on(struct computation *c, struct vcpu *vcpu)
{
	vcpu->shift = vcpu->clock - (c->now - vcpu->lost);
	set_state(c, vcpu, VCPU_RUNNING);
}

/*
 * A thread that runs touches memory at once, so one that is first seen now has just begun, by something that the others did: its clock is the fork's. (At the fork's
 * start that is the time itself.) Or else it had no CPU so far.
 */
static void see_first(struct computation *c, struct vcpu *vcpu, int64_t lost)
{
	vcpu->lost = lost;
	set_clock(c, vcpu, smaller(c->leader ? fork_clock(c) : c->now, larger(0, c->now - lost)));
	go_on(c, vcpu);
}

/* An event of it says what it had lost. Its clock is set to now. */
static void take_event(struct computation *c, struct vcpu *vcpu, uint64_t lost_ns)
{
	int64_t lost = clamp_time(lost_ns);

	if (vcpu->state == VCPU_UNSEEN) {
		see_first(c, vcpu, lost);
		return;
	}
	/* An event of one that sleeps or waits: its end was lost, or is told wrongly. */
	if (vcpu->state != VCPU_RUNNING) {
		vcpu->lost = larger(vcpu->lost, lost);
		go_on(c, vcpu);
	}
	/* Its stalls are known: what it has lost besides it was runnable. */
	vcpu->late += larger(0, lost - vcpu->lost);
	vcpu->lost = larger(vcpu->lost, lost);
	set_clock(c, vcpu, clock_of(c, vcpu));
}

static void touch(struct computation *c, const struct point *point)
{
	const struct touch *touched = &c->recording->touches[point->index];
	int64_t clock;

	if (touched->vcpu == VCPU_UNKNOWN) {
		c->waiting += waits(touched);
		c->unknown += waits(touched);
		clock = fork_clock(c);
	} else {
		struct vcpu *vcpu = &c->vcpus[touched->vcpu];

		take_event(c, vcpu, touched->lost_ns);
		clock = vcpu->clock;
		vcpu->idle = 0;
		if (waits(touched)) {
			vcpu->pending = point->index;
			vcpu->halted = 0;
			set_state(c, vcpu, VCPU_STALLED);
		}
	}
	c->clocks->corrected_ns[point->index] = (uint64_t)clock;
	c->clocks->progress_ns[point->index] = (uint64_t)(c->now - c->blocked);
}

static void stall_end(struct computation *c, const struct point *point)
{
	const struct touch *touched = &c->recording->touches[point->index];

	if (touched->vcpu == VCPU_UNKNOWN) {
		c->waiting--;
		c->unknown--;
		return;
	}
	struct vcpu *vcpu = &c->vcpus[touched->vcpu];
	if (vcpu->state != VCPU_STALLED || vcpu->pending != point->index)
		return;
	vcpu->lost += c->now - clamp_time(touched->touch_ns);
	if (vcpu->halted && clamp_time(c->recording->sleeps[vcpu->halted - 1].run_ns) > c->now) {
		vcpu->pending = vcpu->halted - 1;
		set_state(c, vcpu, VCPU_RUNNABLE);
		return;
	}
	go_on(c, vcpu);
	vcpu->shift -= c->work;
}

static void sleep_begin(struct computation *c, const struct point *point)
{
	const struct vcpu_sleep *sleep = &c->recording->sleeps[point->index];
	struct vcpu *vcpu = &c->vcpus[sleep->vcpu];

	/* KVM has a kernel thread wait for the page, and halts the vCPU until it is there: its thread sleeps, but the guest is stalled. */
	if (vcpu->state == VCPU_STALLED) {
		vcpu->halted = point->index + 1;
		return;
	}
	take_event(c, vcpu, sleep->lost_ns);
	set_state(c, vcpu, VCPU_SLEEPING);
	vcpu->pending = point->index;
	vcpu->slept_at = c->now;
	vcpu->held_then = c->held;
}

static void sleep_wake(struct computation *c, const struct point *point)
{
	const struct vcpu_sleep *sleep = &c->recording->sleeps[point->index];
	struct vcpu *vcpu = &c->vcpus[sleep->vcpu];

	if (vcpu->state != VCPU_SLEEPING || vcpu->pending != point->index)
		return;
	if (sleep->waker == VCPU_UNKNOWN || sleep->waker == sleep->vcpu) {
		int64_t good = made_good(c, vcpu), clock = clock_of(c, vcpu);

		vcpu->idle += clock - vcpu->clock;
		vcpu->late -= good;
		set_state(c, vcpu, VCPU_RUNNABLE);
		set_clock(c, vcpu, clock);
		return;
	}
	struct vcpu *waker = &c->vcpus[sleep->waker];
	int64_t clock = waker->state == VCPU_UNSEEN ? fork_clock(c) : clock_of(c, waker);

	/* It may have been awake for ticks in between. Where it touched nothing then, they are nothing that the waker's doing must come after. */
	vcpu->clock -= smaller(vcpu->idle, larger(0, vcpu->clock - clock));
	vcpu->idle = 0;
	set_state(c, vcpu, VCPU_RUNNABLE);
	set_clock(c, vcpu, clock);
}

static void sleep_run(struct computation *c, const struct point *point)
{
	const struct vcpu_sleep *sleep = &c->recording->sleeps[point->index];
	struct vcpu *vcpu = &c->vcpus[sleep->vcpu];

	if (vcpu->state != VCPU_RUNNABLE || vcpu->pending != point->index)
		return;
	if (sleep->wake_ns) {
		int64_t lost = larger(0, c->now - larger(clamp_time(sleep->wake_ns), clamp_time(sleep->sleep_ns)));

		vcpu->lost += lost;
		vcpu->late += lost;
	}
	go_on(c, vcpu);
}

static void take_point(struct computation *c, size_t number)
{
	static void (*const takes[])(struct computation *, const struct point *) = {
		[STALL_END] = stall_end, [SLEEP_WAKE] = sleep_wake,   [SLEEP_RUN] = sleep_run,
		[TOUCH] = touch,	 [SLEEP_BEGIN] = sleep_begin,
	};
	const struct point *point = &c->points[number];

	if (!c->running && c->waiting) {
		c->blocked += point->at - c->now;
		c->held += c->unknown ? point->at - c->now : 0;
	}
	c->now = point->at;
	takes[point->kind](c, point);

	uint16_t vcpu = vcpu_of_point(c, point);
	if (vcpu == VCPU_UNKNOWN || c->vcpus[vcpu].last_point != number || c->vcpus[vcpu].state == VCPU_UNSEEN)
		return;
	/* It is not heard of again: idle, more likely than at work without a new page. */
	set_clock(c, &c->vcpus[vcpu], clock_of(c, &c->vcpus[vcpu]));
	set_state(c, &c->vcpus[vcpu], VCPU_DONE);
}

int clocks_compute(const struct recording *recording, struct clocks *ret)
{
	struct clocks clocks = {
		.corrected_ns = calloc(recording->touch_count + 1, sizeof *clocks.corrected_ns),
		.progress_ns = calloc(recording->touch_count + 1, sizeof *clocks.progress_ns),
	};
	struct computation c = { .recording = recording, .clocks = &clocks };
	int r = clocks.corrected_ns && clocks.progress_ns ? collect_points(&c) : -ENOMEM;

	if (r >= 0)
		r = make_vcpus(&c);
	if (r >= 0)
		r = measure_work(&c);
	for (size_t i = 0; r >= 0 && i < c.point_count; i++)
		take_point(&c, i);
	free(c.points);
	free(c.vcpus);
	if (r < 0)
		clocks_clear(&clocks);
	else
		*ret = clocks;
	return r;
}

void clocks_clear(struct clocks *clocks)
{
	free(clocks->corrected_ns);
	free(clocks->progress_ns);
	*clocks = (struct clocks){ .corrected_ns = NULL };
}
