/* Any bytes as a filter blob; what loads is asked about addresses taken from the blob itself. */
#include "../filter/rules.h"

#include <stdlib.h>

static void ask(const struct mn_rules *r, const struct mn_ip *a, const struct mn_ip *b, uint16_t port)
{
    bool host = mn_rules_allow_host(r, a, b);
    for (unsigned proto = 0; proto < 256; proto += 5) {
        bool by_port = mn_rules_allow_port(r, (uint8_t)proto, a, b, port);
        bool whole = mn_rules_allow_proto(r, (uint8_t)proto, a, b);
        /* A rule for a port, or for all of them, is a rule for the hosts; one for all covers each. */
        if ((by_port && !host) || (whole && !by_port))
            abort();
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    struct mn_rules *r = mn_rules_load(data, len);
    if (r == NULL)
        return 0;
    for (size_t at = 0; at + 34 <= len && at < 400; at += 7) {
        struct mn_ip a, b;
        memcpy(a.b, data + at, 16);
        memcpy(b.b, data + at + 16, 16);
        ask(r, &a, &b, (uint16_t)(data[at + 32] | data[at + 33] << 8));
        ask(r, &b, &a, 80);
        ask(r, &a, &a, 65535);
    }
    mn_rules_free(r);
    return 0;
}
