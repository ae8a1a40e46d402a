"""The Triton kernels: retrieval, its two gradients, and the attributed rows. ``README.md`` derives what they compute.

Shape legend: M queries and N memory rows, in blocks of BM and BN; D width, in ``TILES`` tiles of BD. The tiles of one
block of memory are loaded once (asynchronously) and serve every product of the iteration. A program of the grid's
second axis reads the rows [first, last) of the memory, ``span`` of them.
"""

# mypy: ignore-errors
# Triton compiles this subset of Python itself, with types of its own
import triton
import triton.language as tl


@triton.jit
def _mix(x):
    """``reference._mix`` on uint32 words."""
    x ^= x >> 16
    x *= 0x7FEB352D
    x ^= x >> 15
    return x * 0x846CA68B


@triton.jit
def _keep(seed, rows, columns, threshold):
    """``reference.keep_mask`` of a block: entry (i, j) depends on the seed, i and j alone."""
    word = tl.load(seed)
    low = (word & 0xFFFFFFFF).to(tl.uint32)
    high = ((word >> 32) & 0xFFFFFFFF).to(tl.uint32)
    row_keys = _mix(rows.to(tl.uint32) * 0x9E3779B1 + low)
    column_keys = _mix(columns.to(tl.uint32) * 0x9E3779B1 + high)
    mixed = _mix(row_keys[:, None] ^ column_keys[None, :])
    return mixed.to(tl.int32, bitcast=True) >= threshold


@triton.jit
def _tile(base, first, bound, tile: tl.constexpr, ROWS: tl.constexpr, D: tl.constexpr, BD: tl.constexpr):
    """Tile [ROWS, BD] from row ``first`` of a row-major matrix [bound, D]; zeros outside."""
    rows = tl.arange(0, ROWS)
    columns = tl.arange(0, BD)
    inside = (rows < bound - first)[:, None]
    if D % BD != 0:
        inside = inside & (columns < D - tile * BD)[None, :]
    # a scalar 64-bit base, and 32-bit offsets that all tiles and iterations share: few registers
    return tl.load(
        base + (tl.cast(first, tl.int64) * D + tile * BD) + (rows[:, None] * D + columns[None, :]), inside, 0.0
    )


@triton.jit
def _store(base, value, first, bound, tile: tl.constexpr, ROWS: tl.constexpr, D: tl.constexpr, BD: tl.constexpr):
    rows = tl.arange(0, ROWS)
    columns = tile * BD + tl.arange(0, BD)
    inside = (rows < bound - first)[:, None] & (columns < D)[None, :]
    tl.store(base + tl.cast(first, tl.int64) * D + rows[:, None] * D + columns[None, :], value, mask=inside)


@triton.jit
def _zeros(rows: tl.constexpr, columns: tl.constexpr, FLIP: tl.constexpr):
    return tl.zeros([columns if FLIP else rows, rows if FLIP else columns], tl.float32)


@triton.jit
def _upright(x, FLIP: tl.constexpr):
    return tl.trans(x) if FLIP else x


@triton.jit
def _dot(a, b, total, FLIP: tl.constexpr, PRECISION: tl.constexpr):
    """``total + a b``, both sides transposed if ``FLIP``: the memory's side then fills the rows of the tensor core."""
    return tl.dot(b.T if FLIP else a, a.T if FLIP else b, total, input_precision=PRECISION)


@triton.jit
def _visible(rows, columns, N, q_group, z_group, GROUPED: tl.constexpr, M):
    """Which scores of a block count: inside the memory, and not of the query's own group."""
    seen = (columns < N)[None, :]
    if GROUPED:
        own = tl.load(q_group + rows, mask=rows < M, other=-1)
        theirs = tl.load(z_group + columns, mask=columns < N, other=-1)
        seen = seen & ((own[:, None] != theirs[None, :]) | (theirs == -1)[None, :])
    return seen


