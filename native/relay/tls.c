/* libssl over memory, the descriptor beside it. */
#include "tls.h"

#include <errno.h>
#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

bool mn_wires_init(struct mn_wires *w)
{
    *w = (struct mn_wires){.in = malloc(MN_WIRE_IN), .out = malloc(MN_WIRE_OUT)};
    if (w->in != NULL && w->out != NULL)
        return true;
    mn_wires_destroy(w);
    return false;
}

void mn_wires_destroy(struct mn_wires *w)
{
    free(w->in);
    free(w->out);
    *w = (struct mn_wires){0};
}

/* ---- the BIO: the wires of the thread ---- */

static int wire_read(BIO *b, char *out, int n)
{
    struct mn_tls *s = BIO_get_data(b);
    struct mn_wires *w = s->wires;
    size_t here = w->owner == s ? w->in_len - w->in_at : 0, k = (size_t)n < here ? (size_t)n : here;
    BIO_clear_retry_flags(b);
    if (k == 0) {
        if (!s->has_ended)
            BIO_set_retry_read(b);
        return s->has_ended ? 0 : -1;
    }
    memcpy(out, w->in + w->in_at, k);
    w->in_at += k;
    return (int)k;
}

static int wire_write(BIO *b, const char *p, int n)
{
    struct mn_tls *s = BIO_get_data(b);
    struct mn_wires *w = s->wires;
    BIO_clear_retry_flags(b);
    if ((size_t)n > MN_WIRE_OUT - w->out_len)
        return -1; /* cannot be: a write is bounded, and the wire was empty */
    memcpy(w->out + w->out_len, p, (size_t)n);
    w->out_len += (size_t)n;
    return n;
}

static long wire_ctrl(BIO *b, int cmd, long num, void *ptr)
{
    (void)b;
    (void)num;
    (void)ptr;
    return cmd == BIO_CTRL_FLUSH || cmd == BIO_CTRL_DUP;
}

