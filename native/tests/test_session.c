/* Sessions: rotation, what may be received under which, padding, inner checks, fork. WG-09, 11, 12, 13, 22, 23, 28. */
#include <sys/wait.h>
#include <unistd.h>

#include "wg_pair.h"

/* Stand-ins: the table looks at nothing else. */
static struct mn_session *make(bool is_initiator, uint64_t born)
{
    struct mn_noise_keys keys = {{1}, {2}};
    struct mn_session *s = mn_session_create(mn_provider_get(), &keys, is_initiator, 1, 2, born);
    CHECK(s != NULL && keys.send[0] == 0 && keys.receive[0] == 0);
    return s;
}

static bool dropped_is(const struct mn_session_dropped *d, const struct mn_session *a, const struct mn_session *b)
{
    unsigned want = (a != NULL ? 1U : 0U) + (b != NULL ? 1U : 0U), found = 0;
    for (unsigned i = 0; i < d->count; i++)
        found += d->items[i] == a || d->items[i] == b;
    return d->count == want && found == want;
}

/* Every table row: next unset or set, we initiated or responded, confirmed or not. */
static void test_rotation_table(void)
{
    struct mn_session *p = make(true, 1), *c = make(true, 2), *n = make(false, 3), *m = make(true, 9);
    struct mn_session_dropped d = {.count = 0};
    struct mn_sessions t = {p, c, NULL};
    mn_sessions_initiated(&t, m, 5, &d); /* no next: current steps back, previous goes */
    CHECK(t.previous == c && t.current == m && t.next == NULL && dropped_is(&d, p, NULL));
    CHECK(!c->is_crossed);

    d.count = 0;
    t = (struct mn_sessions){p, c, n}; /* theirs unconfirmed: it steps back instead, current and previous go */
    mn_sessions_initiated(&t, m, 2, &d);
    CHECK(t.previous == n && t.current == m && t.next == NULL && dropped_is(&d, p, c));
    CHECK(n->is_crossed); /* made after we had asked */

    d.count = 0;
    t = (struct mn_sessions){p, c, n};
    mn_sessions_initiated(&t, m, 4, &d);
    CHECK(t.previous == n && !n->is_crossed); /* made before: an older matter */

    d.count = 0;
    t = (struct mn_sessions){p, c, NULL}; /* we responded: only next changes, previous goes */
    mn_sessions_responded(&t, n, &d);
    CHECK(t.previous == NULL && t.current == c && t.next == n && dropped_is(&d, p, NULL));

    d.count = 0;
    t = (struct mn_sessions){p, c, m};
    mn_sessions_responded(&t, n, &d);
    CHECK(t.previous == NULL && t.current == c && t.next == n && dropped_is(&d, p, m));

    d.count = 0;
    t = (struct mn_sessions){NULL, c, n}; /* confirmed by the first packet under next */
    CHECK(mn_sessions_confirm(&t, n, &d));
    CHECK(t.previous == c && t.current == n && t.next == NULL && dropped_is(&d, NULL, NULL));

    t = (struct mn_sessions){p, NULL, n};
    CHECK(mn_sessions_confirm(&t, n, &d));
    CHECK(t.previous == NULL && t.current == n && t.next == NULL && dropped_is(&d, p, NULL));

    d.count = 0;
    t = (struct mn_sessions){p, c, n}; /* packets under the others confirm nothing */
    CHECK(!mn_sessions_confirm(&t, c, &d) && !mn_sessions_confirm(&t, p, &d));
    CHECK(t.previous == p && t.current == c && t.next == n && dropped_is(&d, NULL, NULL));
    struct mn_session *all[] = {p, c, n, m};
    for (int i = 0; i < 4; i++)
        mn_session_free(all[i]);
}

