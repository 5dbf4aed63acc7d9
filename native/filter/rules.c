/* Rules as intervals: the sources of a rule become sorted, disjoint address ranges per family (a binary search each),
 * its destinations, of which there are few, stay a list. */
#include "rules.h"

#include <stdlib.h>

struct range {
    struct mn_ip first, last;
};

struct ranges {
    struct range *at;
    uint32_t n;
};

struct target {
    struct mn_ip prefix;
    uint8_t bits;
    uint16_t first, last;
};

struct rule {
    uint64_t protos[4]; /* bit per protocol */
    bool matches_any_proto;
    struct ranges sources;
    struct target *targets;
    uint32_t target_count;
};

struct mn_rules {
    struct rule *rules;
    uint32_t count;
    struct ranges jailed;
    struct range *range_pool;
    struct target *target_pool;
};

/* ---- reading ---- */

struct cursor {
    const uint8_t *p;
    size_t left;
};

static const uint8_t *take(struct cursor *c, size_t n)
{
    if (n > c->left)
        return NULL;
    const uint8_t *p = c->p;
    c->p += n;
    c->left -= n;
    return p;
}

static bool take32(struct cursor *c, uint32_t *v)
{
    const uint8_t *p = take(c, 4);
    if (p == NULL)
        return false;
    *v = p[0] | ((uint32_t)p[1] << 8) | ((uint32_t)p[2] << 16) | ((uint32_t)p[3] << 24);
    return true;
}

static uint16_t get16(const uint8_t *p)
{
    return (uint16_t)(p[0] | (p[1] << 8));
}

enum {
    SOURCE_SIZE = 17,
    TARGET_SIZE = 21,
    RULE_HEAD = 5,
};

/* One rule's raw parts, proved to lie within the blob. */
struct raw_rule {
    uint8_t n_protos;
    uint16_t n_src, n_dst;
    const uint8_t *protos, *src, *dst;
};

static bool take_rule(struct cursor *c, struct raw_rule *r)
{
    const uint8_t *head = take(c, RULE_HEAD);
    if (head == NULL)
        return false;
    r->n_protos = head[0];
    r->n_src = get16(head + 1);
    r->n_dst = get16(head + 3);
    r->protos = take(c, r->n_protos);
    r->src = take(c, (size_t)r->n_src * SOURCE_SIZE);
    r->dst = take(c, (size_t)r->n_dst * TARGET_SIZE);
    return r->protos != NULL && r->src != NULL && r->dst != NULL;
}

static bool prefixes_are_valid(const uint8_t *p, size_t n, size_t stride)
{
    for (size_t i = 0; i < n; i++)
        if (p[i * stride + 16] > 128)
            return false;
    return true;
}

static bool targets_are_valid(const uint8_t *p, size_t n)
{
    if (!prefixes_are_valid(p, n, TARGET_SIZE))
        return false;
    for (size_t i = 0; i < n; i++)
        if (get16(p + i * TARGET_SIZE + 17) > get16(p + i * TARGET_SIZE + 19))
            return false;
    return true;
}

struct totals {
    uint32_t rules;
    size_t sources, targets;
    uint32_t jailed;
};

/* First pass: prove everything, count what to allocate. */
static bool survey(struct cursor c, struct totals *t)
{
    uint32_t magic;
    memset(t, 0, sizeof *t);
    if (!take32(&c, &magic) || magic != MN_FILTER_MAGIC || !take32(&c, &t->rules) || t->rules > MN_FILTER_MAX_RULES)
        return false;
    for (uint32_t i = 0; i < t->rules; i++) {
        struct raw_rule r;
        if (!take_rule(&c, &r) || !prefixes_are_valid(r.src, r.n_src, SOURCE_SIZE) ||
            !targets_are_valid(r.dst, r.n_dst))
            return false;
        t->sources += r.n_src;
        t->targets += r.n_dst;
    }
    if (!take32(&c, &t->jailed) || t->jailed > c.left / SOURCE_SIZE || c.left != (size_t)t->jailed * SOURCE_SIZE)
        return false;
    return prefixes_are_valid(c.p, t->jailed, SOURCE_SIZE);
}

/* ---- compiling ---- */

