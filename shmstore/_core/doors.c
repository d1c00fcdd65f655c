/* doors.c -- the doors that keep the GIL (floor C10): set, get, add, compare_set, check, delete and the beginning of a
 * wait, on a key or at a reusable barrier, for Python, without cffi.
 *
 * cffi binds everything else. It gives up the GIL around each call, which beside a busy Python thread costs a call of
 * 0.1 us 13 to 64 us, and it makes a tuple, an integer and a buffer of each call, which costs more than the verb. These
 * take the arguments as Python has them and answer with the result.
 *
 * A door answers, or declines with None: when the key is not there, when the call would park, repair, allocate file
 * space or copy more than SST_TRY_COPY bytes, when the store is closed (its door is None), and for every argument that
 * is not plainly right. It raises nothing but MemoryError. Who is declined goes the long way, which does the same again
 * with waits and errors. So nothing has happened when a door declines; but for door_barrier, where the caller may have
 * arrived, which it can tell.
 *
 * The stable ABI of Python 3.10 only. This is the one file that includes Python.h. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "sst.h"

static const char capsule_name[] = "shmstore.door";

/* Written and read while the GIL is held, and no Python code runs in between. */
static char copy[SST_TRY_COPY];

/* NULL: closed. The handle that holds the door keeps the segment alive. */
static sst_seg *segment_of(PyObject *door) {
    return PyCapsule_IsValid(door, capsule_name) ? PyCapsule_GetPointer(door, capsule_name) : NULL;
}

/* The bytes of a str (UTF-8) or bytes. 0: it is neither, or cannot be encoded. */
static int text_of(PyObject *object, const char **bytes, size_t *len) {
    Py_ssize_t n = 0;
    if (PyUnicode_Check(object)) {
        *bytes = PyUnicode_AsUTF8AndSize(object, &n);
        if (*bytes == NULL)
            PyErr_Clear();
    } else {
        char *at = NULL;
        if (!PyBytes_Check(object) || PyBytes_AsStringAndSize(object, &at, &n) < 0)
            return 0;
        *bytes = at;
    }
    *len = (size_t)n;
    return *bytes != NULL;
}

static PyObject *declined(void) { Py_RETURN_NONE; }

/* door_set(door, key, value) -> True | None */
static PyObject *door_set(PyObject *self, PyObject *const *args, Py_ssize_t n) {
    (void)self;
    const char *key, *value;
    size_t klen, vlen;
    if (n != 3 || !text_of(args[1], &key, &klen) || !text_of(args[2], &value, &vlen))
        return declined();
    if (sst_set(segment_of(args[0]), SST_USER, key, klen, value, vlen, 0, SST_TRY) != SST_OK)
        return declined();
    Py_RETURN_TRUE;
}

/* door_get(door, key) -> bytes | None */
static PyObject *door_get(PyObject *self, PyObject *const *args, Py_ssize_t n) {
    (void)self;
    const char *key;
    size_t klen, len = 0;
    if (n != 2 || !text_of(args[1], &key, &klen))
        return declined();
    if (sst_get(segment_of(args[0]), SST_USER, key, klen, copy, sizeof copy, &len, 0, SST_TRY) != SST_OK)
        return declined();
    return PyBytes_FromStringAndSize(copy, (Py_ssize_t)len);
}

/* door_add(door, key, n) -> int | None */
static PyObject *door_add(PyObject *self, PyObject *const *args, Py_ssize_t n) {
    (void)self;
    const char *key;
    size_t klen;
    int overflow = 0;
    int64_t sum = 0;
    if (n != 3 || !PyLong_Check(args[2]) || !text_of(args[1], &key, &klen))
        return declined();
    int64_t by = PyLong_AsLongLongAndOverflow(args[2], &overflow);
    if (overflow != 0 || sst_add(segment_of(args[0]), SST_USER, key, klen, by, &sum, 0, SST_TRY) != SST_OK)
        return declined();
    return PyLong_FromLongLong(sum);
}

/* door_compare_set(door, key, expected, desired) -> bytes | None */
static PyObject *door_compare_set(PyObject *self, PyObject *const *args, Py_ssize_t n) {
    (void)self;
    const char *key, *expected, *desired;
    size_t klen, elen, dlen, len = 0;
    if (n != 4 || !text_of(args[1], &key, &klen) || !text_of(args[2], &expected, &elen) ||
        !text_of(args[3], &desired, &dlen))
        return declined();
    if (sst_compare_set(segment_of(args[0]), SST_USER, key, klen, expected, elen, desired, dlen, copy, sizeof copy,
                        &len, 0, SST_TRY) != SST_OK)
        return declined();
    return PyBytes_FromStringAndSize(copy, (Py_ssize_t)len);
}

/* door_check(door, keys) -> bool | None; keys: a list or tuple. Declines unless every key is looked at: what is wrong
 * with a later key is to be said also when an earlier one is missing. */
static PyObject *door_check(PyObject *self, PyObject *const *args, Py_ssize_t n) {
    (void)self;
    if (n != 2 || !(PyList_Check(args[1]) || PyTuple_Check(args[1])))
        return declined();
    sst_seg *s = segment_of(args[0]);
    int list = PyList_Check(args[1]), there = 1;
    Py_ssize_t size = list ? PyList_Size(args[1]) : PyTuple_Size(args[1]);
    if (s == NULL)
        return declined();
    for (Py_ssize_t i = 0; i < size; i++) {
        PyObject *item = list ? PyList_GetItem(args[1], i) : PyTuple_GetItem(args[1], i);
        const char *key;
        size_t klen;
        if (item == NULL || !text_of(item, &key, &klen))
            return declined();
        int r = sst_check(s, SST_USER, key, klen, 0, SST_TRY);
        if (r < 0)
            return declined();
        there &= r;
    }
    return PyBool_FromLong(there);
}