static void test_converge_rule(void)
{
    struct mn_session *ours = make(true, 5), *theirs = make(false, 6);
    struct mn_sessions t = {theirs, ours, NULL};
    CHECK(!mn_sessions_converge(&t, theirs, true)); /* not crossed */
    theirs->is_crossed = true;
    CHECK(!mn_sessions_converge(&t, ours, true));
    CHECK(!mn_sessions_converge(&t, theirs, false));
    CHECK(t.current == ours && !theirs->is_crossed); /* decided once */
    theirs->is_crossed = true;
    CHECK(mn_sessions_converge(&t, theirs, true));
    CHECK(t.current == theirs && t.previous == ours);
    mn_session_free(ours);
    mn_session_free(theirs);
}

static void deliver_expect(struct node *n, const struct packet *p, int want)
{
    CHECK_INT(deliver(n, p), want);
}

/* Packets of the previous session are good for as long as its own 180 s last. */
static void test_previous_until_180s(void)
{
    struct pair *t = pair_start(30);
    struct packet early, late, last;
    pair_connect(t);
    CHECK(send_data(&t->a, t->pa, 1, 2, 64, &early) > 0);
    CHECK(send_data(&t->a, t->pa, 1, 2, 64, &late) > 0);
    CHECK(send_data(&t->a, t->pa, 1, 2, 64, &last) > 0);
    uint64_t born = peer_b(t)->sessions.current->born_ns;
    t->now = born + 100 * SEC;
    pair_connect(t);
    CHECK(peer_b(t)->sessions.previous != NULL);
    deliver_expect(&t->b, &early, 64);
    t->now = born + 180 * SEC - 1;
    deliver_expect(&t->b, &late, 64);
    t->now = born + 180 * SEC;
    deliver_expect(&t->b, &last, -MN_WG_DROP_EXPIRED);
    CHECK(mn_wg_has_session(t->a.wg, t->pa, t->now));
    pair_stop(t);
}

static void test_expires_at_180s(void)
{
    struct pair *t = pair_start(31);
    struct packet p;
    pair_connect(t);
    uint64_t born = peer_a(t)->sessions.current->born_ns;
    t->now = born + 180 * SEC - 1;
    CHECK(mn_wg_has_session(t->a.wg, t->pa, t->now));
    t->now = born + 180 * SEC;
    CHECK(!mn_wg_has_session(t->a.wg, t->pa, t->now));
    CHECK_INT(send_data(&t->a, t->pa, 1, 2, 64, &p), 0); /* staged, and asked for anew */
    (void)take_kind(&t->a, MN_WG_INITIATION);
    pair_stop(t);
}

/* The same counter twice is refused; the same counter under another session is another packet. */
static void test_replays(void)
{
    struct pair *t = pair_start(32);
    struct packet one, two, other;
    pair_connect(t);
    CHECK(send_data(&t->a, t->pa, 1, 2, 64, &one) > 0);
    CHECK(send_data(&t->a, t->pa, 1, 2, 64, &two) > 0);
    deliver_expect(&t->b, &two, 64);
    deliver_expect(&t->b, &one, 64); /* late is not a replay */
    deliver_expect(&t->b, &one, -MN_WG_DROP_REPLAY);
    deliver_expect(&t->b, &two, -MN_WG_DROP_REPLAY);
    t->now += 6 * SEC;
    pair_connect(t);
    CHECK(send_data(&t->a, t->pa, 1, 2, 64, &other) > 0);
    CHECK(memcmp(other.buf + 8, one.buf + 8, 8) == 0);
    deliver_expect(&t->b, &other, 64);
    deliver_expect(&t->b, &one, -MN_WG_DROP_REPLAY);
    deliver_expect(&t->b, &other, -MN_WG_DROP_REPLAY);
    pair_stop(t);
}