/* IPv4 addresses lie inside the IPv6 space here, so a wide IPv6 prefix must be kept from covering them. */
static bool families_agree(const struct mn_ip *prefix, unsigned bits, const struct mn_ip *a)
{
    return mn_ip_is4(a) == (bits >= 96 && mn_ip_is4(prefix));
}

static struct range to_range(const uint8_t *p)
{
    struct range r;
    unsigned bits = p[16];
    for (unsigned i = 0; i < 16; i++) {
        unsigned kept = bits >= 8 * (i + 1) ? 8 : bits > 8 * i ? bits - 8 * i : 0;
        uint8_t mask = (uint8_t)(0xff00U >> kept);
        r.first.b[i] = p[i] & mask;
        r.last.b[i] = (uint8_t)((p[i] & mask) | (uint8_t)~mask);
    }
    return r;
}

static int compare_ranges(const void *a, const void *b)
{
    const struct range *x = a, *y = b;
    int c = memcmp(x->first.b, y->first.b, 16);
    return c != 0 ? c : memcmp(y->last.b, x->last.b, 16);
}

/* Cut the mapped IPv4 block out of a range that covers it from above: 0, 1 or 2 pieces, all IPv6. */
static uint32_t add_range(struct range *out, const uint8_t *p)
{
    static const struct mn_ip below = {{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xfe, 0xff, 0xff, 0xff, 0xff}};
    static const struct mn_ip above = {{0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0}};
    struct range r = to_range(p);
    struct mn_ip mapped;
    memset(&mapped, 0, sizeof mapped);
    memcpy(mapped.b, mn_ip4_prefix, sizeof mn_ip4_prefix);
    if (p[16] >= 96 || memcmp(r.first.b, mapped.b, 16) > 0 || memcmp(r.last.b, mapped.b, 16) < 0) {
        out[0] = r;
        return 1;
    }
    uint32_t n = 0;
    if (memcmp(r.first.b, below.b, 16) <= 0)
        out[n++] = (struct range){r.first, below};
    if (memcmp(above.b, r.last.b, 16) <= 0)
        out[n++] = (struct range){above, r.last};
    return n;
}

/* Sort, and drop what lies inside another: prefixes nest or are disjoint, so nothing else can overlap... except the
 * pieces left by add_range, which the same merge covers. */
static void close_ranges(struct ranges *rs)
{
    if (rs->n == 0)
        return;
    qsort(rs->at, rs->n, sizeof *rs->at, compare_ranges);
    uint32_t kept = 1;
    for (uint32_t i = 1; i < rs->n; i++) {
        struct range *top = &rs->at[kept - 1];
        if (memcmp(rs->at[i].first.b, top->last.b, 16) <= 0) {
            if (memcmp(rs->at[i].last.b, top->last.b, 16) > 0)
                top->last = rs->at[i].last;
        } else {
            rs->at[kept++] = rs->at[i];
        }
    }
    rs->n = kept;
}

