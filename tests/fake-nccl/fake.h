/* A CUDA driver and an NCCL without a GPU, for tests: the names, types and rules of NVIDIA's libraries, memory of the
 * host, streams as threads, collectives between processes through shared memory.
 *
 * One shared object under two names (libcuda.so.1, libnccl.so.2; `build` makes it), because collectives run on the
 * driver's streams. Start reading at nccl.c; device.c is the driver, room.c where ranks meet, trace.c log and faults.
 *
 * FAKE_NCCL_LOG=FOLDER   every call of rank R is a line of FOLDER/R
 * FAKE_NCCL_FAULT=LIST   faults, by commas; `R` a rank, `N` the N-th collective of that rank, from 0:
 *     init=R             ncclCommInitRankConfig fails at once
 *     init_later=R       ... fails asynchronously
 *     absent=R           rank R never arrives where the communicator is made
 *     slow=R:MS          rank R sleeps MS milliseconds in every collective
 *     refused=R:N        the call of the collective fails
 *     async=R:N          an asynchronous error, the collective never ends
 *     stuck=R:N          the collective never ends, and nothing says so
 *     device=R:N         the driver reports a failed launch in every stream query from then on
 * FAKE_NCCL_DEVICES=N    GPUs of this machine, 4 if unset
 * FAKE_NCCL_CUDA=N       newest CUDA of the driver, 13000 (13.0) if unset
 */
#ifndef FAKE_H
#define FAKE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define EXPORT __attribute__((visibility("default")))

/* trace.c */
extern _Atomic int fake_rank; /* of the communicator made last, -1 before */
void fake_log(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* Whether rank `rank` has the fault; `number` is what stands after the colon, -1 without. */
bool fake_fault(const char *name, int rank, long *number);
void fake_sleep_ms(long ms);
uint64_t fake_now_ms(void);

/* device.c: a stream runs what it is given in order, on a thread of its own. */
struct stream;
typedef void (*work)(void *argument);
void fake_give(struct stream *stream, work run, void *argument); /* NULL: the default stream; frees `argument` */
bool fake_has_context(void);
extern atomic_bool fake_device_failed;

/* room.c: where the ranks of one communicator meet. */
#define MAX_RANKS 4
#define SLOT_FLOATS (1 << 15)
struct room;
struct room *fake_enter(const char *id, int ranks, int rank, const atomic_bool *aborted); /* NULL if aborted first */
bool fake_meet(struct room *room, const atomic_bool *aborted); /* a barrier; false if aborted first */
float *fake_slot(struct room *room, int rank);
uint64_t *fake_said(struct room *room, int rank); /* 4 words by which ranks compare their calls */

#endif
