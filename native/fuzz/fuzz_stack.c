/* Two whole stacks whose link and applications the fuzzer drives byte by byte: which packet arrives next, twice,
 * damaged or never, who writes, reads, closes, how time goes, and an adversary who floods with SYNs, marks congestion
 * and forges segments of connections it has seen. Where nothing was forged the bytes must come through whole and in
 * order whatever it does, and when it stops interfering everything must end and be given back. */
#include "../tests/world.h"

struct bytes {
    const uint8_t *p;
    size_t left;
};

static uint8_t next(struct bytes *b)
{
    if (b->left == 0)
        return 0;
    b->left--;
    return *b->p++;
}

static void world_on_accept(struct world_side *d, struct world_end *e)
{
    e->to_write = world_random(d->w) % 30000;
}

static void give(struct world *w, struct world_packet *p)
{
    mn_stack_input(w->side[p->to].s, (uint32_t)(1 - p->to), p->data, p->len, w->now);
    mn_stack_flush(w->side[p->to].s, w->now);
}

/* Any packet under way, not only the next one. */
static struct world_packet *pick(struct world *w, uint8_t which)
{
    if (w->count == 0)
        return NULL;
    struct world_packet *held[256], *p = NULL;
    uint32_t n = 0, at = which % w->count % 256;
    while (n <= at)
        held[n++] = world_pop(w);
    p = held[--n];
    while (n > 0)
        world_push(w, held[--n]);
    return p;
}

/* ---- the adversary ---- */

static void sum_again(struct world_packet *p, const struct mn_packet *v)
{
    size_t ip = v->ip_len - v->l4_len;
    mn_store16(p->data + ip + 16, 0);
    uint64_t sum = mn_csum_pseudo(&v->src, &v->dst, MN_PROTO_TCP, v->l4_len);
    mn_csum_store(p->data + ip + 16, mn_csum_add(sum, p->data + ip, v->l4_len));
}

static void touch(struct world *w, const struct mn_ep *a, const struct mn_ep *b)
{
    for (int i = 0; i < 2; i++)
        for (int k = 0; k < w->side[i].end_count; k++) {
            struct world_end *e = &w->side[i].ends[k];
            bool is_it = (mn_ep_equal(&e->local, a) && mn_ep_equal(&e->remote, b)) ||
                         (mn_ep_equal(&e->local, b) && mn_ep_equal(&e->remote, a));
            e->is_touched |= is_it;
        }
}

/* Change header fields or options of a packet under way, checksum made right again; the true one comes as well. */
static void forge(struct world *w, struct bytes *b)
{
    struct world_packet *p = pick(w, next(b));
    struct mn_packet v;
    if (p == NULL)
        return;
    if (mn_packet_parse(&v, p->data, p->len) != 0 || v.proto != MN_PROTO_TCP || v.l4_len < MN_TCP_HEADER) {
        free(p);
        return;
    }
    struct world_packet copy = *p;
    uint8_t *d = copy.data + (v.ip_len - v.l4_len);
    struct mn_ep from = {.ip = v.src, .port = mn_load16(d)}, to = {.ip = v.dst, .port = mn_load16(d + 2)};
    touch(w, &from, &to);
    w->is_forged = true;
    for (uint8_t n = next(b) % 4U + 1U; n > 0; n--) {
        uint8_t what = next(b), value = next(b);
        size_t at = MN_TCP_HEADER + what / 8U;
        switch (what % 8) {
        case 0:
            mn_store32(d + 4, mn_load32(d + 4) + (uint32_t)value * 97 - 12000);
            break;
        case 1:
            mn_store32(d + 8, mn_load32(d + 8) + (uint32_t)value * 97 - 12000);
            break;
        case 2:
            d[13] ^= value;
            break;
        case 3:
            mn_store16(d + 14, (uint32_t)value << 8);
            break;
        default: /* options, or whatever stands there */
            d[at < v.l4_len ? at : 4] ^= value;
            break;
        }
    }
    sum_again(&copy, &v);
    give(w, &copy);
    give(w, p);
    free(p);
}

/* SYNs in the name of the other side, from ports it may or may not use. */
static void flood(struct world *w, uint8_t n, struct bytes *b)
{
    static uint8_t pkts[64][128];
    struct world_side *to = &w->side[next(b) % 2], *from = &w->side[1 - to->index];
    struct mn_ep src = {.ip = from->ip4, .port = 0}, dst = {.ip = to->ip4, .port = WORLD_PORT};
    struct mn_segment g = {
        .flags = MN_TCP_SYN, .mss = 1240, .wnd = 65535, .wscale = 7, .may_sack = true, .has_ts = true};
    w->is_forged = true;
    for (uint8_t i = 0; i < n % 64; i++) {
        src.port = (uint16_t)(2000 + world_random(w) % 20000); /* below the ephemeral ones */
        g.seq = (uint32_t)world_random(w);
        size_t len = mn_segment_write(pkts[i], &src, &dst, &g);
        mn_stack_input(to->s, (uint32_t)from->index, pkts[i], len, w->now);
    }
    mn_stack_flush(to->s, w->now);
}