/* A forgery, even with a counter far ahead, moves no window. */
static void test_forged_data(void)
{
    struct pair *t = pair_start(33);
    struct packet p, bad;
    pair_connect(t);
    CHECK(send_data(&t->a, t->pa, 1, 2, 300, &p) > 0);
    for (size_t at = 4; at < p.len; at++) {
        bad = p;
        bad.buf[at] ^= 0x40;
        int got = deliver(&t->b, &bad);
        CHECK(at < 8 ? got == -MN_WG_DROP_INDEX : got == -MN_WG_DROP_AUTH || got == -MN_WG_DROP_REPLAY);
    }
    bad = p;
    bad.len -= 16;
    deliver_expect(&t->b, &bad, -MN_WG_DROP_AUTH);
    deliver_expect(&t->b, &p, 300);
    pair_stop(t);
}

/* A copy is delivered once, and the second proves the path it took; a forged one, or one nobody asks for, does not. */
static void test_copies(void)
{
    struct pair *t = pair_start(42);
    struct packet p, bad;
    pair_connect(t);
    CHECK(send_data(&t->a, t->pa, 1, 2, 64, &p) > 0);
    deliver_expect(&t->b, &p, 64);
    CHECK_INT(t->b.copied_count, 0);
    deliver_expect(&t->b, &p, -MN_WG_DROP_REPLAY);
    CHECK_INT(t->b.copied_count, 1);
    bad = p;
    bad.buf[p.len - 1] ^= 1;
    deliver_expect(&t->b, &bad, -MN_WG_DROP_REPLAY);
    CHECK_INT(t->b.copied_count, 1);
    t->b.wants_no_copy = true;
    deliver_expect(&t->b, &p, -MN_WG_DROP_REPLAY);
    CHECK_INT(t->b.copied_count, 1);
    pair_stop(t);
}

static void test_counter_limits(void)
{
    struct pair *t = pair_start(34);
    struct packet p, last;
    pair_connect(t);
    peer_a(t)->sessions.current->send_counter = MN_REKEY_AFTER_MESSAGES - 1;
    t->now += 6 * SEC;
    CHECK(send_data(&t->a, t->pa, 1, 2, 64, &p) > 0);
    check_silent(&t->a);
    CHECK(send_data(&t->a, t->pa, 1, 2, 64, &p) > 0); /* past 2^60: still sends, and asks for a new one */
    (void)take_kind(&t->a, MN_WG_INITIATION);
    deliver_expect(&t->b, &p, 64);
    peer_a(t)->sessions.current->send_counter = MN_REJECT_AFTER_MESSAGES - 1;
    CHECK(send_data(&t->a, t->pa, 1, 2, 64, &last) > 0);
    deliver_expect(&t->b, &last, 64);
    CHECK_INT(send_data(&t->a, t->pa, 1, 2, 64, &p), 0); /* none left */
    CHECK(!mn_wg_has_session(t->a.wg, t->pa, t->now));
    pair_stop(t);
}

static void test_padding(void)
{
    struct pair *t = pair_start(35);
    struct packet p;
    pair_connect(t);
    for (size_t len = 20; len <= 1281; len++) {
        size_t text = len > 1280 ? 1296 : (len + 15) / 16 * 16;
        CHECK_INT(send_data(&t->a, t->pa, 1, 2, len, &p), 32 + text);
        deliver_expect(&t->b, &p, (int)len);
    }
    pair_stop(t);
}

/* Padding never makes a packet longer than the mtu, even where that is no multiple of 16. */
static void test_padding_stops_at_mtu(void)
{
    uint64_t now = SEC;
    struct node n, m;
    struct mn_wg_config config = {.mtu = 1420};
    struct packet p;
    node_start(&n, 1, &now, &config);
    node_start(&m, 2, &now, &config);
    uint32_t pm = node_peer(&n, &m, 2);
    (void)node_peer(&m, &n, 1);
    CHECK_INT(mn_wg_kick(n.wg, pm, now), 0);
    deliver_expect(&m, take_kind(&n, MN_WG_INITIATION), 0);
    deliver_expect(&n, take_kind(&m, MN_WG_RESPONSE), 0);
    CHECK_INT(send_data(&n, pm, 1, 2, 1420, &p), 32 + 1420);
    deliver_expect(&m, &p, 1420);
    CHECK_INT(send_data(&n, pm, 1, 2, 1410, &p), 32 + 1420);
    CHECK_INT(send_data(&n, pm, 1, 2, 1408, &p), 32 + 1408);
    node_stop(&n);
    node_stop(&m);
}

