/* SYNs to one address and port as fast as asked, for tests/bench/flood.py.
 *
 *   syn_flood SOURCE TARGET PORT RATE SECONDS     prints how many left
 * Every segment has another source port and sequence number; who answers them is dropped by a rule outside. */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { BATCH = 64 };

static uint64_t now_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000ull + (uint64_t)ts.tv_nsec;
}

static uint16_t checksum(const struct tcphdr *t, struct in_addr from, struct in_addr to)
{
    uint8_t buf[12 + sizeof *t];
    uint32_t sum = 0;
    memcpy(buf, &from, 4);
    memcpy(buf + 4, &to, 4);
    buf[8] = 0;
    buf[9] = IPPROTO_TCP;
    buf[10] = 0;
    buf[11] = sizeof *t;
    memcpy(buf + 12, t, sizeof *t);
    for (size_t i = 0; i < sizeof buf; i += 2)
        sum += (uint32_t)buf[i] << 8 | buf[i + 1];
    while (sum > 0xffff)
        sum = (sum & 0xffff) + (sum >> 16);
    return htons((uint16_t)~sum);
}

int main(int argc, char **argv)
{
    struct sockaddr_in to = {.sin_family = AF_INET};
    struct in_addr from;
    if (argc != 6 || inet_pton(AF_INET, argv[1], &from) != 1 || inet_pton(AF_INET, argv[2], &to.sin_addr) != 1) {
        fprintf(stderr, "usage: syn_flood SOURCE TARGET PORT RATE SECONDS\n");
        return 2;
    }
    uint16_t port = (uint16_t)atoi(argv[3]);
    double rate = atof(argv[4]);
    int fd = socket(AF_INET, SOCK_RAW, IPPROTO_TCP);
    if (fd < 0) {
        perror("socket");
        return 1;
    }
    uint64_t began = now_ns(), end = began + (uint64_t)(atof(argv[5]) * 1e9), sent = 0, seed = began | 1;
    while (now_ns() < end) {
        struct tcphdr t[BATCH];
        struct iovec iov[BATCH];
        struct mmsghdr m[BATCH];
        for (int i = 0; i < BATCH; i++) {
            seed = seed * 6364136223846793005ull + 1442695040888963407ull;
            t[i] = (struct tcphdr){.source = htons((uint16_t)(1024 + (seed >> 33) % 64000)), .dest = htons(port)};
            t[i].seq = (uint32_t)(seed >> 24);
            t[i].doff = sizeof t[i] / 4;
            t[i].syn = 1;
            t[i].window = 0xffff;
            t[i].check = checksum(&t[i], from, to.sin_addr);
            iov[i] = (struct iovec){&t[i], sizeof t[i]};
            m[i].msg_hdr =
                (struct msghdr){.msg_name = &to, .msg_namelen = sizeof to, .msg_iov = &iov[i], .msg_iovlen = 1};
        }
        int n = sendmmsg(fd, m, BATCH, 0);
        sent += n > 0 ? (uint64_t)n : 0;
        double due = (double)sent / rate * 1e9, passed = (double)(now_ns() - began);
        if (due > passed)
            usleep((useconds_t)((due - passed) / 1000));
    }
    printf("%llu\n", (unsigned long long)sent);
    return 0;
}