/* Congestion on the way. */
static void mark(struct world *w, struct bytes *b)
{
    struct world_packet *p = pick(w, next(b));
    if (p == NULL)
        return;
    if (mn_packet_ecn(p->data) != MN_ECN_NONE)
        mn_packet_set_ecn(p->data, MN_ECN_CE);
    give(w, p);
    free(p);
}

static void link_action(struct world *w, uint8_t what, struct bytes *b)
{
    struct world_packet *p = pick(w, what < 128 ? 0 : next(b));
    if (p == NULL)
        return;
    switch (what % 8) {
    case 5: /* lost */
        break;
    case 6: /* twice */
        give(w, p);
        give(w, p);
        break;
    case 7: { /* damaged: one bit, which a checksum always finds */
        uint32_t bit = next(b) * 8U + what / 32;
        p->data[bit / 8 % p->len] ^= (uint8_t)(1 << bit % 8);
        give(w, p);
        break;
    }
    default:
        give(w, p);
        break;
    }
    free(p);
}

static void end_action(struct world *w, struct bytes *b)
{
    struct world_side *d = &w->side[next(b) % 2];
    if (d->end_count == 0)
        return;
    struct world_end *e = &d->ends[next(b) % d->end_count];
    uint8_t what = next(b);
    if (!e->is_open)
        return;
    switch (what % 8) {
    case 0:
        e->greed = 1U + what * 20U;
        break;
    case 1:
        e->greed = 0;
        break;
    case 2:
        e->to_write += what * 10U;
        e->write_at = w->now;
        break;
    case 3:
        if (!e->fin_sent && e->written == e->to_write) {
            e->fin_sent = true;
            mn_tcp_shutdown(d->s, e->conn, w->now);
        }
        break;
    case 4:
        if (what < 64) {
            e->is_orphaned = e->fin_sent = true;
            e->is_open = false;
            if (what < 32)
                mn_tcp_abort(d->s, e->conn, w->now);
            else
                mn_tcp_close(d->s, e->conn, w->now);
        }
        break;
    default:
        e->write_at = w->now;
        break;
    }
}

static void serve_both(struct world *w)
{
    for (int i = 0; i < 2; i++) {
        mn_stack_flush(w->side[i].s, w->now);
        if (mn_stack_next_deadline(w->side[i].s) <= w->now)
            mn_stack_on_deadline(w->side[i].s, w->now);
        world_run_apps(&w->side[i]);
    }
}

/* is_patient: else those whose segments were forged are broken off, since a forged window may stay shut for ever. */
static void close_all(struct world *w, bool is_patient)
{
    for (int i = 0; i < 2; i++) {
        struct world_side *d = &w->side[i];
        for (int k = 0; k < d->end_count; k++) {
            struct world_end *e = &d->ends[k];
            e->greed = 0;
            if (e->is_closed || e->is_orphaned)
                continue;
            if (!e->is_connected || (e->is_touched && !is_patient)) {
                e->is_orphaned = true;
                mn_tcp_abort(d->s, e->conn, w->now);
            } else if (!e->fin_sent && e->written >= e->to_write) {
                e->fin_sent = true;
                mn_tcp_shutdown(d->s, e->conn, w->now);
            }
        }
    }
}

static bool is_quiet(const struct world *w)
{
    for (int i = 0; i < 2; i++)
        if (mn_stack_stats(w->side[i].s)->tcp_conns + mn_stack_stats(w->side[i].s)->tcp_half_open > 0)
            return false;
    return true;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    static struct world w;
    struct bytes b = {data, len};
    struct mn_stack_config cfg = {0};
    uint8_t how = next(&b);
    if ((how & 1) != 0)
        cfg.rcvbuf_max = cfg.sndbuf_max = 16384;
    if ((how & 2) != 0)
        cfg.ecn = MN_ECN_ASK;
    if ((how & 4) != 0)
        cfg.max_half_open = 1; /* nearly every passive open by cookie */
    world_start(&w, how, &cfg);
    for (int steps = 0; b.left > 0 && steps < 4000; steps++) {
        uint8_t what = next(&b);
        if (what < 160)
            link_action(&w, what, &b);
        else if (what < 200)
            end_action(&w, &b);
        else if (what < 208 && w.side[0].end_count < 20 && w.side[1].end_count < 20)
            world_connect(&w, what & 1, what >> 1 & 1, (what & 4) != 0, next(&b) * 100U);
        else if (what < 230)
            w.now += next(&b) * MN_MS;
        else if (what < 236)
            w.now += next(&b) * 100 * MN_MS;
        else if (what < 242)
            forge(&w, &b);
        else if (what < 245)
            flood(&w, next(&b), &b);
        else if (what < 250)
            mark(&w, &b);
        else
            w.no_buffer = (double)(what % 4) / 4;
        serve_both(&w);
    }
    w.no_buffer = 0;
    uint64_t steps = 0;
    for (close_all(&w, true); !is_quiet(&w); close_all(&w, steps < 100000)) {
        CHECK(world_step(&w));
        CHECK(++steps < 200000);
    }
    while (world_step(&w))
        CHECK(++steps < 200000);
    for (int i = 0; i < 2; i++) {
        CHECK_INT(mn_stack_stats(w.side[i].s)->tcp_time_wait, 0);
        CHECK_INT(mn_stack_stats(w.side[i].s)->ring_bytes, 0);
    }
    world_stop(&w);
    return 0;
}
