/* How `faultline fork` shows forks to a person. Each takes the API's JSON. */
#pragma once

#include <jansson.h>

void fork_print(const json_t *fork);
void fork_print_list(const json_t *answer);
void fork_print_socket(const json_t *fork);
void fork_print_prefetched(const json_t *fork);
void fork_print_nothing(const json_t *fork);
