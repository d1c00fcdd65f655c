/* wire.c -- see wire.h. Each length is checked before anything is added to it. */
#include "wire.h"

static const char *const forms[SST_OPS] = {
    [SST_OP_VALIDATE] = "u",   [SST_OP_SET] = "kb",     [SST_OP_COMPARE_SET] = "kbb", [SST_OP_GET] = "k",
    [SST_OP_ADD] = "ki",       [SST_OP_CHECK] = "*k",   [SST_OP_WAIT] = "*k",         [SST_OP_NUM_KEYS] = "",
    [SST_OP_DELETE] = "k",     [SST_OP_APPEND] = "kb",  [SST_OP_MULTI_GET] = "*k",    [SST_OP_MULTI_SET] = "*kb",
    [SST_OP_CANCEL_WAIT] = "", [SST_OP_PING] = "u",     [SST_OP_QUEUE_PUSH] = "kb",   [SST_OP_QUEUE_POP] = "k",
    [SST_OP_QUEUE_LEN] = "k",  [SST_OP_LIST_KEYS] = "", [SST_OP_BARRIER] = "ki",      [SST_OP_HOLD] = "b",
};

const char *sst_frame_form(uint32_t op) { return forms[op]; }

static int begin(sst_frame *f, const char *p, size_t n) {
    f->need = 1;
    if (n == 0)
        return SST_EAGAIN;
    f->op = (unsigned char)p[0];
    if (f->op == SST_WIRE_HOLD)
        f->op = SST_OP_HOLD;
    else if (f->op >= SST_OP_HOLD)
        return SST_EINVAL;
    f->at = 1;
    f->left = 1;
    return SST_OK;
}

/* One field. */
static int step(sst_frame *f, char kind, const char *p, size_t n) {
    size_t width = kind == 'u' ? 4 : 8;
    f->need = f->at + width;
    if (n < f->need)
        return SST_EAGAIN;
    const char *from = p + f->at;
    uint64_t v = width == 8 ? sst_read_u64(&from) : 0;
    if (kind == 'k' || kind == 'b') {
        if (v > (kind == 'k' ? SST_WIRE_KEY_MAX : (uint64_t)SST_VALUE_MAX) || f->need + v > SST_WIRE_FRAME_MAX)
            return SST_EINVAL;
        f->need += (size_t)v;
        if (n < f->need)
            return SST_EAGAIN;
    } else if (kind == '*') {
        if (v > SST_WIRE_KEYS_MAX)
            return SST_EINVAL;
        f->left = v;
    }
    f->at = f->need;
    f->field++;
    return SST_OK;
}

int sst_frame_walk(sst_frame *f, const char *p, size_t n) {
    int r = f->at == 0 ? begin(f, p, n) : SST_OK;
    while (r == SST_OK && f->left > 0) {
        const char *form = forms[f->op];
        if (form[f->field] != 0) {
            r = step(f, form[f->field], p, n);
        } else {
            f->left--;
            f->field = 1; /* behind the count; a form without one ends here */
        }
    }
    return r;
}
