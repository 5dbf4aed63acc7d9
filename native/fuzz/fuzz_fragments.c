/* Pieces of datagrams as the fuzzer cuts, repeats and contradicts them: whatever comes out whole is what its pieces
 * held, and no more memory is used than the bound. */
#include "../ip/fragments.h"
#include "../tests/check.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    static uint8_t pkt[2048];
    struct mn_fragments f = {0};
    uint64_t now = 0;
    for (; len >= 6; data += 6, len -= 6) {
        bool v6 = (data[0] & 1) != 0, more = (data[0] & 2) != 0;
        uint32_t id = data[0] >> 2 & 7, peer = data[0] >> 5;
        uint32_t at = (data[1] < 200 ? data[1] % 32 * 160U : data[1] * 256U + data[2]) & 0xfff8;
        uint32_t n = data[2] < 200 ? 160 : data[3] * 8U + data[2] % 8;
        now += (data[4] < 250 ? data[4] : data[4] * 10000ULL) * 1000000ULL;
        n = n > 1500 ? 1500 : n;
        struct mn_ip a =
            v6 ? mn_ip_from6((const uint8_t[16]){0xfd, [15] = 2}) : mn_ip_from4((const uint8_t[4]){100, 64, 0, 2});
        struct mn_ip b =
            v6 ? mn_ip_from6((const uint8_t[16]){0xfd, [15] = 1}) : mn_ip_from4((const uint8_t[4]){100, 64, 0, 1});
        uint8_t proto = data[5] < 200 ? MN_PROTO_UDP : data[5];
        size_t at_payload = mn_packet_write_header(pkt, &a, &b, v6 ? 44 : proto, v6 ? n + 8 : n);
        if (v6) {
            memset(pkt + at_payload, 0, 8);
            pkt[at_payload] = proto;
            mn_store16(pkt + at_payload + 2, at | (more ? 1 : 0));
            mn_store32(pkt + at_payload + 4, id);
            at_payload += 8;
        } else {
            mn_store16(pkt + 4, id);
            mn_store16(pkt + 6, at / 8 | (more ? 0x2000U : 0));
            mn_store16(pkt + 10, 0);
            mn_csum_store(pkt + 10, mn_csum_add(0, pkt, 20));
        }
        for (uint32_t i = 0; i < n; i++)
            pkt[at_payload + i] = (uint8_t)((at + i) * 31 + id + peer * 7);
        struct mn_packet p, whole;
        const uint8_t *out;
        size_t size;
        if (mn_packet_parse(&p, pkt, at_payload + n) != 0 || !p.is_fragment)
            continue;
        if (f.whole_count == MN_FRAGMENTS_WHOLE || data[5] % 16 == 0)
            mn_fragments_release(&f);
        bool is_whole = mn_fragments_take(&f, peer, &p, now, &out, &size);
        CHECK(f.bytes <= MN_FRAGMENTS_BYTES);
        if (!is_whole)
            continue;
        size_t header = mn_packet_header_len(&a);
        CHECK(size > header && size <= 65535 + MN_IP6_HEADER);
        for (uint32_t i = 0; i < size - header; i++)
            CHECK(out[header + i] == (uint8_t)(i * 31 + id + peer * 7));
        (void)mn_packet_parse(&whole, out, size);
    }
    mn_fragments_free(&f);
    return 0;
}
