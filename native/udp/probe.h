/* A test of segmentation on this kernel: a batch of equal lengths sent over loopback must arrive as it was sent.
 *
 * Kernels and drivers have broken exactly that. What a network card does to segments cannot be seen from here; for that
 * there are the settings. Source: docs/protocol/dataplane.md 2.3. */
#ifndef MN_UDP_PROBE_H
#define MN_UDP_PROBE_H

#include "sockets.h"

enum mn_probe_result {
    MN_PROBE_WHOLE,
    MN_PROBE_BROKEN,  /* plain datagrams arrive, segmented ones do not, or not as they were */
    MN_PROBE_UNKNOWN, /* nothing arrives at all, or there is no loopback: no reason to give anything up */
};

/* Waits a few milliseconds at most, and only where something is wrong. */
enum mn_probe_result mn_probe_offload(const struct mn_sock_calls *calls);

#endif
