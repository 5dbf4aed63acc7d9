/* The classifier and the way of a datagram through a whole engine: any bytes, as if they had come by UDP.
 *
 * The first byte says how the rest is cut into segments, so that coalesced buffers are covered too. */
#include "../engine/internal.h"

#include <stdlib.h>

static struct mn_engine *engine;

static struct mn_engine *make(void)
{
    struct mn_engine_config config = {.mtu = 1280};
    int err = 0;
    config.private_key[0] = 8;
    config.sockets.use4 = true;
    config.sockets.bind4.b[10] = config.sockets.bind4.b[11] = 0xff;
    config.sockets.bind4.b[12] = 127;
    config.sockets.bind4.b[15] = 1;
    struct mn_engine *e = mn_engine_create(&config, &err);
    if (e == NULL)
        abort();
    return e;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static uint8_t out[2 * MN_EVENT_RECORD_MAX];
    if (engine == NULL)
        engine = make();
    if (size < 2)
        return 0;
    uint8_t *copy = malloc(size - 1);
    if (copy == NULL)
        abort();
    memcpy(copy, data + 1, size - 1);
    struct mn_sock_rx rx = {.buf = copy, .len = size - 1, .seg = size - 1};
    if (data[0] != 0 && data[0] < rx.len)
        rx.seg = data[0];
    rx.from.ip.b[15] = 1;
    rx.from.port = 9;
    engine->now_ns += 1000000;
    mn_tunnel_read(engine, &rx);
    mn_stack_flush(engine->stack, engine->now_ns);
    size_t n = 1;
    while (n > 0)
        (void)mn_events_take(&engine->events, out, sizeof out, 64, &n);
    free(copy);
    return 0;
}
