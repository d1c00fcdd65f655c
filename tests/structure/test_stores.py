"""Every store into the segment goes through atomics.h, where the fault build counts it: none hides from a crash test.

A heuristic over the text. In each function it finds the names that point into the segment: pointers to the structs of
layout.h, what comes from the functions that return such a pointer (or stand in view.h and return any), and what is
assigned from those. A plain store through one of them is found, a byte copy to one, and atomic builtins outside
atomics.h. A bare ``uint32_t *`` or ``char *`` may point anywhere: a store through one counts as one into the segment,
unless PRIVATE lists the function and the name. The examples at the end say what it does see: a test that finds nothing
must be able to find something.
"""

from __future__ import annotations

import re

import pytest
from sources import C_FILES, functions, without_comments

TEXTS = {path.name: without_comments(path.read_text(encoding="utf-8")) for path in C_FILES}
STRUCTS = re.findall(r"^\}\s*(sst_\w+);", TEXTS["layout.h"], re.MULTILINE)
STRUCTS += [
    new for text in TEXTS.values() for old, new in re.findall(r"\btypedef (\w+) (\w+);", text) if old in STRUCTS
]
ANY_STRUCT = "|".join(STRUCTS)
OTHERS = [path for path in C_FILES if path.name != "atomics.h"]
STORING = re.compile(
    r"\b(__atomic_(store|exchange|compare_exchange|fetch_\w+|\w+_fetch|clear|test_and_set)|__sync_\w+)"
)
BUILTIN = re.compile(r"\b__(?:atomic|sync)_\w+|\bstdatomic\.h|\b_Atomic\b|\batomic_\w+\s*\(|\b(?:__asm__|__asm|asm)\b")
# What looks like a store into the segment and is none, with the reason.
COPIES = {
    ("segment.c", "memset(h"),  # read_header(): h is a copy of the header on its caller's stack
    ("segment.c", "pread(fd, h"),  # the same
}

PARENS = r"\((?:[^()]|\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\))*\)"
ASSIGN = r"\s*(?:(?:[-+*/|&^%]|<<|>>)?=(?!=)|\+\+|--)"
TAIL = r"(?:\s*(?:->|\.)\s*\w+|\s*\[(?:[^\[\]]|\[[^\[\]]*\])*\])"
THROUGH = rf"(?=\s*(?:->|\[)){TAIL}+"
CASTS = r"(?:\(\s*(?:(?:const|volatile)\s+)*\w+\s*\*\s*\)\s*)"
LOAD = re.compile(rf"\b(?:ld\d+(?:_acquire)?|sizeof|sst_same|sst_\w+_of_\w+)\s*{PARENS}")
FIRST = (
    r"memcpy|memmove|memset|mempcpy|str(?:n)?cpy|stpcpy|str(?:n)?cat|v?sn?printf|(?:explicit_)?bzero|getrandom|fread"
)
SECOND = r"p?read|recv|recvfrom"


def giving_pointers() -> set[str]:
    """The functions of the core whose result points into the segment."""
    made = re.compile(r"^(?:static\s+)?(?:inline\s+)?(\w+)\s*\*\s*(\w+)\(", re.MULTILINE)
    return {
        name
        for path, text in TEXTS.items()
        for kind, name in made.findall(text)
        if kind in STRUCTS or (path == "view.h" and kind != "sst_seg")
    }


GIVING = "|".join(sorted(giving_pointers()))
# Members of our own structs that point into the segment.
MEMBERS = "|".join(
    sorted(
        {"base", "from", *re.findall(rf"^\s+(?:{ANY_STRUCT})\s*\*\s*(\w+);", "\n".join(TEXTS.values()), re.MULTILINE)}
    )
)


