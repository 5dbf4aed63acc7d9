/* The chunks of what is out, against a model of single bytes; their bounds, and what hostile blocks may cost. */
#include "rig.h"

enum {
    A = MN_TCP_ACK,
    UNIT = 100,
    SPAN = 1 << 16,
};

/* What happened to each byte by its sequence number. */
enum fate {
    FREE,
    OUT,
    LOST,
    SACKED,
};

struct model {
    struct rig r;
    struct mn_conn *c;
    uint8_t fate[SPAN];
    uint32_t segment; /* first bytes of segments are multiples of this behind the very first */
    uint32_t base;
};

static struct model g_m;

static uint8_t *fate_of(struct model *m, uint32_t seq)
{
    return &m->fate[(seq - m->base) % SPAN];
}

static void start(struct model *m, uint32_t base)
{
    memset(m, 0, sizeof *m);
    rig_start(&m->r);
    struct rig_flow f = rig_accept(&m->r, (struct rig_open){.mss = UNIT, .sack = true});
    (void)f;
    m->c = m->r.s->slots[m->r.conn & (MN_MAX_CONNS - 1)].conn;
    struct mn_conn *c = m->c;
    m->base = base;
    c->snd.una = c->snd.nxt = c->snd.end = c->loss.recover = c->loss.farthest = base;
    CHECK_INT(c->snd.mss, UNIT);
}

static void stop(struct model *m)
{
    m->c->snd.una = m->c->snd.nxt = m->c->snd.end;
    rig_stop(&m->r);
}

/* Every byte as the model has it; chunks one behind the other; lists and sums complete; neighbours that are both
 * acknowledged are one. */
static void check(struct model *m)
{
    const struct mn_stack *s = m->r.s;
    const struct mn_sent *t = &m->c->sent;
    uint32_t seq = m->c->snd.una, sums[3] = {0}, listed = 0, times = 0;
    uint8_t before = MN_CHUNK_OUT;
    for (uint32_t i = 0; i < t->count; i++) {
        const struct mn_chunk *k = mn_sent_chunk(s, t->order[t->first + i]);
        CHECK_INT(k->seq, seq);
        CHECK(k->len > 0);
        for (uint32_t b = 0; b < k->len; b++)
            CHECK_INT(*fate_of(m, seq + b), k->state + OUT);
        CHECK(i == 0 || k->state != MN_CHUNK_SACKED || before != MN_CHUNK_SACKED);
        before = k->state;
        sums[k->state] += k->len;
        times += k->state != MN_CHUNK_SACKED;
        seq += k->len;
    }
    CHECK_INT(seq, m->c->snd.nxt);
    CHECK_INT(sums[MN_CHUNK_OUT], t->out);
    CHECK_INT(sums[MN_CHUNK_LOST], t->lost);
    CHECK_INT(sums[MN_CHUNK_SACKED], t->sacked);
    uint64_t at = 0;
    for (uint32_t id = t->out_first, last = 0; id != 0; last = id, id = mn_sent_chunk(s, id)->after, listed++) {
        CHECK_INT(mn_sent_chunk(s, id)->before, last);
        CHECK_INT(mn_sent_chunk(s, id)->state, MN_CHUNK_OUT);
        CHECK(mn_sent_chunk(s, id)->after != 0 || t->out_last == id);
    }
    for (uint32_t id = t->lost_first, last = 0; id != 0; last = id, id = mn_sent_chunk(s, id)->after, listed++) {
        CHECK_INT(mn_sent_chunk(s, id)->before, last);
        CHECK_INT(mn_sent_chunk(s, id)->state, MN_CHUNK_LOST);
        CHECK(mn_sent_chunk(s, id)->after != 0 || t->lost_last == id);
    }
    (void)at;
    CHECK_INT(listed, times);
}

static void send(struct model *m, uint32_t n)
{
    CHECK(mn_sent_ready(m->r.s, m->c));
    mn_sent_append(m->r.s, m->c, n);
    for (uint32_t i = 0; i < n; i++)
        *fate_of(m, m->c->snd.nxt + i) = OUT;
    m->c->snd.nxt += n;
    m->c->snd.end = m->c->snd.nxt;
}

static void sack(struct model *m, uint32_t first, uint32_t end)
{
    struct mn_delivery d = {0};
    uint32_t fresh = 0;
    mn_sent_sack(m->r.s, m->c, first, end, &d);
    for (uint32_t q = first; q != end; q++) {
        fresh += *fate_of(m, q) != SACKED;
        *fate_of(m, q) = SACKED;
    }
    CHECK_INT(d.bytes, fresh);
    CHECK_INT(d.sacked, fresh);
}

