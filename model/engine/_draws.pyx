# cython: language_level=3, boundscheck=False, cdivision=True, initializedcheck=False
"""Python's `random` at native speed: the original's exact stream of drawn indices. Also: which kernels this CPU can run.

MT19937: Matsumoto & Nishimura, "Mersenne Twister: a 623-dimensionally equidistributed uniform pseudo-random number
generator" (ACM TOMACS 1998), consumed as CPython's `random.shuffle` and `random.randint` consume it.
"""
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free, malloc

import random
from array import array

cdef extern from *:
    const char *IDENTITY            # the hash of what this was built of, from setup.py

identity = IDENTITY.decode()

cdef extern from *:
    """
    #if defined(__x86_64__)
    #define CPU_HAS(feature) (__builtin_cpu_supports(feature) != 0)
    #else
    #define CPU_HAS(feature) 0
    #endif
    static int cpu_has_avx2(void) { return CPU_HAS("avx2") && CPU_HAS("fma"); }
    static int cpu_has_avx512(void) {
        return CPU_HAS("avx512f") && CPU_HAS("avx512dq") && CPU_HAS("avx512bw") && CPU_HAS("avx512vl");
    }
    """
    bint cpu_has_avx2()
    bint cpu_has_avx512()
    int leading_zeros "__builtin_clz"(uint32_t) nogil


def kernels_of_cpu():
    """Names of the kernels that this CPU can run, fastest first: of "avx512", "avx2", "baseline"."""
    fast = []
    if cpu_has_avx2():
        fast.append("avx2")
        if cpu_has_avx512():
            fast.insert(0, "avx512")
    return [*fast, "baseline"]


cdef enum:
    N = 624                     # words of state
    M = 397                     # a new word depends on the old one M words ahead


cdef inline uint32_t twist(uint32_t here, uint32_t after, uint32_t ahead) noexcept nogil:
    cdef uint32_t y = (here & <uint32_t> 0x80000000) | (after & <uint32_t> 0x7FFFFFFF)
    return ahead ^ (y >> 1) ^ ((0 - (y & 1)) & <uint32_t> 0x9908B0DF)