@triton.jit
def forward_kernel(
    q, z, scale, q_group, z_group, seed, r, lse, mass, entropy, M, N, span, threshold, rescale,
    D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, FLIP: tl.constexpr, RELOAD: tl.constexpr,
    GROUPED: tl.constexpr, DROPOUT: tl.constexpr, ENTROPY: tl.constexpr, INT8: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Block of queries × span of memory rows → retrieved [splits, M, D], lse, mass, entropy [splits, M]."""
    TILES: tl.constexpr = (D + BD - 1) // BD
    top = tl.program_id(0) * BM
    rows = top + tl.arange(0, BM)
    split = tl.program_id(1)
    first = split * span
    last = tl.minimum(first + span, N)
    peak = tl.full([BM], float("-inf"), tl.float32)
    total = tl.zeros([BM], tl.float32)
    kept = tl.zeros([BM], tl.float32)
    energy = tl.zeros([BM], tl.float32)
    sums = ()
    states = ()
    for t in tl.static_range(TILES):
        sums += (_zeros(BM, BD, FLIP),)
        if not RELOAD:
            states += (_tile(q, top, M, t, BM, D, BD),)
    for start in tl.range(first, last, BN, disable_licm=RELOAD):
        columns = start + tl.arange(0, BN)
        score = _zeros(BM, BN, FLIP)
        tiles = ()
        for t in tl.static_range(TILES):
            tile = _tile(z, start, last, t, BN, D, BD)
            state = _tile(q, top, M, t, BM, D, BD) if RELOAD else states[t]
            if INT8:
                tile = tile.to(state.dtype)
            score = _dot(state, tile.T, score, FLIP, PRECISION)
            tiles += (tile,)
        score = _upright(score, FLIP)
        if INT8:
            scales = tl.load(scale + columns, mask=columns < last, other=0.0)
            score *= scales[None, :]
        score = tl.where(_visible(rows, columns, last, q_group, z_group, GROUPED, M), score, float("-inf"))
        new_peak = tl.maximum(peak, tl.max(score, 1))
        shift = tl.where(new_peak == float("-inf"), 0.0, new_peak)
        decay = tl.exp(peak - shift)
        peak = new_peak
        weight = tl.exp(score - shift[:, None])
        total = total * decay + tl.sum(weight, 1)
        if ENTROPY:
            energy = energy * decay + tl.sum(tl.where(weight > 0, weight * score, 0.0), 1)
        if DROPOUT:
            weight = tl.where(_keep(seed, rows, columns, threshold), weight * rescale, 0.0)
            kept = kept * decay + tl.sum(weight, 1)
        if INT8:
            weight *= scales[None, :]
        weight = weight.to(tiles[0].dtype)
        lifted = ()
        for t in tl.static_range(TILES):
            scaled = sums[t] * (decay[None, :] if FLIP else decay[:, None])
            lifted += (_dot(weight, tiles[t], scaled, FLIP, PRECISION),)
        sums = lifted
    inverse = tl.where(total > 0, 1 / total, 0.0)
    out = tl.cast(split, tl.int64) * M
    for t in tl.static_range(TILES):
        _store(r + out * D, _upright(sums[t], FLIP) * inverse[:, None], top, M, t, BM, D, BD)
    log_total = tl.where(peak == float("-inf"), float("-inf"), peak + tl.log(total))
    tl.store(lse + out + rows, log_total, mask=rows < M)
    if DROPOUT:
        tl.store(mass + out + rows, kept * inverse, mask=rows < M)
    else:
        tl.store(mass + out + rows, tl.where(total > 0, 1.0, 0.0), mask=rows < M)
    if ENTROPY:
        tl.store(entropy + out + rows, tl.where(total > 0, log_total - energy * inverse, 0.0), mask=rows < M)


@triton.jit
def _association(score, rows, columns, last, q_group, z_group, lse, GROUPED: tl.constexpr, M):
    """softmax weights of a block from the queries' log-sum-exp; 0 where hidden."""
    log_total = tl.load(lse + rows, mask=rows < M, other=0.0)
    log_total = tl.where(log_total == float("-inf"), 0.0, log_total)
    seen = _visible(rows, columns, last, q_group, z_group, GROUPED, M)
    return tl.where(seen & (rows < M)[:, None], tl.exp(score - log_total[:, None]), 0.0)


@triton.jit
def backward_queries_kernel(
    q, g, z, scale, q_group, z_group, seed, lse, centre, lift, dq, M, N, span, threshold, rescale,
    D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, FLIP: tl.constexpr, RELOAD: tl.constexpr,
    GROUPED: tl.constexpr, DROPOUT: tl.constexpr, INT8: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """∂L/∂q of a block of queries from a span of memory rows: [splits, M, D], to be summed over the splits.

    ``g`` is ∂L/∂r; ``lift`` ∂L/∂mass; ``centre`` Σ_k a_ik ∂L/∂a_ik − ∂L/∂lse.
    """
    TILES: tl.constexpr = (D + BD - 1) // BD
    top = tl.program_id(0) * BM
    rows = top + tl.arange(0, BM)
    split = tl.program_id(1)
    first = split * span
    last = tl.minimum(first + span, N)
    middle = tl.load(centre + rows, mask=rows < M, other=0.0)
    raised = tl.load(lift + rows, mask=rows < M, other=0.0)
    sums = ()
    states = ()
    grads = ()
    for t in tl.static_range(TILES):
        sums += (_zeros(BM, BD, FLIP),)
        if not RELOAD:
            states += (_tile(q, top, M, t, BM, D, BD),)
            grads += (_tile(g, top, M, t, BM, D, BD),)
    for start in tl.range(first, last, BN, disable_licm=RELOAD):
        columns = start + tl.arange(0, BN)
        score = _zeros(BM, BN, FLIP)
        slope = _zeros(BM, BN, FLIP)
        tiles = ()
        for t in tl.static_range(TILES):
            tile = _tile(z, start, last, t, BN, D, BD)
            state = _tile(q, top, M, t, BM, D, BD) if RELOAD else states[t]
            grad = _tile(g, top, M, t, BM, D, BD) if RELOAD else grads[t]
            if INT8:
                tile = tile.to(state.dtype)
            score = _dot(state, tile.T, score, FLIP, PRECISION)
            slope = _dot(grad, tile.T, slope, FLIP, PRECISION)
            tiles += (tile,)
        score = _upright(score, FLIP)
        slope = _upright(slope, FLIP)
        if INT8:
            scales = tl.load(scale + columns, mask=columns < last, other=0.0)
            score *= scales[None, :]
            slope *= scales[None, :]
        weight = _association(score, rows, columns, last, q_group, z_group, lse, GROUPED, M)
        slope += raised[:, None]
        if DROPOUT:
            slope = tl.where(_keep(seed, rows, columns, threshold), slope * rescale, 0.0)
        slope = weight * (slope - middle[:, None])
        if INT8:
            slope *= scales[None, :]
        slope = slope.to(tiles[0].dtype)
        added = ()
        for t in tl.static_range(TILES):
            added += (_dot(slope, tiles[t], sums[t], FLIP, PRECISION),)
        sums = added
    out = dq + tl.cast(split, tl.int64) * M * D
    for t in tl.static_range(TILES):
        _store(out, _upright(sums[t], FLIP), top, M, t, BM, D, BD)


@triton.jit
def backward_memory_kernel(
    q, g, z, q_group, z_group, seed, lse, centre, lift, dz, M, N, threshold, rescale,
    D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, GROUPED: tl.constexpr,
    DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """∂L/∂z of a block of memory rows, one tile of its width: [N, D]. Arguments as of ``backward_queries_kernel``.

    The bank is frozen as a rule, so this one is kept simple: each tile of the width computes the scores again.
    """
    top = tl.program_id(0) * BN
    columns = top + tl.arange(0, BN)
    part = tl.program_id(1) * BD
    total = tl.zeros([BN, BD], tl.float32)
    inner = tl.arange(0, BD)
    mine = tl.arange(0, BN)[:, None] * D
    theirs = tl.arange(0, BM)[:, None] * D
    for start in range(0, M, BM):
        rows = start + tl.arange(0, BM)
        score = tl.zeros([BN, BM], tl.float32)
        slope = tl.zeros([BN, BM], tl.float32)
        here = (rows < M)[:, None]
        queries = q + tl.cast(start, tl.int64) * D + theirs
        grads = g + tl.cast(start, tl.int64) * D + theirs
        for k in range(0, D, BD):
            inside = (k + inner < D)[None, :]
            tile = tl.load(
                z + tl.cast(top, tl.int64) * D + mine + (k + inner)[None, :], (columns < N)[:, None] & inside, 0.0
            )
            state = tl.load(queries + (k + inner)[None, :], here & inside, 0.0)
            grad = tl.load(grads + (k + inner)[None, :], here & inside, 0.0)
            score = tl.dot(tile, state.T, score, input_precision=PRECISION)
            slope = tl.dot(tile, grad.T, slope, input_precision=PRECISION)
        weight = tl.trans(_association(tl.trans(score), rows, columns, N, q_group, z_group, lse, GROUPED, M))
        slope += tl.load(lift + rows, mask=rows < M, other=0.0)[None, :]
        kept = weight
        if DROPOUT:
            keep = tl.trans(_keep(seed, rows, columns, threshold))
            slope = tl.where(keep, slope * rescale, 0.0)
            kept = tl.where(keep, weight * rescale, 0.0)
        slope = weight * (slope - tl.load(centre + rows, mask=rows < M, other=0.0)[None, :])
        inside = here & (part + inner < D)[None, :]
        state = tl.load(queries + (part + inner)[None, :], inside, 0.0)
        grad = tl.load(grads + (part + inner)[None, :], inside, 0.0)
        total = tl.dot(slope.to(state.dtype), state, total, input_precision=PRECISION)
        total = tl.dot(kept.to(grad.dtype), grad, total, input_precision=PRECISION)
    inside = (columns < N)[:, None] & (part + inner < D)[None, :]
    tl.store(dz + tl.cast(top, tl.int64) * D + mine + (part + inner)[None, :], total, mask=inside)


@triton.jit
def top_rows_kernel(
    q, z, scale, q_group, z_group, scores, indices, M, N, span,
    D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, K: tl.constexpr, SLOTS: tl.constexpr,
    GROUPED: tl.constexpr, INT8: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The K largest scores of each query in a span of memory, and their rows: [splits, M, K]; −inf and −1 if fewer.

    ``SLOTS``: K rounded up to a power of two.
    """
    top = tl.program_id(0) * BM
    rows = top + tl.arange(0, BM)
    split = tl.program_id(1)
    first = split * span
    last = tl.minimum(first + span, N)
    slots = tl.arange(0, SLOTS)[None, :]
    best = tl.full([BM, SLOTS], float("-inf"), tl.float32)
    where = tl.full([BM, SLOTS], -1, tl.int32)
    inner = tl.arange(0, BD)
    for start in range(first, last, BN):
        columns = start + tl.arange(0, BN)
        score = tl.zeros([BN, BM], tl.float32)
        for k in range(0, D, BD):
            inside = (k + inner < D)[None, :]
            offsets = tl.arange(0, BN)[:, None] * D + (k + inner)[None, :]
            tile = tl.load(z + tl.cast(start, tl.int64) * D + offsets, (columns < last)[:, None] & inside, 0.0)
            offsets = tl.cast(rows, tl.int64)[:, None] * D + (k + inner)[None, :]
            state = tl.load(q + offsets, (rows < M)[:, None] & inside, 0.0)
            if INT8:
                tile = tile.to(state.dtype)
            score = tl.dot(tile, state.T, score, input_precision=PRECISION)
        score = tl.trans(score)
        if INT8:
            score *= tl.load(scale + columns, mask=columns < last, other=0.0)[None, :]
        score = tl.where(_visible(rows, columns, last, q_group, z_group, GROUPED, M), score, float("-inf"))
        merged = tl.full([BM, SLOTS], float("-inf"), tl.float32)
        origin = tl.full([BM, SLOTS], -1, tl.int32)
        for k in range(K):  # take the largest of both lists, K times
            new = tl.max(score, 1)
            old = tl.max(best, 1)
            new_row = tl.min(tl.where(score == new[:, None], columns[None, :], 2147483647), 1)
            old_slot = tl.min(tl.where(best == old[:, None], slots, SLOTS), 1)
            old_row = tl.sum(tl.where(slots == old_slot[:, None], where, 0), 1)
            is_new = new > old
            value = tl.where(is_new, new, old)
            row = tl.where(value == float("-inf"), -1, tl.where(is_new, new_row, old_row))
            merged = tl.where(slots == k, value[:, None], merged)
            origin = tl.where(slots == k, row[:, None], origin)
            score = tl.where(is_new[:, None] & (columns[None, :] == new_row[:, None]), float("-inf"), score)
            best = tl.where((slots == old_slot[:, None]) & (is_new == 0)[:, None], float("-inf"), best)
        best = merged
        where = origin
    out = tl.cast(split, tl.int64) * M * K + rows[:, None] * K + slots
    inside = (rows < M)[:, None] & (slots < K)
    tl.store(scores + out, best, mask=inside)
    tl.store(indices + out, where, mask=inside)