def pointing(code: str) -> set[str]:
    """The names in a function that point into the segment."""
    names = set(re.findall(rf"\b(?:{ANY_STRUCT})\s*\*+\s*(?:const\s+)?(\w+)", code))
    for more in re.findall(rf"\b(?:{ANY_STRUCT})\s*\*[^;(){{}}]*", code):  # sst_item *a, *b
        names.update(re.findall(r",\s*\*+\s*(\w+)", more))
    assigned = [(name, LOAD.sub("0", value)) for name, value in re.findall(r"\b(\w+)\s*=(?!=)\s*([^;]*)", code)]
    while True:
        known = "|".join(sorted(names)) or "(?!)"
        gives = re.compile(
            rf"\b(?:{GIVING})\s*\(|->\s*base\b|(?:->|\.)\s*from\b|&\s*(?:{known})\b\s*(?:->|\[)|^\s*{CASTS}*(?:{known})\b"
        )
        found = {name for name, value in assigned if gives.search(value)} - names
        if not found:
            return names
        names |= found


def is_declaration(code: str, at: int) -> bool:
    """``sst_entry *e = ...``, ``uint32_t *a, *b = ...`` set pointers of ours, not the segment."""
    before = re.split(r"[;{}(]", code[:at])[-1]
    return re.fullmatch(r"\s*(?:(?:const|static)\s+)*\w+\s*(?:[\w\s*]+(?:=[^;]*)?,\s*)?", before) is not None and (
        before.strip() not in ("", "return", "else", "do")
    )


def is_out_parameter(code: str, text: str) -> bool:
    """``*e = ...`` with ``sst_entry **e`` sets a pointer of the caller's."""
    name = re.match(r"\*\s*(\w+)\s*=", text)
    return name is not None and re.search(rf"\*\*\s*{name[1]}\b", code) is not None


def plain_stores(code: str) -> list[tuple[int, str]]:
    """Where a function stores into the segment and not through atomics.h, and with what text."""
    names = "|".join(sorted(pointing(code))) or "(?!)"
    spot = rf"(?:\b(?:{GIVING})\s*{PARENS}|(?<![.>\w])(?:{names})\b|\b\w+\s*(?:->|\.)\s*(?:{MEMBERS})\b)"
    lvalues = [
        rf"{spot}{THROUGH}{ASSIGN}",  # e->num = ..., words[i] |= ..., sst_heap_of(s)->brk++
        rf"(?<![\w)\]])(?<![\w)\]]\s)\*+\s*{CASTS}*{spot}{TAIL}*{ASSIGN}",  # *word = ..., *(char *)e = ...
        rf"\*\s*{CASTS}+\(\s*&?\s*{spot}[^;=,()]*\){ASSIGN}",  # *(uint64_t *)(to + i) = ...
        rf"\(\s*\*\s*{spot}\s*\)\s*{TAIL}+{ASSIGN}",  # (*e).num = ...
        rf"\(\s*{CASTS}+&?\s*{spot}{TAIL}*\s*\){THROUGH}{ASSIGN}",  # ((char *)e)[3] = ...
        rf"(?:\+\+|--)\s*(?:\*\s*{spot}|{spot}\s*(?:->|\[))",  # ++e->num, --*word
        rf"\b(?:{FIRST})\s*\(\s*[^,;]*?{spot}",
        rf"\b(?:{SECOND})\s*\(\s*[^,;]*,\s*[^,;]*?{spot}",
    ]
    return [
        (match.start(), match.group().strip())
        for lvalue in lvalues
        for match in re.finditer(lvalue, code)
        if not is_declaration(code, match.start()) and not is_out_parameter(code, match.group().strip())
    ]


@pytest.mark.parametrize("path", OTHERS, ids=lambda path: path.name)
def test_atomic_builtins_stand_in_atomics_h(path) -> None:
    assert not BUILTIN.search(TEXTS[path.name])


# -- through pointers that do not say where they point -----------------------------------------------------------------

SCALAR = (
    r"(?:u?int(?:8|16|32|64|ptr)?(?:_t)?|unsigned(?:\s+(?:char|int|long))?|(?:signed\s+)?char|long|size_t|ssize_t|void)"
)


def bare_pointers(code: str) -> set[str]:
    """Parameters and variables of a function that point to a plain number, to bytes, or to anything."""
    names: set[str] = set()
    for first, more in re.findall(
        rf"\b{SCALAR}\s*\*+\s*(?:const\s+|restrict\s+)*(\w+)(?=([^;(){{}}]*))", code
    ):  # uint32_t *a, *b
        names |= {first, *re.findall(r",\s*\*+\s*(\w+)", more)}
    return names


