# Memory, sparse vectors and the slots of examples.


cdef class Memory:
    """`n_bytes` of zeros, aligned to a cache line; pages that nobody writes take no room."""
    cdef void *whole
    cdef char *at
    cdef Py_ssize_t n_bytes

    def __cinit__(self, Py_ssize_t n_bytes):
        self.n_bytes = n_bytes
        self.whole = calloc(n_bytes + 64, 1)
        if self.whole == NULL:
            raise MemoryError(f"no room for {n_bytes} bytes")
        self.at = <char *> ((<size_t> self.whole + 63) & ~<size_t> 63)

    def __dealloc__(self):
        free(self.whole)


cdef extern from *:
    void prefetch_line "__builtin_prefetch"(const void *, int, int) nogil


cdef inline void prefetch(const Sparse *x) noexcept nogil:
    """Bring a vector closer to the CPU, for later."""
    cdef Py_ssize_t k
    for k in range(0, x.n, 16):
        prefetch_line(x.index + k, 0, 2)
        prefetch_line(x.value + k, 0, 2)


cdef struct Slot:
    Sparse x
    Py_ssize_t room         # entries that x has memory for; 0: never filled
    int64_t t, y
    int64_t version         # another one after each change of what it holds


cdef class Examples:
    """`capacity` slots of examples (x, t, y): inputs, task and label. Memory: 8 bytes for each non-zero input.

    logits   (capacity, n_logits): what a net gave out for each of them once; 0 until they are stored
    """
    cdef readonly Py_ssize_t capacity, n_inputs, n_logits
    cdef Slot *slots
    cdef int64_t n_changes
    cdef Memory logit_memory
    cdef float *logits

    def __cinit__(self, Py_ssize_t capacity, Py_ssize_t n_inputs, Py_ssize_t n_logits=0):
        if capacity < 1 or n_inputs < 1 or n_logits < 0:
            raise ValueError(f"{capacity} slots of {n_inputs} inputs: there must be at least one of each")
        self.capacity, self.n_inputs, self.n_logits = capacity, n_inputs, n_logits
        self.logit_memory = Memory(capacity * n_logits * sizeof(float))
        self.logits = <float *> self.logit_memory.at
        self.slots = <Slot *> calloc(capacity, sizeof(Slot))
        if self.slots == NULL:
            raise MemoryError

    def __dealloc__(self):
        cdef Py_ssize_t slot
        if self.slots != NULL:
            for slot in range(self.capacity):
                free(self.slots[slot].x.index)
            free(self.slots)

    def grow(self, Py_ssize_t capacity):
        """Make room for that many slots; those there are stay as they are."""
        cdef Slot *slots
        cdef Memory logit_memory
        if capacity > self.capacity:
            logit_memory = Memory(capacity * self.n_logits * sizeof(float))
            memcpy(logit_memory.at, self.logits, self.capacity * self.n_logits * sizeof(float))
            slots = <Slot *> realloc(self.slots, capacity * sizeof(Slot))
            if slots == NULL:
                raise MemoryError(f"no room for {capacity} slots")
            memset(slots + self.capacity, 0, (capacity - self.capacity) * sizeof(Slot))
            self.slots, self.capacity = slots, capacity
            self.logit_memory, self.logits = logit_memory, <float *> logit_memory.at

    cdef Slot *at(self, Py_ssize_t slot) except NULL:
        if not 0 <= slot < self.capacity:
            raise IndexError(f"slot {slot} of {self.capacity}")
        return &self.slots[slot]

    cdef Slot *filled(self, Py_ssize_t slot) except NULL:
        cdef Slot *found = self.at(slot)
        if found.room == 0:
            raise IndexError(f"slot {slot} holds no example")
        return found

    cdef void changed(self, Slot *slot) noexcept:
        self.n_changes += 1
        slot.version = self.n_changes

    cdef int reserve(self, Slot *slot, Py_ssize_t n) except -1:
        """Make room for n entries: in steps of 64, so that slots that are replaced for ever don't grow for ever."""
        cdef Py_ssize_t room = (n + 63) // 64 * 64
        cdef void *memory
        if room > slot.room:
            memory = realloc(slot.x.index, room * (sizeof(int32_t) + sizeof(float)))
            if memory == NULL:
                raise MemoryError
            slot.x.index = <int32_t *> memory
            slot.x.value = <float *> (slot.x.index + room)
            slot.room = room
        return 0

    cpdef put(self, Py_ssize_t slot, const float[::1] x, int64_t t, int64_t y):
        """Fill a slot with the example of inputs x (D,), task t and label y; its logits are 0."""
        cdef Slot *s = self.at(slot)
        cdef Py_ssize_t i, n = 0
        if x.shape[0] != self.n_inputs:
            raise ValueError(f"an example of {x.shape[0]} inputs where {self.n_inputs} are held")
        for i in range(self.n_inputs):
            n += x[i] != 0
        self.reserve(s, n + 1)
        n = 0
        for i in range(self.n_inputs):
            if x[i] != 0:
                s.x.index[n], s.x.value[n] = <int32_t> i, x[i]
                n += 1
        s.x.index[n], s.x.value[n] = <int32_t> self.n_inputs, 1
        s.x.n, s.t, s.y = n + 1, t, y
        memset(self.logits + slot * self.n_logits, 0, self.n_logits * sizeof(float))
        self.changed(s)

    def put_many(self, Py_ssize_t first_slot, const float[:, ::1] x, int64_t t, ys):
        """Fill the slots from first_slot on with the rows of x (B, D), all of task t, and the labels ys (B)."""
        cdef Py_ssize_t b
        if len(ys) != x.shape[0]:
            raise ValueError(f"{len(ys)} labels for {x.shape[0]} examples")
        for b in range(x.shape[0]):
            self.put(first_slot + b, x[b], t, ys[b])

    def copy(self, Py_ssize_t source, Py_ssize_t target):
        """Fill slot `target` with the example in slot `source`."""
        cdef Slot *s = self.filled(source)
        cdef Slot *into = self.at(target)
        if s == into:
            return
        self.reserve(into, s.x.n)
        memcpy(into.x.index, s.x.index, s.x.n * sizeof(int32_t))
        memcpy(into.x.value, s.x.value, s.x.n * sizeof(float))
        into.x.n, into.t, into.y = s.x.n, s.t, s.y
        memcpy(self.logits + target * self.n_logits, self.logits + source * self.n_logits, self.n_logits * sizeof(float))
        self.changed(into)

    def store_logits(self, slots, const float[:, ::1] logits):
        """The logits of these slots become the rows (B, n_logits)."""
        cdef Py_ssize_t b
        if logits.shape[0] != len(slots) or logits.shape[1] != self.n_logits:
            raise ValueError(f"logits ({logits.shape[0]}, {logits.shape[1]}) for ({len(slots)}, {self.n_logits})")
        for b, slot in enumerate(slots):
            self.filled(slot)
            memcpy(self.logits + <Py_ssize_t> slot * self.n_logits, &logits[b, 0], self.n_logits * sizeof(float))

    def get_logits(self, slots):
        """The logits of these slots: float32 (B, n_logits)."""
        logits = np.empty((len(slots), self.n_logits), np.float32)
        cdef float[:, ::1] rows = logits
        cdef Py_ssize_t b
        for b, slot in enumerate(slots):
            self.filled(slot)
            memcpy(&rows[b, 0], self.logits + <Py_ssize_t> slot * self.n_logits, self.n_logits * sizeof(float))
        return logits

    def get(self, slots):
        """The examples in these slots: inputs (B, D) float32, tasks (B,) int64, labels (B,) int64."""
        x, t, y = np.zeros((len(slots), self.n_inputs), np.float32), np.empty(len(slots), int), np.empty(len(slots), int)
        cdef float[:, ::1] rows = x
        cdef Py_ssize_t b, k
        cdef Slot *s
        for b, slot in enumerate(slots):
            s = self.filled(slot)
            for k in range(s.x.n - 1):
                rows[b, s.x.index[k]] = s.x.value[k]
            t[b], y[b] = s.t, s.y
        return x, t, y