cdef class ShuffleDraws:
    """The draws of Python's `random` from a given state on, index for index.

    state  what `random.getstate()` returns, (3, (624 words, position), gauss_next); None: where `random` stands now.
           getstate() gives it back, so that a `random.Random` can go on where this one stopped.
    """
    cdef uint32_t state[N]
    cdef uint32_t word[N]       # the tempered output words of that state
    cdef int position           # of them used
    cdef object gauss_next

    def __init__(self, state=None):
        self.setstate(random.getstate() if state is None else state)

    def setstate(self, state):
        """Go on from this state; raises ValueError if it isn't one of Python's MT19937."""
        version, words, gauss_next = state
        if version != 3 or len(words) != N + 1 or not 0 <= words[N] <= N:
            raise ValueError("not a state of Python's random: version 3, 624 words and a position among them")
        cdef int i
        for i in range(N):
            self.state[i] = words[i]
        self.position, self.gauss_next = words[N], gauss_next
        self.temper()

    def getstate(self):
        """The state in the form of `random.getstate()`."""
        return 3, (*[self.state[i] for i in range(N)], self.position), self.gauss_next

    cdef void temper(self) noexcept nogil:
        cdef int i
        cdef uint32_t y
        for i in range(N):
            y = self.state[i]
            y ^= y >> 11
            y ^= (y << 7) & <uint32_t> 0x9D2C5680
            y ^= (y << 15) & <uint32_t> 0xEFC60000
            self.word[i] = y ^ (y >> 18)

    cdef void refill(self) noexcept nogil:
        """The next N words."""
        cdef int i
        cdef uint32_t *s = self.state
        for i in range(N - M):
            s[i] = twist(s[i], s[i + 1], s[i + M])
        for i in range(N - M, N - 1):
            s[i] = twist(s[i], s[i + 1], s[i + M - N])
        s[N - 1] = twist(s[N - 1], s[0], s[M - 1])
        self.temper()
        self.position = 0

    cdef uint32_t below(self, uint32_t n) noexcept nogil:
        """random._randbelow(n): the first number of n.bit_length() bits that is below n."""
        cdef int shift = leading_zeros(n)
        cdef uint32_t r = n
        while r >= n:
            if self.position == N:
                self.refill()
            r = self.word[self.position] >> shift
            self.position += 1
        return r

    cdef void shuffle_in_place(self, uint32_t *order, Py_ssize_t n) noexcept nogil:
        """random.shuffle: for i = n - 1, ..., 1, swap order[i] with order[below(i + 1)].  O(n)

        Whether a word is below is a coin toss that no CPU predicts, so the first of the two inner loops doesn't branch on
        it: it writes each word down and counts it only if it is.
        """
        cdef Py_ssize_t i = n - 1, left, lowest
        cdef uint32_t below[N]
        cdef uint32_t kept
        cdef int shift, k, n_below, is_below, position
        while i > 0:
            if self.position == N:
                self.refill()
            shift = leading_zeros(<uint32_t> (i + 1))
            lowest = max(<Py_ssize_t> 1, (<Py_ssize_t> 0x80000000 >> shift) - 1)    # down to there, i + 1 has as many bits
            position, left, n_below = self.position, i, 0
            while position < N and left >= lowest:
                below[n_below] = self.word[position] >> shift
                position += 1
                is_below = below[n_below] <= left
                n_below += is_below
                left -= is_below
            self.position = position
            for k in range(n_below):
                kept = order[i]
                order[i] = order[below[k]]
                order[below[k]] = kept
                i -= 1

    def draw(self, Py_ssize_t n, Py_ssize_t k):
        """min(k, n) indices below n: order = [0..n-1]; for each j: random.shuffle(order), take order[j].  O(n k)"""
        cdef Py_ssize_t j
        cdef uint32_t *order = self.order(n)
        drawn = []
        try:
            for j in range(min(k, n)):
                with nogil:
                    self.shuffle_in_place(order, n)
                drawn.append(order[j])
        finally:
            free(order)
        return drawn

    def shuffle(self, Py_ssize_t n):
        """[0..n-1] after random.shuffle."""
        return self.sample(n, n)

    def sample(self, Py_ssize_t n, Py_ssize_t k):
        """min(k, n) different indices below n: the first of [0..n-1] after random.shuffle.  O(n)"""
        cdef uint32_t *order = self.order(n)
        try:
            with nogil:
                self.shuffle_in_place(order, n)
            return [order[i] for i in range(min(k, n))]
        finally:
            free(order)

    def discard(self, n, k):
        """Moves the stream as a draw does whose indices nobody wants."""
        self.draw(n, k)

    def randint(self, Py_ssize_t n):
        """random.randint(0, n), for n below 2^32 - 1 (else ValueError)."""
        if not 0 <= n < 0xFFFFFFFF:
            raise ValueError(f"a number up to {n}: there may be 0 to 2^32 - 2")
        return self.below(<uint32_t> (n + 1))

    def random(self):
        """random.random(): uniform in [0, 1)."""
        cdef uint32_t high = self.next_word() >> 5, low = self.next_word() >> 6
        return (high * 67108864.0 + low) / 9007199254740992.0

    cdef uint32_t next_word(self) noexcept nogil:
        if self.position == N:
            self.refill()
        self.position += 1
        return self.word[self.position - 1]

    def choose(self, weights, Py_ssize_t k):
        """min(k, n) different indices of n weights, none negative, one after another, each with a chance in proportion.

        Those of weight 0 are never chosen, unless all are 0: then each has the same chance.  O(n k)
        """
        left, chosen = array("d", weights), []
        if not any(left):
            left = array("d", [1] * len(left))
        if not left:
            return chosen
        cdef double[::1] w = left
        cdef double sum, at
        cdef Py_ssize_t i, last
        while len(chosen) < k:
            sum, last = 0, -1
            for i in range(w.shape[0]):
                if w[i] > 0:
                    sum += w[i]
                    last = i
            if last < 0:
                break
            at, sum, i = self.random() * sum, 0, 0
            while i < last:
                sum += w[i]
                if at < sum:
                    break
                i += 1
            chosen.append(i)
            w[i] = 0
        return chosen

    cdef uint32_t *order(self, Py_ssize_t n) except NULL:
        if not 0 <= n < 1 << 31:
            raise ValueError(f"{n} things to draw from: there may be 0 to 2^31 - 1")
        cdef uint32_t *order = <uint32_t *> malloc((n + 1) * sizeof(uint32_t))
        if order == NULL:
            raise MemoryError(f"no room to shuffle {n} numbers")
        cdef Py_ssize_t i
        for i in range(n):
            order[i] = <uint32_t> i
        return order