/* Made once per process and never freed: connections of every relay and engine use it. */
static const BIO_METHOD *wire_method(void)
{
    static BIO_METHOD *made; /* constant once set */
    if (__atomic_load_n(&made, __ATOMIC_ACQUIRE) == NULL) {
        BIO_METHOD *m = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "meshnode wire");
        if (m == NULL)
            return NULL;
        BIO_meth_set_read(m, wire_read);
        BIO_meth_set_write(m, wire_write);
        BIO_meth_set_ctrl(m, wire_ctrl);
        BIO_METHOD *none = NULL;
        if (!__atomic_compare_exchange_n(&made, &none, m, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
            BIO_meth_free(m);
    }
    return __atomic_load_n(&made, __ATOMIC_ACQUIRE);
}

/* ---- life ---- */

static SSL *make_ssl(struct mn_tls *s, SSL_CTX *ctx, bool is_client, const char *host, const char *verified)
{
    const BIO_METHOD *method = wire_method();
    SSL *ssl = SSL_new(ctx);
    BIO *bio = method != NULL ? BIO_new(method) : NULL;
    if (ssl == NULL || bio == NULL) {
        SSL_free(ssl);
        BIO_free(bio);
        return NULL;
    }
    BIO_set_data(bio, s);
    BIO_set_init(bio, 1);
    SSL_set_bio(ssl, bio, bio);
    if (!is_client) {
        SSL_set_accept_state(ssl);
        return ssl;
    }
    SSL_set_connect_state(ssl);
    if (host == NULL)
        return ssl;
    if (verified == NULL)
        verified = host;
    X509_VERIFY_PARAM *p = SSL_get0_param(ssl);
    ASN1_OCTET_STRING *address = a2i_IPADDRESS(host);
    bool is_named = address != NULL || SSL_set_tlsext_host_name(ssl, host) == 1; /* an address is no server name */
    ASN1_OCTET_STRING_free(address);
    bool is_checked = X509_VERIFY_PARAM_set1_ip_asc(p, verified) == 1 || SSL_set1_host(ssl, verified) == 1;
    ERR_clear_error();
    if (is_named && is_checked)
        return ssl;
    SSL_free(ssl);
    return NULL;
}

bool mn_tls_start(struct mn_tls *s, int fd, SSL_CTX *ctx, struct mn_wires *wires, bool is_client, const char *host,
                  const char *verified)
{
    *s = (struct mn_tls){.fd = fd, .wires = wires, .is_shaken = ctx == NULL};
    if (ctx == NULL)
        return true;
    s->ssl = make_ssl(s, ctx, is_client, host, verified);
    return s->ssl != NULL;
}

void mn_tls_stop(struct mn_tls *s)
{
    if (s->ssl != NULL)
        SSL_free(s->ssl);
    if (s->fd >= 0)
        close(s->fd);
    free(s->left);
    *s = (struct mn_tls){.fd = -1};
}

/* ---- the wire ---- */

static enum mn_tls_result send_some(struct mn_tls *s, const uint8_t *p, size_t n, size_t *done)
{
    *done = 0;
    while (*done < n) {
        ssize_t k = send(s->fd, p + *done, n - *done, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (k > 0) {
            *done += (size_t)k;
            s->tx_bytes += (uint64_t)k;
        } else if (errno == EAGAIN || errno == EWOULDBLOCK || errno == ENOBUFS) {
            return MN_TLS_AGAIN;
        } else if (errno != EINTR) {
            return MN_TLS_BROKEN;
        }
    }
    return MN_TLS_OK;
}

enum mn_tls_result mn_tls_flush(struct mn_tls *s)
{
    size_t done;
    if (s->left == NULL)
        return MN_TLS_OK;
    enum mn_tls_result r = send_some(s, s->left + s->left_at, s->left_len - s->left_at, &done);
    s->left_at += done;
    if (r != MN_TLS_OK)
        return r;
    free(s->left);
    s->left = NULL;
    s->left_at = s->left_len = 0;
    return MN_TLS_OK;
}

/* Bytes on their way out: to the kernel, and what it does not take behind what waits already. */
static enum mn_tls_result put_wire(struct mn_tls *s, const uint8_t *p, size_t n)
{
    size_t done = 0;
    enum mn_tls_result r = s->left == NULL ? send_some(s, p, n, &done) : MN_TLS_AGAIN;
    if (r != MN_TLS_AGAIN)
        return r;
    size_t waiting = s->left_len - s->left_at, more = n - done;
    uint8_t *left = malloc(waiting + more);
    if (left == NULL)
        return MN_TLS_BROKEN;
    if (s->left != NULL)
        memcpy(left, s->left + s->left_at, waiting);
    memcpy(left + waiting, p + done, more);
    free(s->left);
    s->left = left;
    s->left_at = 0;
    s->left_len = waiting + more;
    return MN_TLS_AGAIN;
}

/* What libssl wrote. AGAIN means that some of it waits, which is no failure. */
static enum mn_tls_result put_records(struct mn_tls *s)
{
    struct mn_wires *w = s->wires;
    size_t n = w->out_len;
    w->out_len = 0;
    return n > 0 ? put_wire(s, w->out, n) : MN_TLS_OK;
}

/* ---- handshake ---- */

static enum mn_tls_result judge(struct mn_tls *s, int result)
{
    int why = SSL_get_error(s->ssl, result);
    if (why == SSL_ERROR_WANT_READ || why == SSL_ERROR_WANT_WRITE)
        return MN_TLS_AGAIN;
    return why == SSL_ERROR_ZERO_RETURN || s->has_ended ? MN_TLS_END : MN_TLS_BROKEN;
}

enum mn_tls_result mn_tls_shake(struct mn_tls *s)
{
    if (s->is_shaken)
        return MN_TLS_OK;
    ERR_clear_error();
    s->wires->out_len = 0;
    int done = SSL_do_handshake(s->ssl);
    enum mn_tls_result why = done == 1 ? MN_TLS_OK : judge(s, done);
    if (put_records(s) == MN_TLS_BROKEN) /* alerts leave as well */
        return MN_TLS_BROKEN;
    s->is_shaken = done == 1;
    return why;
}

/* ---- reading ---- */

enum mn_tls_result mn_tls_fetch(struct mn_tls *s, size_t cap)
{
    struct mn_wires *w = s->wires;
    w->in_at = w->in_len = 0;
    w->owner = s;
    for (;;) {
        ssize_t n = recv(s->fd, w->in, cap < MN_WIRE_IN ? cap : MN_WIRE_IN, MSG_DONTWAIT);
        if (n > 0) {
            w->in_len = (size_t)n;
            s->rx_bytes += (uint64_t)n;
            return MN_TLS_OK;
        }
        if (n == 0) {
            s->has_ended = true;
            return MN_TLS_END;
        }
        if (errno == EINTR)
            continue;
        return errno == EAGAIN || errno == EWOULDBLOCK ? MN_TLS_AGAIN : MN_TLS_BROKEN;
    }
}

ptrdiff_t mn_tls_read(struct mn_tls *s, uint8_t *out, size_t cap)
{
    struct mn_wires *w = s->wires;
    if (s->ssl == NULL) {
        size_t here = w->owner == s ? w->in_len - w->in_at : 0, k = cap < here ? cap : here;
        memcpy(out, w->in + w->in_at, k);
        w->in_at += k;
        return (ptrdiff_t)k;
    }
    size_t at = 0;
    w->out_len = 0;
    ERR_clear_error();
    while (at < cap) {
        int n = SSL_read(s->ssl, out + at, (int)(cap - at));
        if (n > 0) {
            at += (size_t)n;
            if (w->in_at == w->in_len && SSL_has_pending(s->ssl) == 0)
                break; /* libssl would only say that it wants more */
            continue;
        }
        enum mn_tls_result why = judge(s, n);
        /* A key update or an alert may have to be answered. */
        if (put_records(s) == MN_TLS_BROKEN)
            why = MN_TLS_BROKEN;
        if (why == MN_TLS_AGAIN || at > 0)
            break;
        return why;
    }
    return (ptrdiff_t)at;
}

/* ---- writing ---- */

enum mn_tls_result mn_tls_write(struct mn_tls *s, const uint8_t *p, size_t n)
{
    if (s->ssl == NULL)
        return put_wire(s, p, n);
    ERR_clear_error();
    s->wires->out_len = 0;
    for (size_t at = 0; at < n;) {
        size_t k = n - at < MN_TLS_RECORD ? n - at : MN_TLS_RECORD;
        if (SSL_write(s->ssl, p + at, (int)k) != (int)k)
            return MN_TLS_BROKEN;
        at += k;
    }
    return put_records(s);
}