/* door_delete(door, key) -> bool | None */
static PyObject *door_delete(PyObject *self, PyObject *const *args, Py_ssize_t n) {
    (void)self;
    const char *key;
    size_t klen;
    if (n != 2 || !text_of(args[1], &key, &klen))
        return declined();
    int r = sst_delete(segment_of(args[0]), SST_USER, key, klen, 0, SST_TRY);
    return r < 0 ? declined() : PyBool_FromLong(r);
}

/* door_wait(door, keys, span in ns) -> True | None: the beginning of a wait, sst_linger, where that is for one key. It is
 * the one door that gives up the GIL, and only when the key is not there yet: the key and the segment stay what they
 * are meanwhile, as the caller holds both. */
static PyObject *door_wait(PyObject *self, PyObject *const *args, Py_ssize_t n) {
    if (n != 3)
        return declined();
    PyObject *there = door_check(self, args, 2);
    if (there != Py_False)
        return there;
    Py_DECREF(there);
    int list = PyList_Check(args[1]);
    uint64_t span = PyLong_AsUnsignedLongLong(args[2]);
    if (PyErr_Occurred())
        PyErr_Clear();
    else if ((list ? PyList_Size(args[1]) : PyTuple_Size(args[1])) == 1 && span > 0) {
        sst_seg *s = segment_of(args[0]);
        PyObject *item = list ? PyList_GetItem(args[1], 0) : PyTuple_GetItem(args[1], 0);
        const char *key;
        size_t klen;
        int r = 0;
        if (item != NULL && text_of(item, &key, &klen)) {
            uint64_t now = sst_now_ns();
            Py_INCREF(item); /* another thread may change the list */
            Py_BEGIN_ALLOW_THREADS r =
                sst_linger(s, SST_USER, key, klen, span > UINT64_MAX - now ? UINT64_MAX : now + span, SST_TRY);
            Py_END_ALLOW_THREADS Py_DECREF(item);
        }
        if (r == 1)
            Py_RETURN_TRUE;
    }
    return declined();
}

/* door_barrier(door, sst_bar as bytes, sst_arrival as bytearray, span in ns) -> index | None: a wait at a reusable
 * barrier. None: not all have arrived, or it is broken, or it declines; whether the caller has arrived stands in the
 * arrival, with which it goes on. It is the caller's own memory, so that an exception of a signal handler, which comes
 * as soon as the door is left, does not lose it. Gives up the GIL while it yields, as door_wait does. */
static PyObject *door_barrier(PyObject *self, PyObject *const *args, Py_ssize_t n) {
    (void)self;
    sst_bar bar;
    sst_arrival a = {0};
    if (n != 4 || !PyBytes_Check(args[1]) || PyBytes_Size(args[1]) != (Py_ssize_t)sizeof bar ||
        !PyByteArray_Check(args[2]) || PyByteArray_Size(args[2]) != (Py_ssize_t)sizeof a)
        return declined();
    memcpy(&bar, PyBytes_AsString(args[1]), sizeof bar);
    uint64_t span = PyLong_AsUnsignedLongLong(args[3]);
    if (PyErr_Occurred()) {
        PyErr_Clear();
        return declined();
    }
    sst_seg *s = segment_of(args[0]);
    int r = sst_bar_arrive(s, &bar, &a, SST_TRY);
    if (r == SST_EAGAIN && a.arrived && span > 0) {
        uint64_t now = sst_now_ns();
        Py_BEGIN_ALLOW_THREADS r = sst_bar_linger(s, &bar, &a, span > UINT64_MAX - now ? UINT64_MAX : now + span);
        Py_END_ALLOW_THREADS
    }
    if (PyByteArray_Size(args[2]) == (Py_ssize_t)sizeof a) /* as it was: nobody else knows it */
        memcpy(PyByteArray_AsString(args[2]), &a, sizeof a);
    return r == SST_OK ? PyLong_FromUnsignedLong(a.index) : declined();
}

/* door(address of an sst_seg) -> door. The caller keeps the segment alive as long as the door is in use. */
static PyObject *door(PyObject *self, PyObject *address) {
    (void)self;
    void *seg = PyLong_AsVoidPtr(address);
    return seg ? PyCapsule_New(seg, capsule_name, NULL) : PyErr_Occurred() ? NULL : declined();
}

#define FAST(function) ((PyCFunction)(void (*)(void))(function))
static PyMethodDef doors[] = {
    {"door", door, METH_O, NULL},
    {"door_set", FAST(door_set), METH_FASTCALL, NULL},
    {"door_get", FAST(door_get), METH_FASTCALL, NULL},
    {"door_add", FAST(door_add), METH_FASTCALL, NULL},
    {"door_compare_set", FAST(door_compare_set), METH_FASTCALL, NULL},
    {"door_check", FAST(door_check), METH_FASTCALL, NULL},
    {"door_delete", FAST(door_delete), METH_FASTCALL, NULL},
    {"door_wait", FAST(door_wait), METH_FASTCALL, NULL},
    {"door_barrier", FAST(door_barrier), METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};

/* What cffi generates, renamed by build_native.py, which puts this file before it into one unit. */
static PyObject *sst_cffi_init(void);

PyMODINIT_FUNC PyInit__native(void) {
    PyObject *module = sst_cffi_init();
    if (module == NULL || PyModule_AddFunctions(module, doors) == 0)
        return module;
    Py_DECREF(module);
    return NULL;
}
