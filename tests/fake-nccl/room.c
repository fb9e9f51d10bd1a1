/* Where the ranks of one communicator meet: a file in shared memory, named after the unique id. */
#include "fake.h"
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

struct shared {
    _Atomic uint32_t arrived, generation;
    uint64_t said[MAX_RANKS][4];
    float slots[MAX_RANKS][SLOT_FLOATS];
};

struct room {
    struct shared *shared;
    uint32_t ranks;
};

struct room *fake_enter(const char *id, int ranks, int rank, const atomic_bool *aborted) {
    char path[256];
    snprintf(path, sizeof path, "/dev/shm/%s", id);
    int file = open(path, O_RDWR | O_CREAT, 0600);
    if (file < 0 || ftruncate(file, sizeof(struct shared))) return NULL;
    struct shared *shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (shared == MAP_FAILED) return NULL;
    struct room *room = malloc(sizeof *room);
    *room = (struct room){shared, (uint32_t)ranks};
    bool met = fake_meet(room, aborted);
    if (rank == 0 || !met) unlink(path);
    return met ? room : NULL;
}

bool fake_meet(struct room *room, const atomic_bool *aborted) {
    struct shared *shared = room->shared;
    uint32_t mine = shared->generation;
    if (atomic_fetch_add(&shared->arrived, 1) + 1 == room->ranks) {
        shared->arrived = 0;
        atomic_fetch_add(&shared->generation, 1);
        return true;
    }
    for (int spins = 0; shared->generation == mine; spins++) {
        if (*aborted) return false;
        if (spins < 100) sched_yield();
        else usleep(100);
    }
    return true;
}

float *fake_slot(struct room *room, int rank) { return room->shared->slots[rank]; }

uint64_t *fake_said(struct room *room, int rank) { return room->shared->said[rank]; }
