/* The engine's methods for relay links. */
#include "module_links.h"

#include <stdlib.h>
#include <string.h>

#include "module_relay.h"
#include "module_take.h"

PyObject *mn_module_link_adopt(PyObject *self, PyObject *args)
{
    struct mn_engine *e = mn_module_engine(self, 0);
    struct mn_command cmd = {.kind = MN_CMD_LINK_ADOPT};
    unsigned long long req;
    PyObject *tls;
    const char *host, *verified;
    Py_ssize_t host_len, verified_len;
    int fd;
    if (e == NULL ||
        !PyArg_ParseTuple(args, "KiOs#s#:link_adopt", &req, &fd, &tls, &host, &host_len, &verified, &verified_len))
        return NULL;
    if (tls != Py_None && (cmd.ctx = mn_module_tls_of(tls)) == NULL)
        return NULL;
    cmd.req = req;
    cmd.fd = fd;
    cmd.len = (size_t)(host_len + verified_len) + 2;
    cmd.blob = malloc(cmd.len);
    if (cmd.blob == NULL) {
        mn_command_done(&cmd);
        return PyErr_NoMemory();
    }
    memcpy(cmd.blob, host, (size_t)host_len + 1);
    memcpy(cmd.blob + host_len + 1, verified, (size_t)verified_len + 1);
    return mn_module_push(e, &cmd);
}

/* A link's number, a region or 0, and bytes. */
static PyObject *push_link(PyObject *self, PyObject *args, enum mn_command_kind kind)
{
    struct mn_engine *e = mn_module_engine(self, 0);
    struct mn_command cmd = {.kind = (uint8_t)kind};
    unsigned long long req;
    const char *data = "";
    Py_ssize_t len = 0;
    unsigned short region = 0;
    bool is_open = kind == MN_CMD_LINK_OPEN;
    if (e == NULL || !(is_open ? PyArg_ParseTuple(args, "KHy#:link_open", &req, &region, &data, &len)
                               : PyArg_ParseTuple(args, "K|y#:link", &req, &data, &len)))
        return NULL;
    cmd.req = req;
    cmd.region = region;
    if (mn_take_blob(&cmd, data, len) != 0)
        return NULL;
    return mn_module_push(e, &cmd);
}

PyObject *mn_module_link_write(PyObject *self, PyObject *args)
{
    return push_link(self, args, MN_CMD_LINK_WRITE);
}

PyObject *mn_module_link_open(PyObject *self, PyObject *args)
{
    return push_link(self, args, MN_CMD_LINK_OPEN);
}

PyObject *mn_module_link_websocket(PyObject *self, PyObject *args)
{
    return push_link(self, args, MN_CMD_LINK_WEBSOCKET);
}

PyObject *mn_module_link_close(PyObject *self, PyObject *args)
{
    return push_link(self, args, MN_CMD_LINK_CLOSE);
}
