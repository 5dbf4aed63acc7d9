/* The engine's methods for relay links, and what they need of the engine's type. */
#ifndef MN_MODULE_LINKS_H
#define MN_MODULE_LINKS_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "engine/engine.h"

/* module.c: the engine of an Engine object; NULL: an exception is set. */
struct mn_engine *mn_module_engine(PyObject *self, int may_be_closed);
/* module.c: push a command; one the engine has no room for is dropped, and counted there. */
PyObject *mn_module_push(struct mn_engine *e, const struct mn_command *cmd);

PyObject *mn_module_link_adopt(PyObject *self, PyObject *args);
PyObject *mn_module_link_write(PyObject *self, PyObject *args);
PyObject *mn_module_link_open(PyObject *self, PyObject *args);
PyObject *mn_module_link_websocket(PyObject *self, PyObject *args);
PyObject *mn_module_link_close(PyObject *self, PyObject *args);

#endif