/* Seal any bytes as a's session would, so that b opens what no honest stack sends. */
static int deliver_text(struct pair *t, const uint8_t *text, size_t len)
{
    struct packet p;
    memcpy(p.buf + 16, text, len);
    int n = mn_session_seal(peer_a(t)->sessions.current, p.buf, len);
    CHECK(n > 0);
    p.len = (size_t)n;
    return deliver(&t->b, &p);
}

static void test_inner_lengths(void)
{
    struct pair *t = pair_start(36);
    uint8_t text[1500] = {0}, *p = text;
    struct packet ok;
    pair_connect(t);
    put_inner(ok.buf, 1, 2, 100, 1);
    memcpy(text, ok.buf + 16, 100);
    CHECK_INT(deliver_text(t, p, 100), 100);  /* no padding at all */
    CHECK_INT(deliver_text(t, p, 1500), 100); /* far too much */
    CHECK_INT(deliver_text(t, p, 99), -MN_WG_DROP_INNER);
    CHECK_INT(deliver_text(t, p, 19), -MN_WG_DROP_INNER);
    CHECK_INT(deliver_text(t, p, 1), -MN_WG_DROP_INNER);
    p[2] = 0;
    p[3] = 19;
    CHECK_INT(deliver_text(t, p, 100), -MN_WG_DROP_INNER);
    p[3] = 20;
    CHECK_INT(deliver_text(t, p, 100), 20);
    p[2] = 0xff;
    p[3] = 0xff;
    CHECK_INT(deliver_text(t, p, 100), -MN_WG_DROP_INNER);
    for (unsigned version = 0; version < 16; version++) {
        p[0] = (uint8_t)(version << 4 | 5);
        p[2] = 0;
        p[3] = 20;
        if (version != 4 && version != 6)
            CHECK_INT(deliver_text(t, p, 100), -MN_WG_DROP_INNER);
    }
    struct mn_wg_peer_stats stats;
    CHECK_INT(mn_wg_peer_stats(t->b.wg, t->pb, &stats), 0);
    CHECK_INT(stats.drop_inner, 5 + 14);
    pair_stop(t);
}

static void test_inner_v6(void)
{
    struct pair *t = pair_start(37);
    struct mn_ip fd = {{0xfd, 0x7a, 0x11, 0x5c, 0xa1, 0xe0}}, mapped = inner_of(1);
    uint8_t text[200] = {0x60};
    pair_connect(t);
    fd.b[15] = 1;
    CHECK_INT(mn_wg_allow(t->b.wg, &fd, 128, t->pb), 0);
    memcpy(text + 8, fd.b, 16);
    text[5] = 60;
    CHECK_INT(deliver_text(t, text, 112), 100);
    text[5] = 0;
    CHECK_INT(deliver_text(t, text, 40), 40);
    CHECK_INT(deliver_text(t, text, 39), -MN_WG_DROP_INNER);
    text[4] = text[5] = 0xff; /* 65535 + 40 does not wrap to 39 */
    CHECK_INT(deliver_text(t, text, 112), -MN_WG_DROP_INNER);
    text[4] = text[5] = 0;
    memcpy(text + 8, mapped.b, 16); /* an IPv6 header that names an IPv4 address */
    CHECK_INT(deliver_text(t, text, 40), -MN_WG_DROP_SOURCE);
    pair_stop(t);
}

