# The examples at work: their forward and backward pass, one by one or in groups.


cdef inline void backward(const bint update, float *rows, Py_ssize_t width, const Sparse *x, const float *delta,
                          float *below, Py_ssize_t width_below) noexcept nogil:
    """below[i] = rows[i] . delta for the active units i, 0 for the others; with update, rows[i] += x[i] delta.

    O(active units * H). Each row is read once for both.
    """
    memset(below, 0, width_below * sizeof(float))
    dot_rows(update, rows, width, width, x.index, x.value, x.n - 1, delta, below)
    if update:
        add_to_rows(rows, width, width, x.index + x.n - 1, x.value + x.n - 1, 1, delta)


cdef enum:
    OUT = -1000000000           # the output of a class that is out of the game


cdef struct Goal:
    const float *target         # the loss is the squared error to these outputs; NULL: it is the CE
    const uint8_t *present      # of all outputs, those that compete; NULL: all
    float *kept                 # where the outputs are written; NULL: nowhere


cdef class SortedInputs


cdef class Batch:
    """The examples at work. It reads weights w, and knows neither whose they are nor what becomes of the gradient.

    At level l, example b has the inputs x[l][b] and the outputs delta[l][b, :], which the gradient of its loss with respect
    to them, times its scale, replaces.

    loss   the sum of weight * loss over the examples differentiated since `load`
    plain  whether every example's loss is the CE of its task's outputs; else its goal says what
    """
    cdef Layout layout
    cdef double loss
    cdef Py_ssize_t room            # examples that there is memory for
    cdef Sparse **x
    cdef float **delta
    cdef float *weight              # of each example's loss
    cdef float *scale               # what its gradients are multiplied by: -lr * weight, say
    cdef int64_t *y                 # the output of its class
    cdef int64_t *head
    cdef Py_ssize_t *first_output   # of those that compete in its task
    cdef Py_ssize_t *end_output
    cdef bint plain
    cdef Goal *goal
    cdef list memory
    # Of a group at work: its inputs by row, sums of a level, and its gradients as lists
    cdef ByRow by_row
    cdef Sparse d[GROUP]
    cdef float *sums                # (GROUP, width)
    cdef float *d_value             # (GROUP, most)
    cdef Py_ssize_t most            # entries of a list, and floats of a row
    cdef int32_t *all               # 0, 1, 2, ...: the list of all outputs
    cdef float **turned             # of each level but the first, its weights (n_out, width below), as `turn` left them
    cdef Memory group_memory

    def __cinit__(self, Layout layout):
        cdef Py_ssize_t l, n_bytes, n_turned = 0, most = 1
        cdef float *at
        self.layout = layout
        for l in range(layout.n_layers):
            most = max(most, padded(layout.layer[l].n_in + 3), layout.layer[l].width)
        for l in range(1, layout.n_levels):
            n_turned += layout.level(l, 0).n_out * layout.level(l - 1, 0).width
        n_bytes = padded(2 * layout.n_levels) * sizeof(float) + n_turned * sizeof(float)
        n_bytes += most * (BUCKET * sizeof(Entry) + 2 * GROUP * sizeof(float)) + 2 * most * sizeof(int32_t)
        self.group_memory = Memory(n_bytes)
        self.turned = <float **> self.group_memory.at
        at = <float *> self.group_memory.at + padded(2 * layout.n_levels)
        for l in range(1, layout.n_levels):
            self.turned[l] = at
            at += layout.level(l, 0).n_out * layout.level(l - 1, 0).width
        self.sums, self.d_value, self.most = at, at + GROUP * most, most
        self.by_row.entry = <Entry *> (self.d_value + GROUP * most)
        self.by_row.count = <int32_t *> (self.by_row.entry + BUCKET * most)
        self.all = self.by_row.count + most
        for l in range(most):
            self.all[l] = <int32_t> l

    cdef int reserve(self, Py_ssize_t n) except -1:
        """Make room for n examples."""
        if n <= self.room:
            return 0
        cdef Layout layout = self.layout
        cdef Py_ssize_t l, b, width
        cdef Sparse *inputs
        cdef int32_t *index
        self.room = 0
        memory = [Memory(layout.n_levels * (sizeof(Sparse *) + sizeof(float *))),
                  Memory(n * (2 * sizeof(int64_t) + 2 * sizeof(Py_ssize_t) + 2 * sizeof(float) + sizeof(Goal)))]
        self.x = <Sparse **> (<Memory> memory[0]).at
        self.delta = <float **> (self.x + layout.n_levels)
        self.goal = <Goal *> (<Memory> memory[1]).at
        self.y = <int64_t *> (self.goal + n)
        self.head = self.y + n
        self.first_output = <Py_ssize_t *> (self.head + n)
        self.end_output = self.first_output + n
        self.weight = <float *> (self.end_output + n)
        self.scale = self.weight + n
        for l in range(layout.n_levels):
            width = layout.level(l, 0).width
            memory.append(Memory(n * width * sizeof(float)))
            self.delta[l] = <float *> (<Memory> memory[-1]).at
            memory.append(Memory(n * sizeof(Sparse)))
            self.x[l] = inputs = <Sparse *> (<Memory> memory[-1]).at
            if l:
                width = padded(layout.level(l, 0).n_in + 1)
                memory.append(Memory(n * width * (sizeof(int32_t) + sizeof(float))))
                index = <int32_t *> (<Memory> memory[-1]).at
                for b in range(n):
                    inputs[b].index = index + b * width
                    inputs[b].value = <float *> (index + n * width) + b * width
        self.memory, self.room = memory, n
        return 0

    cdef int load(self, Examples examples, slots, weights, float rate) except -1:
        """Put the examples in these slots to work; weights None means 1. Returns their number.

        The gradients will be those of the weighted losses, times rate.
        """
        cdef Layout layout = self.layout
        cdef Py_ssize_t b, n = len(slots)
        cdef Slot *s
        if examples.n_inputs != layout.n_inputs:
            raise ValueError(f"examples of {examples.n_inputs} inputs for a net of {layout.n_inputs}")
        if weights is not None and len(weights) != n:
            raise ValueError(f"{len(weights)} weights for {n} examples")
        self.reserve(n)
        for b in range(n):
            s = examples.filled(slots[b])
            prefetch(&s.x)
            layout.outputs_of(s.t, &self.first_output[b], &self.end_output[b])
            self.y[b] = s.y - layout.first_class
            if not self.first_output[b] <= self.y[b] < self.end_output[b]:
                what = f"{layout.n_outputs} outputs"
                if layout.n_ranges or layout.first_class:
                    what = (f"classes {layout.first_class + self.first_output[b]} to "
                            f"{layout.first_class + self.end_output[b] - 1} for task {s.t}")
                raise IndexError(f"label {s.y} of a net with {what}")
            if layout.n_heads > 1 and not 0 <= s.t < layout.n_heads:
                raise IndexError(f"task {s.t} of a net with {layout.n_heads} first layers")
            self.x[0][b] = s.x
            self.head[b] = s.t if layout.n_heads > 1 else 0
            self.weight[b] = 1 if weights is None else weights[b]
            self.scale[b] = rate * self.weight[b]
        self.loss, self.plain = 0, True
        return n

    cdef int load_terms(self, Examples examples, terms, float rate, list masks, list kept) except -1:
        """load() the examples of a sum of terms (slots, weight, squared, classes, keeps_logits). (MLP.sgd_sum)

        masks gets what must stay while they are at work, kept the (slots, outputs) that the forward pass will fill.
        """
        cdef Layout layout = self.layout
        cdef Py_ssize_t b = 0, slot, n, most = layout.n_outputs
        cdef Goal goal
        cdef uint8_t[::1] mask
        cdef float[:, ::1] rows
        cdef Py_ssize_t i
        n = self.load(examples, [slot for slots, *_ in terms for slot in slots],
                      [<double> weight / len(slots) for slots, weight, *_ in terms for _ in slots], rate)
        for slots, _, squared, classes, keeps_logits in terms:
            if (squared or keeps_logits) and examples.n_logits != most:
                raise ValueError(f"examples of {examples.n_logits} logits for a net of {most} outputs")
            goal.present = goal.target = goal.kept = NULL
            if keeps_logits:
                kept.append((slots, np.empty((len(slots), most), np.float32)))
                rows = kept[-1][1]
            if classes is not None:
                present = np.zeros(most, np.uint8)
                present[np.asarray(classes, int) - layout.first_class] = 1
                masks.append(present)
                mask = present
                goal.present = &mask[0]
            for i, slot in enumerate(slots):
                if goal.present != NULL and not goal.present[self.y[b]]:
                    raise ValueError(f"label {self.y[b]} is none of the classes {list(classes)}")
                if squared:
                    goal.target = examples.logits + slot * most
                if keeps_logits:
                    goal.kept = &rows[i, 0]
                self.goal[b] = goal
                b += 1
        self.plain = False
        if layout.n_ranges:
            self.weigh_squares(terms)
        return n

    cdef int weigh_squares(self, terms) except -1:
        """The mean over the examples and the outputs of a squared error: an example of more outputs counts more."""
        cdef Py_ssize_t b = 0, first, total
        for slots, _, squared, *_ in terms:
            first, total = b, 0
            for b in range(first, first + len(slots)):
                total += self.end_output[b] - self.first_output[b]
            b = first
            for b in range(first, first + len(slots)):
                if squared:
                    factor = (self.end_output[b] - self.first_output[b]) * <double> len(slots) / total
                    self.weight[b] *= factor
                    self.scale[b] *= factor
            b = first + len(slots)
        return 0

    cdef inline float *outputs_at(self, Py_ssize_t l, Py_ssize_t b) noexcept nogil:
        """Example b's outputs of level l, or their gradient."""
        return self.delta[l] + b * self.layout.level(l, 0).width

    cdef inline Py_ssize_t group(self, Py_ssize_t b, Py_ssize_t end) noexcept nogil:
        """Number of examples from b on, at most GROUP, that have the same head."""
        cdef Py_ssize_t n = 1
        while n < GROUP and b + n < end and self.head[b + n] == self.head[b]:
            n += 1
        return n

    cdef void turn(self, const float *w) noexcept nogil:
        """Transpose all layers but the first, so that gradients of groups can pass down them. Whenever w has changed."""
        cdef Py_ssize_t l
        for l in range(1, self.layout.n_levels):
            self.turn_layer(l, w)

    cdef void turn_layer(self, Py_ssize_t l, const float *w) noexcept nogil:
        cdef Layer *layer = self.layout.level(l, 0)
        transpose(w + layer.start, layer.n_in, layer.n_out, layer.width, self.turned[l], self.layout.level(l - 1, 0).width)

    # n examples from b on, one group

    cdef void outputs(self, const float *w, Py_ssize_t b, Py_ssize_t n) noexcept nogil:
        """Forward pass: x[l] of every level, and the net's outputs in delta[last]."""
        cdef Py_ssize_t l, e
        cdef Layer *layer
        for l in range(self.layout.n_levels):
            layer = self.layout.level(l, self.head[b])
            if l:
                for e in range(b, b + n):
                    active_units(self.delta[l - 1] + e * self.layout.level(l - 1, 0).width, layer.n_in, &self.x[l][e])
            forward_group(w + layer.start, layer.n_in + 1, layer.width, self.x[l] + b, n, self.delta[l] + b * layer.width)

    cdef void differentiate(self, const float *w, Py_ssize_t b, Py_ssize_t n) noexcept nogil:
        """Forward and backward pass: delta[l] of every level becomes scale * the gradient of CE; adds up the loss.

        For n >= FEW, `turn` comes first.
        """
        cdef Py_ssize_t l, e
        cdef Layer *layer
        cdef Layer *below
        self.outputs(w, b, n)
        for e in range(b, b + n):
            self.differentiate_outputs(e)
        if n < FEW:
            for l in range(self.layout.n_levels - 1, 0, -1):
                layer, below = self.layout.level(l, 0), self.layout.level(l - 1, 0)
                for e in range(b, b + n):
                    backward(False, <float *> w + layer.start, layer.width, &self.x[l][e],
                             self.delta[l] + e * layer.width, self.delta[l - 1] + e * below.width, below.width)
        else:
            self.pass_down(b, n)

    cdef void pass_down(self, Py_ssize_t b, Py_ssize_t n) noexcept nogil:
        """backward() for n >= FEW examples: the gradients pass over the transposed rows as inputs pass over the rows."""
        cdef Py_ssize_t l
        if self.layout.n_levels > 1:
            self.deltas_of(self.layout.n_levels - 1, b, n)
        for l in range(self.layout.n_levels - 1, 0, -1):
            forward_group(self.turned[l], self.layout.level(l, 0).n_out, self.layout.level(l - 1, 0).width, self.d, n,
                          self.sums)
            self.keep_sums(l - 1, b, n)

    cdef void keep_sums(self, Py_ssize_t l, Py_ssize_t b, Py_ssize_t n) noexcept nogil:
        """delta[l] of the active units becomes their sums, and 0 for the others; and as lists in d."""
        cdef Py_ssize_t e, width = self.layout.level(l, 0).width
        for e in range(n):
            self.d[e].value = self.d_value + e * self.most
            keep_active(&self.x[l + 1][b + e], self.sums + e * width, self.outputs_at(l, b + e), width, &self.d[e])

    cdef void step(self, float *w, Py_ssize_t b, Py_ssize_t n, Frames frames) noexcept nogil:
        """differentiate() n >= FEW examples and add their gradients to w, a level as soon as they have passed it.

        So the rows of a wide layer are not transposed: they are read once for both.
        """
        cdef Py_ssize_t l, e
        cdef Layer *layer
        self.outputs(w, b, n)
        for e in range(b, b + n):
            self.differentiate_outputs(e)
        if self.layout.n_levels > 1:
            self.deltas_of(self.layout.n_levels - 1, b, n)
        for l in range(self.layout.n_levels - 1, 0, -1):
            layer = self.layout.level(l, 0)
            if layer.width > WIDE:
                sort_by_row(self.x[l] + b, n, layer.n_in + 1, 1, &self.by_row)
                self.touch_sorted(layer, &self.by_row, frames)
                dot_sorted(w + layer.start, layer.n_in, layer.width, &self.by_row, self.outputs_at(l, b), self.sums,
                           self.layout.level(l - 1, 0).width)
            else:
                self.turn_layer(l, w)
                forward_group(self.turned[l], layer.n_out, self.layout.level(l - 1, 0).width, self.d, n, self.sums)
                self.accumulate(l, b, n, self.outputs_at(l, b), False, w, frames)
            self.keep_sums(l - 1, b, n)
        self.accumulate(0, b, n, self.outputs_at(0, b), False, w, frames)

    cdef inline void touch_sorted(self, Layer *layer, const ByRow *x, Frames frames) noexcept nogil:
        """Tell frames, unless they are None, of the rows that x uses."""
        cdef Py_ssize_t i
        if frames is not None and frames.depth:
            for i in range(layer.n_in + 1):
                if x.count[i]:
                    frames.touch(layer.first + i)

    cdef Sparse *deltas_of(self, Py_ssize_t l, Py_ssize_t b, Py_ssize_t n) noexcept nogil:
        """delta[l] of n examples from b on as lists, until the next call or pass_down."""
        cdef Py_ssize_t e
        cdef Sparse *d
        for e in range(n):
            d = &self.d[e]
            if l == self.layout.n_levels - 1:
                d.n, d.index, d.value = self.layout.n_outputs, self.all, self.outputs_at(l, b + e)
            else:
                d.value = self.d_value + e * self.most
                take_active(&self.x[l + 1][b + e], self.outputs_at(l, b + e), d)
        return self.d

    cdef inline void differentiate_outputs(self, Py_ssize_t b) noexcept nogil:
        """The loss of example b, and its gradient in the place of the net's outputs."""
        cdef Py_ssize_t last = self.layout.n_levels - 1
        cdef Layer *layer = self.layout.level(last, self.head[b])
        cdef float *z = self.delta[last] + b * layer.width
        cdef Py_ssize_t start = self.first_output[b], end = self.end_output[b], width = layer.width
        cdef bint squared = not self.plain and self.prepare(b, z, layer.n_out)
        if self.layout.n_ranges:            # the outputs from start to end are a net's, and the others have no gradient
            memset(z, 0, start * sizeof(float))
            memset(z + end, 0, (width - end) * sizeof(float))
            width = end - start
        if squared:
            self.loss += self.weight[b] * squared_error(z + start, end - start, width, self.goal[b].target + start,
                                                        self.scale[b])
        else:
            self.loss += self.weight[b] * cross_entropy(z + start, end - start, width, self.y[b] - start, self.scale[b])

    cdef bint prepare(self, Py_ssize_t b, float *z, Py_ssize_t n_out) noexcept nogil:
        """Keep example b's outputs z, and take those that don't compete out; whether its loss is a squared error."""
        cdef Goal *goal = &self.goal[b]
        cdef Py_ssize_t j
        if goal.kept != NULL:
            memcpy(goal.kept, z, n_out * sizeof(float))
        if goal.present != NULL:
            for j in range(n_out):
                if not goal.present[j]:
                    z[j] = OUT
        return goal.target != NULL

    cdef void accumulate(self, Py_ssize_t l, Py_ssize_t b, Py_ssize_t n, const float *delta, bint fresh,
                         float *target, Frames frames, ByRow *by_row=NULL) noexcept nogil:
        """target += sum over the examples of x[l] outer delta, delta (n, width) being delta[l] or a multiple of it.

        With fresh, nothing is there yet, and level l of target becomes that sum.

        target is laid out as the weights; if it is the weights, frames are those to be told, else None. by_row are the
        inputs x[l] by row, or NULL.
        """
        cdef Layer *layer = self.layout.level(l, self.head[b])
        cdef float *rows = target + layer.start
        cdef Sparse *x = self.x[l] + b
        cdef Py_ssize_t e
        if n < FEW:
            if fresh:
                memset(rows, 0, (layer.n_in + 1) * layer.width * sizeof(float))
            for e in range(n):
                add_outer(layer, rows, &x[e], delta + e * layer.width, frames)
            return
        if by_row == NULL:
            sort_by_row(x, n, layer.n_in + 1, layer.width, &self.by_row)
            by_row = &self.by_row
        self.touch_sorted(layer, by_row, frames)
        if fresh:
            add_sorted(True, by_row, layer.n_in + 1, layer.width, delta, rows)
        else:
            add_sorted(False, by_row, layer.n_in + 1, layer.width, delta, rows)

    cdef double mean_gradient(self, const float *w, Examples examples, slots, float *target,
                              SortedInputs kept=None) except? -1:
        """target = the gradient of the examples' mean CE, which is returned; none: ValueError. kept: for them alone."""
        cdef Py_ssize_t b = 0, m, l, n = len(slots)
        if n == 0:
            raise ValueError("the mean loss of no examples has no gradient")
        self.load(examples, slots, None, <float> 1 / n)
        cdef ByRow *by_row = NULL if kept is None else kept.of(self, examples, slots)
        with nogil:
            if self.layout.n_heads > 1:
                memset(target, 0, self.layout.n_weights * sizeof(float))
            if n >= FEW:
                self.turn(w)
            while b < n:
                m = self.group(b, n)
                self.differentiate(w, b, m)
                for l in range(self.layout.n_levels):
                    self.accumulate(l, b, m, self.outputs_at(l, b), b == 0 and self.layout.n_heads == 1, target,
                                    None, by_row + b // GROUP if by_row != NULL and l == 0 else NULL)
                b += m
        return self.loss / n


cdef class SortedInputs:
    """The inputs of a list of examples by row, kept for as long as it stays the same: a past task's does.

    Memory: 8 bytes for each non-zero input.
    """
    cdef Examples examples
    cdef Py_ssize_t n
    cdef Memory memory, version_memory
    cdef int64_t *versions          # (n,) of the examples' slots
    cdef ByRow *groups

    cdef ByRow *of(self, Batch batch, Examples examples, slots) except? NULL:
        """Those of each group of the examples in these slots, which are at work, all with one head.

        NULL unless they are the same as at the last call: who always asks for others doesn't pay for keeping.
        """
        cdef Py_ssize_t b, e, m, n = len(slots), n_groups = (n + GROUP - 1) // GROUP, n_entries = 0
        cdef Py_ssize_t n_rows = batch.layout.n_inputs + 1
        cdef ByRow *group
        cdef Entry *entry
        cdef int32_t *count
        cdef int64_t version
        cdef bint same = examples is self.examples and n == self.n
        if not same:
            self.examples, self.n, self.version_memory = examples, n, Memory(n * sizeof(int64_t))
            self.versions = <int64_t *> self.version_memory.at
        for b in range(n):
            version = examples.slots[<Py_ssize_t> slots[b]].version
            same &= self.versions[b] == version
            self.versions[b] = version
        if not same:
            self.memory = None
            return NULL
        if self.memory is None:
            for b in range(n):
                n_entries += batch.x[0][b].n
            self.memory = Memory(n_entries * sizeof(Entry) + n_groups * (sizeof(ByRow) + n_rows * sizeof(int32_t)))
            self.groups = group = <ByRow *> self.memory.at
            entry = <Entry *> (self.groups + n_groups)
            count = <int32_t *> (entry + n_entries)
            for b from 0 <= b < n by GROUP:
                m = batch.group(b, n)
                sort_by_row(batch.x[0] + b, m, n_rows, batch.layout.level(0, 0).width, &batch.by_row)
                group.entry, group.count = entry, count
                pack_rows(&batch.by_row, n_rows, group)
                for e in range(b, b + m):
                    entry += batch.x[0][e].n
                count += n_rows
                group += 1
        return self.groups


cdef inline void add_outer(Layer *layer, float *rows, const Sparse *x, const float *delta, Frames frames) noexcept nogil:
    """rows[i] += x[i] delta; a few rows at a time, so that those that frames save are still in the cache.  O(S H)"""
    cdef Py_ssize_t k, n
    for k in range(0, x.n, 16):
        n = min(<Py_ssize_t> 16, x.n - k)
        if frames is not None and frames.depth:
            frames.touch_some(layer, x.index + k, n)
        add_to_rows(rows, layer.width, layer.width, x.index + k, x.value + k, n, delta)