def bare_stores(code: str) -> list[tuple[int, str, str]]:
    """Where a function stores through such a pointer, or through a member that may be one: place, text, name."""
    names = "|".join(sorted(bare_pointers(code))) or "(?!)"
    member = r"\w+(?:\s*\[[^\[\]]*\])?\s*(?:->|\.)\s*\w+"
    spot = rf"(?P<name>{member}|(?<![.>\w])(?:{names})\b)"
    lvalues = [
        rf"(?<![\w)\]])(?<![\w)\]]\s)\*+\s*{CASTS}*\(?\s*{spot}\s*(?:\+\+|--)?\s*\)?{ASSIGN}",  # *word =, *p++ =
        rf"(?<![.>\w])(?P<name>(?:{names}))\s*\[(?:[^\[\]]|\[[^\[\]]*\])*\]{ASSIGN}",  # word[1] = ...
        rf"\*\s*{CASTS}+\(\s*&?\s*{spot}[^;=,()]*\){ASSIGN}",  # *(uint64_t *)(to + i) = ...
        rf"(?:\+\+|--)\s*\(?\s*\*\s*{spot}",  # ++*word
        rf"\(\s*\*\s*{spot}\s*\)\s*(?:\+\+|--|[-+|&^]?=(?!=))",  # (*word)++
        rf"\b(?:{FIRST})\s*\(\s*{CASTS}*\(?\s*{spot}",
        rf"\b(?:{SECOND})\s*\(\s*[^,;]*,\s*{CASTS}*\(?\s*{spot}",
    ]
    return [
        (match.start(), match.group().strip(), re.sub(r"\s", "", match["name"]))
        for lvalue in lvalues
        for match in re.finditer(lvalue, code)
        if not is_declaration(code, match.start())
    ]


def function_name(code: str) -> str:
    """Whose body a piece of ``functions`` is."""
    names = re.findall(r"^[A-Za-z_][\w\s*]*?\b(\w+)\([^;]*?\)\s*\{", code, re.MULTILINE)
    return names[-1] if names else ""


# Names through which a function stores, and not into the segment: what its caller gave it to fill, or a variable of its
# own. Before a name comes in here: does every caller pass memory of its own process?
PRIVATE: dict[str, dict[str, str]] = {
    "answers.c": {"said": "at", "answer_queue_pop": "at", "set_space": "klens", "list_more": "list->at"},
    "attach.c": {"sst_self": "slot gen"},
    "barrier_wait.c": {"place": "word"},
    "breaks.c": {"some": "stripe from", "free_one": "cls"},
    "conn.c": {"sst_buf_room": "at b->at", "sst_conn_say": "out->at"},
    "conn.h": {"sst_shut": "fd"},
    "guard.h": {"sst_read_begin": "seq"},
    "heap.c": {"take_free": "ref", "sst_heap_take": "ref"},
    "ops.c": {
        "sst_op_new_value": "ref",
        "parse": "n",
        "sst_op_number": "n",
        "sst_op_add": "value",
        "answer": "len",
        "look": "rd->len rd->buf",
    },
    "ops_many.c": {"fold": "bucket", "sst_num_keys": "n", "list_one": "to->buf", "sst_list_keys": "used cursor"},
    "ops_queue.c": {"take_first": "len", "pop_once": "value", "sst_queue_len": "n"},
    "ops_barrier.c": {"sst_op_meet": "count arrived", "look": "value"},
    "ops_wait.c": {"sst_waiter_release": "waiter"},
    "peers.c": {"find_slot": "owner", "sst_holder": "slot pid"},
    "queue.c": {"sst_queue_first": "ref len", "sst_queue_walk": "count last"},
    "segment.c": {"read_header": "bytes", "sst_file_grow": "size"},
    "stream.c": {"receive": "in->at to", "take": "c->server"},
    "table.c": {"sst_decimal": "text"},
    "verify.c": {
        "broke": "w->report",
        "walk_blocks": "m",
        "walk_free": "m",
        "walk_inflight": "m",
        "reach": "m",
        "sst_walk": "report",
        "sst_walk_locks": "report",
    },
    "waiter.c": {"sst_waiter_claim": "waiter", "sst_waiter_free": "waiter"},
    "wants.c": {"sst_wants_add": "copy", "sst_wants_meet": "copy"},
}


