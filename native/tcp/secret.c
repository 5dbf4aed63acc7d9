/* Numbers an outsider cannot guess: SipHash over the tuple with a secret of this stack (RFC 6528, RFC 6056). */
#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/params.h>

#include "internal.h"

bool mn_secret_start(struct mn_stack *s)
{
    s->ops.random(s->ops.ctx, s->secret, sizeof s->secret);
    s->mac = EVP_MAC_fetch(NULL, "SIPHASH", NULL);
    s->mac_ctx = s->mac == NULL ? NULL : EVP_MAC_CTX_new(s->mac);
    if (s->mac_ctx == NULL)
        return false;
    size_t size = 8;
    OSSL_PARAM params[] = {OSSL_PARAM_construct_size_t(OSSL_MAC_PARAM_SIZE, &size), OSSL_PARAM_construct_end()};
    return EVP_MAC_CTX_set_params(s->mac_ctx, params) == 1;
}

void mn_secret_stop(struct mn_stack *s)
{
    EVP_MAC_CTX_free(s->mac_ctx);
    EVP_MAC_free(s->mac);
    OPENSSL_cleanse(s->secret, sizeof s->secret);
}

static uint64_t number(struct mn_stack *s, const struct mn_tuple *t, enum mn_secret_purpose purpose, uint32_t irs,
                       uint64_t detail)
{
    uint8_t in[49], out[8] = {0};
    size_t n = 0;
    memcpy(in, t->local.b, 16);
    memcpy(in + 16, t->remote.b, 16);
    mn_store16(in + 32, t->lport);
    mn_store16(in + 34, t->rport);
    in[36] = (uint8_t)purpose;
    mn_store32(in + 37, irs);
    memcpy(in + 41, &detail, 8);
    if (EVP_MAC_init(s->mac_ctx, s->secret, sizeof s->secret, NULL) != 1 ||
        EVP_MAC_update(s->mac_ctx, in, sizeof in) != 1 || EVP_MAC_final(s->mac_ctx, out, &n, sizeof out) != 1)
        s->ops.random(s->ops.ctx, out, sizeof out); /* unguessable still, only no longer rising per tuple */
    uint64_t v;
    memcpy(&v, out, sizeof v);
    return v;
}

uint64_t mn_secret_number(struct mn_stack *s, const struct mn_tuple *t, enum mn_secret_purpose purpose)
{
    return number(s, t, purpose, 0, 0);
}

uint32_t mn_secret_cookie(struct mn_stack *s, const struct mn_tuple *t, uint32_t irs, uint64_t detail)
{
    return (uint32_t)number(s, t, MN_SECRET_COOKIE, irs, detail);
}

uint32_t mn_secret_isn(struct mn_stack *s, const struct mn_tuple *t, uint32_t *ts_offset)
{
    uint64_t v = mn_secret_number(s, t, MN_SECRET_ISN);
    *ts_offset = (uint32_t)(v >> 32);
    return (uint32_t)v + (uint32_t)(s->now >> 6);
}
