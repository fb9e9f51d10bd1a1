/* The log of calls, and the faults that a test asks for. */
#include "fake.h"
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

_Atomic int fake_rank = -1;

void fake_log(const char *format, ...) {
    static pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER;
    const char *folder = getenv("FAKE_NCCL_LOG");
    if (!folder) return;
    char path[4096];
    int rank = fake_rank;
    /* Before a communicator there is no rank; only rank 0 has business to call then. */
    snprintf(path, sizeof path, "%s/%d", folder, rank < 0 ? 0 : rank);
    pthread_mutex_lock(&turn);
    FILE *file = fopen(path, "a");
    if (file) {
        va_list arguments;
        va_start(arguments, format);
        vfprintf(file, format, arguments);
        va_end(arguments);
        fputc('\n', file);
        fclose(file);
    }
    pthread_mutex_unlock(&turn);
}

bool fake_fault(const char *name, int rank, long *number) {
    const char *at = getenv("FAKE_NCCL_FAULT");
    size_t length = strlen(name);
    while (at && *at) {
        if (!strncmp(at, name, length) && at[length] == '=') {
            char *end;
            long of = strtol(at + length + 1, &end, 10);
            long n = *end == ':' ? strtol(end + 1, &end, 10) : -1;
            if (of == rank) {
                if (number) *number = n;
                return true;
            }
        }
        at = strchr(at, ',');
        if (at) at++;
    }
    return false;
}

void fake_sleep_ms(long ms) {
    struct timespec time = {ms / 1000, ms % 1000 * 1000000};
    nanosleep(&time, NULL);
}

uint64_t fake_now_ms(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000 + (uint64_t)time.tv_nsec / 1000000;
}