static void retire(struct model *m, uint32_t to)
{
    struct mn_delivery d = {0};
    uint32_t fresh = 0;
    for (uint32_t q = m->c->snd.una; q != to; q++) {
        fresh += *fate_of(m, q) != SACKED;
        *fate_of(m, q) = FREE;
    }
    mn_sent_retire(m->r.s, m->c, to, &d);
    m->c->snd.una = to;
    CHECK_INT(d.bytes, fresh);
}

static void lose_one(struct model *m, uint64_t which)
{
    const struct mn_sent *t = &m->c->sent;
    uint32_t id = t->order[t->first + which % t->count];
    const struct mn_chunk *k = mn_sent_chunk(m->r.s, id);
    if (k->state != MN_CHUNK_OUT)
        return;
    mn_sent_lose(m->r.s, m->c, id);
    for (uint32_t b = 0; b < k->len; b++)
        *fate_of(m, k->seq + b) = LOST;
}

static void resend(struct model *m, uint64_t segments)
{
    uint32_t id = m->c->sent.lost_first;
    if (id == 0)
        return;
    const struct mn_chunk *k = mn_sent_chunk(m->r.s, id);
    uint32_t n = (uint32_t)(1 + segments % 5) * UNIT;
    n = n < k->len ? n : k->len;
    for (uint32_t b = 0; b < n; b++)
        *fate_of(m, k->seq + b) = OUT;
    mn_sent_resent(m->r.s, m->c, id, n);
}

static void turn_all(struct model *m, uint8_t from, uint8_t to)
{
    for (uint32_t q = m->c->snd.una; q != m->c->snd.nxt; q++)
        if (*fate_of(m, q) == from)
            *fate_of(m, q) = to;
}

static void test_against_bytes(void)
{
    for (uint32_t seed = 1; seed <= 40; seed++) {
        struct model *m = &g_m;
        uint64_t rng = seed;
        start(m, seed % 2 == 0 ? 12345 : 0U - 20000); /* odd ones wrap */
        for (int i = 0; i < 1500 / MN_TEST_SLOW; i++) {
            const struct mn_conn *c = m->c;
            uint32_t out = c->snd.nxt - c->snd.una, segments = out / UNIT;
            uint64_t x = test_random(&rng), y = test_random(&rng);
            switch (x % 8) {
            case 0:
            case 1:
                m->r.s->now += y % 3 == 0 ? 0 : 1000;
                if (out < SPAN / 2)
                    send(m, UNIT * (uint32_t)(1 + y % 20));
                break;
            case 2:
            case 3:
            case 4:
                if (segments > 1) {
                    uint32_t a = (uint32_t)(y % segments), b = a + 1 + (uint32_t)((y >> 20) % 4);
                    b = b < segments ? b : segments;
                    sack(m, c->snd.una + a * UNIT, c->snd.una + b * UNIT);
                }
                break;
            case 5:
                if (c->sent.count > 0)
                    lose_one(m, y);
                break;
            case 6:
                resend(m, y);
                break;
            default:
                if (y % 40 == 0) {
                    mn_sent_lose_old(m->r.s, m->c, UINT64_MAX);
                    turn_all(m, OUT, LOST);
                } else if (y % 40 == 1) {
                    mn_sent_unlose(m->r.s, m->c);
                    turn_all(m, LOST, OUT);
                } else if (y % 40 == 2) {
                    mn_sent_forget_sacks(m->r.s, m->c);
                    turn_all(m, SACKED, LOST);
                    check(m);
                } else if (segments > 0) {
                    retire(m, c->snd.una + (uint32_t)(1 + y % (segments < 6 ? segments : 6)) * UNIT);
                }
                break;
            }
            if (i % 8 == 0)
                check(m);
        }
        retire(m, m->c->snd.nxt);
        CHECK_INT(m->c->sent.count, 0);
        CHECK_INT(m->r.s->chunks.used, 0);
        stop(m);
    }
}

/* Blocks that cover no whole segment are not believed: nobody makes us send single bytes. */
static void test_blocks_within_segments(void)
{
    struct model *m = &g_m;
    start(m, 5000);
    send(m, 10 * UNIT);
    struct mn_delivery d = {0};
    mn_sent_sack(m->r.s, m->c, 5001, 5000 + UNIT, &d);
    mn_sent_sack(m->r.s, m->c, 5250, 5290, &d);
    CHECK_INT(d.bytes, 0);
    CHECK_INT(m->c->sent.count, 1);
    mn_sent_sack(m->r.s, m->c, 5250, 5450, &d); /* one whole segment lies in it */
    CHECK_INT(d.bytes, UNIT);
    CHECK_INT(m->c->sent.count, 3);
    CHECK_INT(mn_sent_chunk(m->r.s, m->c->sent.order[m->c->sent.first + 1])->seq, 5300);
    stop(m);
}

