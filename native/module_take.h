/* Arguments of the engine's methods: checked, and copied into the values of C. Negative: an exception is set. */
#ifndef MN_MODULE_TAKE_H
#define MN_MODULE_TAKE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "engine/engine.h"

int mn_take_key(uint8_t out[32], const char *p, Py_ssize_t len);
/* Empty means "any" where may_be_empty. */
int mn_take_ip(struct mn_ip *out, const char *p, Py_ssize_t len, int may_be_empty);
int mn_take_port(uint16_t *out, int port);
int mn_take_prefix(struct mn_prefix *out, PyObject *item);
/* A copy that the command owns; a packet is one of at most a datagram's size. */
int mn_take_blob(struct mn_command *cmd, const char *p, Py_ssize_t len);
int mn_take_packet(struct mn_command *cmd, const char *p, Py_ssize_t len);
/* Read one argument into the field that `letter` names:
 *   r request  k key  i address  I address or b"" for any  p port  v VNI  s extra socket  g region  m path mode
 *   n number  b packet  o further endpoints */
int mn_take_field(struct mn_command *cmd, char letter, PyObject *arg);
int mn_take_config(struct mn_engine_config *c, PyObject *args, PyObject *kwargs);

#endif
