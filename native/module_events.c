/* Events of the engine as tuples: on the thread that asks for them, never on the engine's. */
#include "module_events.h"

#include <string.h>

#include "engine/engine.h"

enum { KEY_LEN = 32 };

struct packed {
    const char *p;
    Py_ssize_t len;
};

static struct packed pack(const struct mn_ip *ip)
{
    if (mn_ip_is4(ip))
        return (struct packed){(const char *)ip->b + 12, 4};
    return (struct packed){(const char *)ip->b, 16};
}

static PyObject *flow_tuple(const struct mn_event *ev)
{
    struct packed local = pack(&ev->local.ip), remote = pack(&ev->remote.ip);
    return Py_BuildValue("(iKKiy#iy#iy#)", (int)ev->kind, (unsigned long long)ev->req, (unsigned long long)ev->value,
                         (int)ev->fd, local.p, local.len, (int)ev->local.port, remote.p, remote.len,
                         (int)ev->remote.port, (const char *)ev->key, (Py_ssize_t)KEY_LEN);
}

static PyObject *event_tuple(const struct mn_event *ev, const char *data)
{
    int kind = ev->kind;
    struct packed from = pack(&ev->remote.ip), to = pack(&ev->local.ip);
    const char *key = (const char *)ev->key;
    Py_ssize_t key_len = KEY_LEN, len = (Py_ssize_t)ev->len;
    unsigned long long req = ev->req, value = ev->value;
    switch ((enum mn_event_kind)ev->kind) {
    case MN_EV_ACCEPTED:
    case MN_EV_CONNECTED:
        return flow_tuple(ev);
    case MN_EV_CONNECT_FAILED:
        return Py_BuildValue("(iKi)", kind, req, (int)ev->err);
    case MN_EV_LISTENING:
        return Py_BuildValue("(iKii)", kind, req, (int)ev->err, (int)ev->local.port);
    case MN_EV_FLOW_ENDED:
        return Py_BuildValue("(iKi)", kind, value, (int)ev->err);
    case MN_EV_RELAY_SEND:
        return Py_BuildValue("(iy#iy#)", kind, key, key_len, (int)ev->region, data, len);
    case MN_EV_DISCO_KEY:
        return Py_BuildValue("(iy#y#)", kind, key, key_len, data, len);
    case MN_EV_DISCO:
    case MN_EV_STUN:
        return Py_BuildValue("(iy#iy#i)", kind, from.p, from.len, (int)ev->remote.port, data, len,
                             (int)ev->remote.sock);
    case MN_EV_PEER_SEND:
    case MN_EV_HANDSHAKE:
    case MN_EV_KEYS:
        return Py_BuildValue("(iy#i)", kind, key, key_len, (int)ev->what);
    case MN_EV_PEER_RECV:
        return Py_BuildValue("(iy#y#iiiii)", kind, key, key_len, from.p, from.len, (int)ev->remote.port,
                             (int)ev->remote.vni, (int)ev->remote.sock, (int)ev->region, (int)ev->what);
    case MN_EV_SEND_ERROR:
        return Py_BuildValue("(iy#iiii)", kind, from.p, from.len, (int)ev->remote.port, (int)ev->remote.vni,
                             (int)ev->remote.sock, (int)ev->err);
    case MN_EV_LINK_READY:
        return Py_BuildValue("(iKy#y#)", kind, req, data, len, key, ev->what ? key_len : 0);
    case MN_EV_LINK_DATA:
        return Py_BuildValue("(iKy#)", kind, req, data, len);
    case MN_EV_LINK_FRAME:
    case MN_EV_LINK_ENDED:
    case MN_EV_LINK_PULSE:
        return Py_BuildValue("(iKiy#)", kind, req, (int)ev->what, data, len);
    case MN_EV_REBOUND:
        return Py_BuildValue("(ii)", kind, (int)ev->err);
    case MN_EV_PING:
        return Py_BuildValue("(iKKi)", kind, req, value, (int)ev->err);
    case MN_EV_UDP:
        return Py_BuildValue("(iKy#iy#y#y#)", kind, req, from.p, from.len, (int)ev->remote.port, to.p, to.len, key,
                             key_len, data, len);
    case MN_EV_UDP_ERROR:
        return Py_BuildValue("(iKy#ii)", kind, req, from.p, from.len, (int)ev->remote.port, (int)ev->err);
    case MN_EV_LOST:
        return Py_BuildValue("(iK)", kind, value);
    case MN_EV_TUN_LOST:
        return Py_BuildValue("(ii)", kind, (int)ev->err);
    }
    PyErr_Format(PyExc_SystemError, "engine: event of unknown kind %d", kind);
    return NULL;
}

/* Append the records in buf to list. */
int mn_module_append_events(PyObject *list, const uint8_t *buf, size_t used)
{
    for (size_t at = 0; at < used;) {
        struct mn_event ev;
        memcpy(&ev, buf + at, sizeof ev);
        PyObject *item = event_tuple(&ev, (const char *)buf + at + sizeof ev);
        if (item == NULL || PyList_Append(list, item) != 0) {
            Py_XDECREF(item);
            return -1;
        }
        Py_DECREF(item);
        at += mn_event_size(&ev);
    }
    return 0;
}