/* The source must be the sender's: not unknown, not another peer's, and not one it has lost. */
static void test_source_check(void)
{
    struct pair *t = pair_start(38);
    struct packet p;
    uint8_t key[32] = {42}, *inner, buf[PACKET];
    uint32_t other, peer;
    struct mn_path from = path_of(1, 1);
    struct mn_ip three = inner_of(3), one = inner_of(1);
    pair_connect(t);
    CHECK_INT(mn_wg_peer_add(t->b.wg, key, &other), 0);
    CHECK_INT(mn_wg_allow(t->b.wg, &three, 128, other), 0);
    CHECK(send_data(&t->a, t->pa, 9, 2, 100, &p) > 0);
    memcpy(buf, p.buf, p.len);
    CHECK_INT(mn_wg_input(t->b.wg, buf, p.len, &from, t->now, &inner, &peer), -MN_WG_DROP_SOURCE);
    CHECK_INT(peer, t->pb);
    CHECK(inner == NULL);
    CHECK(send_data(&t->a, t->pa, 3, 2, 100, &p) > 0);
    deliver_expect(&t->b, &p, -MN_WG_DROP_SOURCE);
    CHECK(send_data(&t->a, t->pa, 1, 2, 100, &p) > 0);
    deliver_expect(&t->b, &p, 100);
    CHECK_INT(mn_wg_allow(t->b.wg, &one, 128, other), 0); /* moved away */
    CHECK(send_data(&t->a, t->pa, 1, 2, 100, &p) > 0);
    deliver_expect(&t->b, &p, -MN_WG_DROP_SOURCE);
    CHECK_INT(mn_wg_allow(t->b.wg, &one, 128, t->pb), 0);
    CHECK(send_data(&t->a, t->pa, 1, 2, 100, &p) > 0);
    deliver_expect(&t->b, &p, 100);
    CHECK_INT(mn_wg_disallow_all(t->b.wg, t->pb), 0);
    CHECK(send_data(&t->a, t->pa, 1, 2, 100, &p) > 0);
    deliver_expect(&t->b, &p, -MN_WG_DROP_SOURCE);
    pair_stop(t);
}

/* A child can neither seal nor open nor ask; the parent goes on. */
static void test_fork(void)
{
    struct pair *t = pair_start(39);
    struct packet p, q;
    int status;
    pair_connect(t);
    CHECK(send_data(&t->b, t->pb, 2, 1, 64, &q) > 0);
    pid_t pid = fork();
    if (pid == 0) {
        bool dead = send_data(&t->a, t->pa, 1, 2, 64, &p) == -MN_WG_DROP_FORKED &&
                    deliver(&t->a, &q) == -MN_WG_DROP_FORKED && mn_wg_kick(t->a.wg, t->pa, t->now) == MN_WG_E_KEY;
        run_to(&t->a, t->now + 600 * SEC);
        _exit(dead && t->a.out_head == t->a.out_tail ? 0 : 1);
    }
    CHECK(pid > 0 && waitpid(pid, &status, 0) == pid);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    CHECK(send_data(&t->a, t->pa, 1, 2, 64, &p) > 0);
    deliver_expect(&t->b, &p, 64);
    deliver_expect(&t->a, &q, 64);
    pair_stop(t);
}

static void test_expire(void)
{
    struct pair *t = pair_start(40);
    struct packet p, q;
    pair_connect(t);
    CHECK(send_data(&t->b, t->pb, 2, 1, 64, &q) > 0);
    CHECK_INT(mn_wg_peer_expire(t->a.wg, t->pa), 0);
    CHECK_INT(send_data(&t->a, t->pa, 1, 2, 64, &p), 0);
    deliver_expect(&t->a, &q, 64);            /* still receives */
    (void)take_kind(&t->a, MN_WG_INITIATION); /* although the last handshake is not 5 s old */
    pair_stop(t);
}

int main(void)
{
    RUN(test_rotation_table);
    RUN(test_converge_rule);
    RUN(test_previous_until_180s);
    RUN(test_expires_at_180s);
    RUN(test_replays);
    RUN(test_copies);
    RUN(test_forged_data);
    RUN(test_counter_limits);
    RUN(test_padding);
    RUN(test_padding_stops_at_mtu);
    RUN(test_inner_lengths);
    RUN(test_inner_v6);
    RUN(test_source_check);
    RUN(test_fork);
    RUN(test_expire);
    return 0;
}
