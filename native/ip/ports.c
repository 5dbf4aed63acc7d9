/* Bound endpoints. Handles carry a generation, so that a closed one is never taken for its successor. */
#include "ports.h"

#include <errno.h>
#include <stdlib.h>

enum {
    EPHEMERAL_FIRST = 32768,
};

static const struct mn_port *find_exact(const struct mn_ports *t, const struct mn_ip *ip, uint16_t port)
{
    for (uint16_t i = t->buckets[port % MN_PORTS_BUCKETS]; i != 0; i = t->slots[i - 1].next)
        if (t->slots[i - 1].local.port == port && mn_ip_equal(&t->slots[i - 1].local.ip, ip))
            return &t->slots[i - 1];
    return NULL;
}

/* Is the port free for ip? A bind to every address and a bind to one do not exclude each other. */
static uint16_t choose_port(const struct mn_ports *t, const struct mn_ip *ip, uint16_t start)
{
    uint32_t span = 65536 - EPHEMERAL_FIRST;
    for (uint32_t i = 0; i < span; i++) {
        uint16_t port = (uint16_t)(EPHEMERAL_FIRST + (start + i) % span);
        if (find_exact(t, ip, port) == NULL)
            return port;
    }
    return 0;
}

static int take_slot(struct mn_ports *t, uint32_t *at)
{
    if (t->slots == NULL) {
        t->slots = calloc(MN_PORTS_MAX, sizeof *t->slots);
        if (t->slots == NULL)
            return -ENOMEM;
    }
    for (uint32_t i = 0; i < MN_PORTS_MAX; i++) {
        if (t->slots[i].id == 0) {
            *at = i;
            return 0;
        }
    }
    return -EMFILE;
}

int mn_ports_open(struct mn_ports *t, const struct mn_ip *ip, uint16_t port, uint16_t start, uint32_t *id)
{
    uint32_t at;
    if (port == 0)
        port = choose_port(t, ip, start);
    if (port == 0 || find_exact(t, ip, port) != NULL)
        return -EADDRINUSE;
    int err = take_slot(t, &at);
    if (err != 0)
        return err;
    struct mn_port *p = &t->slots[at];
    uint16_t *bucket = &t->buckets[port % MN_PORTS_BUCKETS];
    p->local = (struct mn_ep){.ip = *ip, .port = port};
    p->generation++;
    p->id = ((uint32_t)p->generation << 16) | (at + 1);
    p->next = *bucket;
    *bucket = (uint16_t)(at + 1);
    t->count++;
    *id = p->id;
    return 0;
}

const struct mn_port *mn_ports_get(const struct mn_ports *t, uint32_t id)
{
    uint32_t at = id & 0xffff;
    if (t->slots == NULL || at == 0 || at > MN_PORTS_MAX || t->slots[at - 1].id != id)
        return NULL;
    return &t->slots[at - 1];
}

void mn_ports_close(struct mn_ports *t, uint32_t id)
{
    if (mn_ports_get(t, id) == NULL)
        return;
    struct mn_port *p = &t->slots[mn_ports_slot(id)];
    uint16_t *link = &t->buckets[p->local.port % MN_PORTS_BUCKETS];
    while (*link != (uint16_t)(id & 0xffff))
        link = &t->slots[*link - 1].next;
    *link = p->next;
    p->id = 0;
    t->count--;
}

const struct mn_port *mn_ports_find(const struct mn_ports *t, const struct mn_ip *ip, uint16_t port)
{
    static const struct mn_ip any;
    const struct mn_port *p = find_exact(t, ip, port);
    return p != NULL ? p : find_exact(t, &any, port);
}

void mn_ports_free(struct mn_ports *t)
{
    free(t->slots);
    memset(t, 0, sizeof *t);
}
