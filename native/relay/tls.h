/* One TCP connection, with TLS or plain: bytes in, bytes out, never blocking.
 *
 * libssl reads and writes memory of the thread that serves the connection (struct mn_wires), so that one recv and one
 * send carry many records, and an idle connection keeps no buffer. What the kernel does not take at once waits here as
 * ciphertext. Used by the relay for its clients and by the engine for the relays it uses. */
#ifndef MN_RELAY_TLS_H
#define MN_RELAY_TLS_H

#include <openssl/types.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    MN_WIRE_IN = 128 << 10,
    MN_WIRE_OUT = 160 << 10,
    MN_TLS_PLAIN_MAX = 128 << 10, /* bytes of one mn_tls_write */
    MN_TLS_RECORD = 16 << 10,
    MN_TLS_RELAY_KEY = 32,
};

/* Buffers of one thread, lent to the stream that is being served. */
struct mn_tls;

struct mn_wires {
    uint8_t *in, *out;
    size_t in_at, in_len, out_len;
    const struct mn_tls *owner; /* of what is in `in` */
};

bool mn_wires_init(struct mn_wires *w);
void mn_wires_destroy(struct mn_wires *w);

struct mn_tls {
    int fd;
    SSL *ssl; /* NULL: plain */
    struct mn_wires *wires;
    uint8_t *left; /* ciphertext for the kernel */
    size_t left_at, left_len;
    bool is_shaken;              /* the handshake is done */
    bool has_ended;              /* the other side closed */
    uint64_t rx_bytes, tx_bytes; /* on the wire */
};

enum mn_tls_result {
    MN_TLS_OK = 0,
    MN_TLS_AGAIN = -1, /* come back when the descriptor is ready */
    MN_TLS_END = -2,   /* closed by the other side */
    MN_TLS_BROKEN = -3,
};

/* Takes fd over when it returns true. ctx NULL: plain. host: a client's server name, NULL for a server. verified: the
 * name its certificate must have, NULL: host. */
bool mn_tls_start(struct mn_tls *s, int fd, SSL_CTX *ctx, struct mn_wires *wires, bool is_client, const char *host,
                  const char *verified);
void mn_tls_stop(struct mn_tls *s);

/* Go on with the handshake: OK when it is done. */
enum mn_tls_result mn_tls_shake(struct mn_tls *s);
/* Fetch what the kernel has, at most cap bytes (or MN_WIRE_IN), once. OK: read it with mn_tls_read, until that
 * returns 0. */
enum mn_tls_result mn_tls_fetch(struct mn_tls *s, size_t cap);
/* Plain bytes of what was fetched; 0: no more; negative: MN_TLS_END or MN_TLS_BROKEN. */
ptrdiff_t mn_tls_read(struct mn_tls *s, uint8_t *out, size_t cap);
/* At most MN_TLS_PLAIN_MAX bytes, all of them taken; the handshake is done. AGAIN: the kernel did not take all, ask
 * mn_tls_can_write before the next large one. */
enum mn_tls_result mn_tls_write(struct mn_tls *s, const uint8_t *p, size_t n);
/* Offer the kernel what waits. OK: nothing waits any more. */
enum mn_tls_result mn_tls_flush(struct mn_tls *s);
static inline bool mn_tls_can_write(const struct mn_tls *s)
{
    return s->is_shaken && s->left == NULL;
}

/* ---- what the handshake told: metacert.c ---- */

/* The key of a relay that we dialled, from the last certificate of its chain; the handshake is done. False: not TLS
 * 1.3, or no such certificate. */
bool mn_tls_relay_key(const struct mn_tls *s, uint8_t key[static MN_TLS_RELAY_KEY]);
/* The same of one certificate. */
bool mn_metacert_key(const uint8_t *der, size_t len, uint8_t key[static MN_TLS_RELAY_KEY]);

/* ---- contexts: context.c ---- */

/* A server's: chain and key as PEM, and certificates in DER to append to the chain. NULL with a line in why. */
SSL_CTX *mn_tls_server_ctx(const char *pem, size_t pem_len, const uint8_t *extra, size_t extra_len,
                           char why[static 256]);
/* While ctx is in use, clients that ask for "acme-tls/1" meet the challenge's certificate, and no others do (RFC 8737).
 * Takes challenge over, to the end of ctx, when it returns true. */
bool mn_tls_set_challenge(SSL_CTX *ctx, SSL_CTX *challenge);
enum mn_tls_verify { MN_VERIFY_NAME, MN_VERIFY_NONE };
/* A client's: the system's roots and those of ca_file, which may be NULL. NONE: the caller looks at the certificate. */
SSL_CTX *mn_tls_client_ctx(const char *ca_file, enum mn_tls_verify verify, char why[static 256]);

#endif
