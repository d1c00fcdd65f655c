/* bell.h -- the thread that hears for a server when keys are set (floor C9). The protocol with the setters: event.h; with
 * the thread that serves: bell.c. */
#ifndef SST_BELL_H
#define SST_BELL_H

#include "view.h"

typedef struct {
    sst_seg *seg;
    uint32_t armed[SST_STRIPES]; /* atomic: the event each stripe is armed with, 0: nobody waits there */
    uint32_t lives; /* atomic: how many are not 0 */
    uint32_t told, idle, stop; /* atomic */
    int fd; /* eventfd: how the server is told */
    pthread_t thread;
} sst_bell;

int sst_bell_start(sst_bell *b, sst_seg *s); /* fd is the caller's */
void sst_bell_stop(sst_bell *b); /* waits for the thread */
/* By the server: arms the stripe, before it looks; takes that back; hears. */
void sst_bell_watch(sst_bell *b, uint32_t stripe);
void sst_bell_unwatch(sst_bell *b, uint32_t stripe);
void sst_bell_heard(sst_bell *b);
/* 1: the stripe's event has moved since it was armed. */
int sst_bell_moved(const sst_bell *b, uint32_t stripe);
void sst_bell_tell(sst_bell *b); /* wakes the server, for any reason */

#endif