/* Every other segment acknowledged, from far to near: the number of chunks stays bounded, all are freed. */
static void test_bounded_chunks(void)
{
    struct model *m = &g_m;
    start(m, 7);
    struct mn_conn *c = m->c;
    for (uint32_t i = 0; i < 400; i++) {
        CHECK(mn_sent_ready(m->r.s, c));
        mn_sent_append(m->r.s, c, 50 * UNIT);
        c->snd.nxt += 50 * UNIT;
        m->r.s->now++;
    }
    c->snd.end = c->snd.nxt;
    struct mn_delivery d = {0};
    for (uint32_t at = c->snd.nxt - UNIT; mn_seq_lt(c->snd.una, at); at -= 2 * UNIT)
        mn_sent_sack(m->r.s, c, at, at + UNIT, &d);
    CHECK_INT(c->sent.count, MN_SENT_MAX);
    CHECK(d.bytes >= (MN_SENT_MAX - 400) / 2 * UNIT);
    /* One that is full still sends, as part of its last chunk, or waits. */
    mn_sent_lose(m->r.s, c, c->sent.out_first);
    while (c->sent.lost_first != 0)
        mn_sent_resent(m->r.s, c, c->sent.lost_first, UNIT);
    CHECK(!mn_sent_ready(m->r.s, c)); /* the last is acknowledged */
    mn_sent_retire(m->r.s, c, c->snd.nxt, &d);
    c->snd.una = c->snd.nxt;
    CHECK_INT(m->r.s->chunks.used, 0);
    CHECK(mn_sent_ready(m->r.s, c));
    stop(m);
}

/* Chunks count as memory of the stack: where there is no more they stay coarse, and what was taken comes back. */
static void test_chunks_are_charged(void)
{
    struct model *m = &g_m;
    for (int is_small = 0; is_small < 2; is_small++) {
        start(m, 7);
        struct mn_stack *s = m->r.s;
        struct mn_conn *c = m->c;
        s->cfg.memory_max = is_small != 0 ? 100 * sizeof(struct mn_chunk) : s->cfg.memory_max;
        for (uint32_t i = 0; i < 400; i++) {
            CHECK(mn_sent_ready(s, c));
            mn_sent_append(s, c, 50 * UNIT);
            c->snd.nxt += 50 * UNIT;
            s->now++;
        }
        c->snd.end = c->snd.nxt;
        CHECK(s->stats.ring_bytes <= s->cfg.memory_max);
        CHECK_INT(s->stats.ring_bytes,
                  (c->sent.count - 1) * sizeof(struct mn_chunk) + (c->sent.room - 16) * sizeof *c->sent.order);
        CHECK(is_small != 0 ? c->sent.count < 100 && s->stats.memory_refused > 0 : c->sent.count == 400);
        struct mn_delivery d = {0};
        for (uint32_t at = c->snd.una + UNIT; mn_seq_lt(at, c->snd.nxt); at += 2 * UNIT)
            mn_sent_sack(s, c, at, at + UNIT, &d);
        CHECK(s->stats.ring_bytes <= s->cfg.memory_max);
        mn_sent_retire(s, c, c->snd.nxt, &d);
        c->snd.una = c->snd.nxt;
        CHECK_INT(d.bytes, 400 * 50 * UNIT);
        CHECK(s->chunks.slab_count <= 16); /* the rest went back to the system */
        mn_sent_free(s, c);
        CHECK_INT(s->stats.ring_bytes, 0);
        stop(m);
    }
}

/* Small writes without an ACK: the last chunk takes them all once there is no room. */
static void test_many_small_writes(void)
{
    struct model *m = &g_m;
    start(m, 7);
    struct mn_conn *c = m->c;
    for (uint32_t i = 0; i < MN_SENT_MAX + 1000; i++) {
        CHECK(mn_sent_ready(m->r.s, c));
        mn_sent_append(m->r.s, c, 3);
        c->snd.nxt += 3;
        m->r.s->now++;
    }
    c->snd.end = c->snd.nxt;
    CHECK_INT(c->sent.count, MN_SENT_MAX);
    CHECK_INT(c->sent.out, c->snd.nxt - c->snd.una);
    struct mn_delivery d = {0};
    mn_sent_sack(m->r.s, c, c->snd.nxt - 300, c->snd.nxt - 3, &d); /* within the last: unknown segments */
    CHECK_INT(d.bytes, 0);
    mn_sent_sack(m->r.s, c, c->snd.una + 3, c->snd.nxt, &d);
    CHECK_INT(d.bytes, c->snd.nxt - c->snd.una - 3);
    CHECK_INT(c->sent.count, 2);
    stop(m);
}

int main(void)
{
    RUN(test_against_bytes);
    RUN(test_blocks_within_segments);
    RUN(test_bounded_chunks);
    RUN(test_chunks_are_charged);
    RUN(test_many_small_writes);
    return 0;
}