static bool ranges_contain(const struct ranges *rs, const struct mn_ip *a)
{
    uint32_t lo = 0, hi = rs->n;
    while (lo < hi) {
        uint32_t mid = lo + (hi - lo) / 2;
        if (memcmp(rs->at[mid].last.b, a->b, 16) < 0)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo < rs->n && memcmp(rs->at[lo].first.b, a->b, 16) <= 0;
}

static struct range *fill_ranges(struct ranges *rs, struct range *pool, const uint8_t *p, size_t n)
{
    rs->at = pool;
    for (size_t i = 0; i < n; i++)
        rs->n += add_range(rs->at + rs->n, p + i * SOURCE_SIZE);
    struct range *end = pool + rs->n;
    close_ranges(rs);
    return end;
}

static struct target *fill_targets(struct rule *r, struct target *pool, const uint8_t *p, size_t n)
{
    r->targets = pool;
    r->target_count = (uint32_t)n;
    for (size_t i = 0; i < n; i++, p += TARGET_SIZE) {
        memcpy(pool[i].prefix.b, p, 16);
        pool[i].bits = p[16];
        pool[i].first = get16(p + 17);
        pool[i].last = get16(p + 19);
    }
    return pool + n;
}

static void compile(struct mn_rules *rs, struct cursor c)
{
    uint32_t ignored;
    struct range *ranges = rs->range_pool;
    struct target *targets = rs->target_pool;
    take32(&c, &ignored);
    take32(&c, &ignored);
    for (uint32_t i = 0; i < rs->count; i++) {
        struct raw_rule raw;
        struct rule *r = &rs->rules[i];
        if (!take_rule(&c, &raw))
            return;
        for (unsigned k = 0; k < raw.n_protos; k++)
            r->protos[raw.protos[k] / 64] |= 1ULL << (raw.protos[k] % 64);
        r->matches_any_proto = raw.n_protos > 0;
        ranges = fill_ranges(&r->sources, ranges, raw.src, raw.n_src);
        targets = fill_targets(r, targets, raw.dst, raw.n_dst);
    }
    uint32_t jailed = 0;
    take32(&c, &jailed);
    fill_ranges(&rs->jailed, ranges, c.p, jailed);
}

struct mn_rules *mn_rules_load(const uint8_t *blob, size_t len)
{
    struct totals t;
    struct cursor c = {blob, len};
    if (len > MN_FILTER_MAX_BLOB || !survey(c, &t))
        return NULL;
    struct mn_rules *rs = calloc(1, sizeof *rs);
    if (rs == NULL)
        return NULL;
    rs->count = t.rules;
    rs->rules = calloc((size_t)t.rules + 1, sizeof *rs->rules);
    rs->range_pool = calloc((t.sources + t.jailed) * 2 + 1, sizeof *rs->range_pool);
    rs->target_pool = calloc(t.targets + 1, sizeof *rs->target_pool);
    if (rs->rules == NULL || rs->range_pool == NULL || rs->target_pool == NULL) {
        mn_rules_free(rs);
        return NULL;
    }
    compile(rs, c);
    return rs;
}

void mn_rules_free(struct mn_rules *r)
{
    if (r == NULL)
        return;
    free(r->rules);
    free(r->range_pool);
    free(r->target_pool);
    free(r);
}

/* ---- deciding ---- */

enum question {
    ASK_PORT,
    ASK_HOST,
    ASK_ALL_PORTS,
};

static bool target_matches(const struct target *t, enum question q, const struct mn_ip *dst, uint16_t port)
{
    if (q == ASK_PORT && (port < t->first || port > t->last))
        return false;
    if (q == ASK_ALL_PORTS && (t->first != 0 || t->last != 0xffff))
        return false;
    return families_agree(&t->prefix, t->bits, dst) && mn_ip_in_prefix(dst, &t->prefix, t->bits);
}

static bool rule_matches(const struct rule *r, enum question q, uint8_t proto, const struct mn_ip *src,
                         const struct mn_ip *dst, uint16_t port)
{
    if (q == ASK_HOST ? !r->matches_any_proto : (r->protos[proto / 64] >> (proto % 64) & 1) == 0)
        return false;
    for (uint32_t i = 0; i < r->target_count; i++)
        if (target_matches(&r->targets[i], q, dst, port))
            return ranges_contain(&r->sources, src);
    return false;
}

static bool allows(const struct mn_rules *rs, enum question q, uint8_t proto, const struct mn_ip *src,
                   const struct mn_ip *dst, uint16_t port)
{
    if (rs == NULL || ranges_contain(&rs->jailed, src))
        return false;
    for (uint32_t i = 0; i < rs->count; i++)
        if (rule_matches(&rs->rules[i], q, proto, src, dst, port))
            return true;
    return false;
}

bool mn_rules_allow_port(const struct mn_rules *r, uint8_t proto, const struct mn_ip *src, const struct mn_ip *dst,
                         uint16_t port)
{
    return allows(r, ASK_PORT, proto, src, dst, port);
}

bool mn_rules_allow_host(const struct mn_rules *r, const struct mn_ip *src, const struct mn_ip *dst)
{
    return allows(r, ASK_HOST, 0, src, dst, 0);
}

bool mn_rules_allow_proto(const struct mn_rules *r, uint8_t proto, const struct mn_ip *src, const struct mn_ip *dst)
{
    return allows(r, ASK_ALL_PORTS, proto, src, dst, 0);
}
