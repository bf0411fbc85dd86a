/* What the guest's vCPUs do, from text: script_help says how it is written. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#define VCPUS_MAX 8
#define PAGE_SIZE ((uint64_t)4096)

enum touch_kind { TOUCH_READ, TOUCH_WRITE, TOUCH_FETCH };

enum action_kind {
	ACTION_TOUCH,
	ACTION_AT,    /* wait until VALUE ns since the start */
	ACTION_PAUSE, /* spin for VALUE ns */
	ACTION_WORK,  /* compute, VALUE rounds */
	ACTION_SPIN,  /* until OTHER has done VALUE touches */
	ACTION_HALT,  /* the same, asleep */
	ACTION_WAKE,  /* interrupt OTHER; put in where OTHER halts for this vCPU */
	ACTION_READY,
	ACTION_HOLD,
};

struct action {
	uint64_t value; /* page of a touch, or as above */
	uint8_t kind;	/* enum action_kind */
	uint8_t touch;	/* enum touch_kind */
	uint8_t other;
};

struct program {
	struct action *actions;
	size_t count, capacity;
	size_t touches;
};

struct script {
	struct program vcpus[VCPUS_MAX];
	unsigned vcpu_count;
	uint64_t page_end; /* one more than the last page named */
	bool halts;
};

extern const char script_help[];

/* Reads all of FILE, NAME in messages. 0, or -1 after a message on stderr. */
int script_read(struct script *script, FILE *file, const char *name);
void script_clear(struct script *script);