def sees_the_segment(file: str) -> bool:
    """Whether a file includes layout.h, itself or through others: who does not has no pointer into the segment."""
    seen, todo = set(), [file]
    while todo:
        name = todo.pop()
        if name in TEXTS and name not in seen:
            seen.add(name)
            todo += re.findall(r'^\s*#\s*include\s*"([\w.]+)"', TEXTS[name], re.MULTILINE)
    return "layout.h" in seen


def hidden_stores(file: str, text: str) -> list[str]:
    """Each plain store into the segment in a file of the core: where, in which function, what."""
    found = []
    for start, code in functions(text):
        name = function_name(code)
        stores = [(at, what) for at, what in plain_stores(code) if (file, what) not in COPIES]
        if name and sees_the_segment(file):
            own = PRIVATE.get(file, {}).get(name, "").split()
            stores += [(at, what) for at, what, through in bare_stores(code) if through not in own]
        found += [f"{file}:{start + code[:at].count(chr(10))}: {name}(): {what}" for at, what in stores]
    return found


@pytest.mark.parametrize("path", OTHERS, ids=lambda path: path.name)
def test_no_plain_store_into_the_segment(path) -> None:
    """Store through atomics.h; or, where it is no store into the segment, say so in PRIVATE."""
    assert hidden_stores(path.name, TEXTS[path.name]) == []


def test_what_is_private_is_still_stored_to() -> None:
    listed = {(file, name, own) for file, names in PRIVATE.items() for name in names for own in names[name].split()}
    stored = {
        (file, function_name(code), through)
        for file in PRIVATE
        for _, code in functions(TEXTS.get(file, ""))
        for _, _, through in bare_stores(code)
    }
    assert not listed - stored, "these may go from PRIVATE"


# A word through a bare pointer, a member, an alias: each put into a copy of the core's text.
BYPASSES_BARE = [
    ("lock.c", "if (xchg32_release(word, 0) & SST_WAITERS)", "uint32_t was = *word; *word = 0; if (was & SST_WAITERS)"),
    ("guard.c", "st32_release(word, owner);", "*word = owner;"),
    ("guard.c", "st32_release(word, owner);", "word[0] = owner;"),
    ("guard.c", "st32_release(word, owner);", "memcpy(word, &owner, sizeof owner);"),
    ("guard.c", "st32_release(word, owner);", "*(volatile uint32_t *)word = owner;"),
    ("waiter.c", "st64(&w->ticket, 0);", "w->ticket = 0;"),
    ("recover.c", "st32(from, ld32(&b->link));", "*from = ld32(&b->link);"),
    ("ops.c", "st32(from, ref);", "*from = ref;"),
    ("ops.c", "sst_copy_in(to, val, len);", "memcpy(to, val, len);"),
    ("barrier_open.c", "st64(&p->probe_ns, 0);", "p->probe_ns = 0;"),
]


@pytest.mark.parametrize(("file", "sound", "bypass"), BYPASSES_BARE)
def test_a_bypass_in_the_core_is_found(file: str, sound: str, bypass: str) -> None:
    text = TEXTS[file]
    assert sound in text
    assert hidden_stores(file, text.replace(sound, bypass, 1))


BYPASSING = [
    "e->num = 5;",
    "e->value[0] = ref;",
    "e->num += 1;",
    "e->num++;",
    "sst_entry **out = &e; (*out)->num = 1;",
    "++e->num;",
    "*e = (sst_entry){0};",
    "(*e).num = 1;",
    "((char *)e)[3] = 1;",
    "*(uint64_t *)e = 1;",
    "*(uint64_t *)(e + 1) = 1;",
    "sst_item *item, *tail = sst_payload(s, ref, 8); tail->next = item;",
    "sst_header_of(s)->state = SST_DEAD;",
    "sst_heap_of(s)->free[cls] = ref;",
    "*sst_bucket_at(s, k.stripe, ld32(&e->hash)) = ref;",
    "sst_peer_at(s, SST_OWNER_SLOT(ld32(&e->hash)))->state |= 1;",
    "uint32_t *word = &sst_stripe_at(s, 1)->lock; *word = 0;",
    "uint32_t *first = &e->value[0]; first[1] = ref;",
    "char *to = sst_payload(s, ref, 8); to[0] = 1;",
    "char *to = sst_payload(s, ref, 8); *to++ = 1; *to = 2;",
    "char *at = s->base + 8; at[1] = 1;",
    "s->base[8] = 1;",
    "*place.from = ref;",
    "*place->from = ref;",
    "place.entry->num = 1;",
    "op->stripe->seq++;",
    "memcpy(e, &copy, sizeof copy);",
    "memcpy((char *)(e + 1), key, klen);",
    "memcpy(sst_payload(s, ref, n), val, n);",
    "memset(s->base + 4096, 0, 4096);",
    "memmove(&e->value, v, 8);",
    "char *to = sst_payload(s, ref, 8); memcpy(to + 4, val, 4);",
    'sst_peer_slot *p = sst_peer_at(s, 1); (void)snprintf((char *)p->host, 64, "x");',
    "sst_peer_slot *p = sst_peer_at(s, 1); (void)gethostname(host, 64); strcpy((char *)p->host, host);",
    "(void)pread(fd, s->base, 4096, 0);",
]
BUILTINS = [
    "__atomic_store_n(&e->num, 1, __ATOMIC_RELAXED);",
    "__atomic_fetch_add(word, 1, __ATOMIC_RELAXED);",
    "(void)__sync_bool_compare_and_swap(word, 0, 1);",
    "atomic_store(word, 1);",
    "_Atomic uint32_t *at = (void *)word;",
    '__asm__ volatile("lock incl %0" : "+m"(*word));',
]
SOUND = [
    "st64(&e->num, 5);",
    "uint32_t *out; *out = ld32(&e->hash); *ref = 0;",
    "sst_entry copy; copy.num = 1; copy.value[0] = 2;",
    "sst_entry **out = &e; *out = NULL;",
    "sst_entry *other = e, *third = NULL; other = third;",
    "uint32_t *word = &e->hash, *next = &e->next;",
    "uint32_t n = ld32(&e->next), m = n == 0; if (e->num == 3 || n >= ld32(&e->hash)) m = 1;",
    "char *to = sst_payload(s, ref, 8); to = NULL; sst_copy_in(to, val, 8);",
    "memcpy(buf, text, n); buf[n] = 0; op->wake |= 1; s->base = NULL; op->stripe = sst_stripe_at(s, 1);",
    "int sum = 2 * 3; uint64_t u = u * ld64(&e->num);",
]


def as_function(code: str) -> str:
    return f"static int f(sst_seg *s, sst_entry *e, uint32_t *ref, char *buf, sst_op *op) {{\n    {code}\n}}\n"


@pytest.mark.parametrize("code", BYPASSING)
def test_a_store_that_bypasses_the_count_is_found(code) -> None:
    ((_, function), *_rest) = functions(as_function(code))
    assert plain_stores(function)


@pytest.mark.parametrize("code", BUILTINS)
def test_a_builtin_is_found(code) -> None:
    assert BUILTIN.search(without_comments(as_function(code)))


@pytest.mark.parametrize("code", SOUND)
def test_what_stores_elsewhere_is_left_alone(code) -> None:
    assert not plain_stores(as_function(code)) and not BUILTIN.search(code)


def test_what_gives_pointers_is_known() -> None:
    assert giving_pointers() >= {"sst_header_of", "sst_payload", "sst_bucket_at", "sst_rank_at", "sst_waiter_mine"}
    assert {"entry", "stripe"} <= set(MEMBERS.split("|"))


def test_every_wrapper_counts() -> None:
    """All but own_*, which are for words private to a process and must not be counted."""
    storing = [code.strip() for _, code in functions(TEXTS["atomics.h"]) if STORING.search(code)]
    silent = [code for code in storing if "sst_fault_store()" not in code and not re.search(r"\bown_\w+\(", code)]
    assert not silent
    assert storing
