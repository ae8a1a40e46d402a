"""The Triton kernels: fused forward and gradients, and what lies between two products. ``README.md`` derives them.

The letters are those of FlashAttention-2, with the memory ``z`` as key and value (table in the README). Shape legend:
M queries and N memory rows, in blocks of BM and BN; D width, in ``TILES`` tiles of BD. The tiles of one block of memory
are loaded once (asynchronously) and serve every product of the iteration. A program of the grid's second axis reads the
rows [lo, hi) of the memory, one split of ``rows_per_split``.
"""

# mypy: ignore-errors
# Triton compiles this subset of Python itself, with types of its own
import triton
import triton.language as tl

LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)


@triton.jit
def _mix(x):
    """``reference._mix`` on uint32 words."""
    x ^= x >> 16
    x *= 0x7FEB352D
    x ^= x >> 15
    return x * 0x846CA68B


@triton.jit
def _dropout_keep_mask(seed, offs_m, offs_n, threshold):
    """``reference.dropout_keep_mask`` of a block, [BM, BN]: entry (i, j) depends on the seed, i and j alone."""
    word = tl.load(seed)
    low = (word & 0xFFFFFFFF).to(tl.uint32)
    high = ((word >> 32) & 0xFFFFFFFF).to(tl.uint32)
    keys_m = _mix(offs_m.to(tl.uint32) * 0x9E3779B1 + low)
    keys_n = _mix(offs_n.to(tl.uint32) * 0x9E3779B1 + high)
    mixed = _mix(keys_m[:, None] ^ keys_n[None, :])
    return mixed.to(tl.int32, bitcast=True) >= threshold


@triton.jit
def _load_tile(base, first, bound, tile: tl.constexpr, ROWS: tl.constexpr, D: tl.constexpr, BD: tl.constexpr):
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
def _store_tile(base, value, first, bound, tile: tl.constexpr, ROWS: tl.constexpr, D: tl.constexpr, BD: tl.constexpr):
    rows = tl.arange(0, ROWS)
    columns = tile * BD + tl.arange(0, BD)
    inside = (rows < bound - first)[:, None] & (columns < D)[None, :]
    tl.store(base + tl.cast(first, tl.int64) * D + rows[:, None] * D + columns[None, :], value, mask=inside)


@triton.jit
def _zeros(rows: tl.constexpr, columns: tl.constexpr, SWAP_AB: tl.constexpr):
    return tl.zeros([columns if SWAP_AB else rows, rows if SWAP_AB else columns], tl.float32)


@triton.jit
def _unswap(x, SWAP_AB: tl.constexpr):
    return tl.trans(x) if SWAP_AB else x


@triton.jit
def _dot(a, b, acc, SWAP_AB: tl.constexpr, PRECISION: tl.constexpr):
    """``acc + a b``, or its transpose ``acc + bᵀ aᵀ`` if ``SWAP_AB``: b then fills the rows of the tensor core."""
    return tl.dot(b.T if SWAP_AB else a, a.T if SWAP_AB else b, acc, input_precision=PRECISION)


@triton.jit
def _score_mask(offs_m, offs_n, N, q_group, z_group, GROUPED: tl.constexpr, M):
    """Which scores of a block count, [1 or BM, BN]: inside the memory, and not of the query's own group."""
    mask = (offs_n < N)[None, :]
    if GROUPED:
        group_m = tl.load(q_group + offs_m, mask=offs_m < M, other=-1)  # [BM]
        group_n = tl.load(z_group + offs_n, mask=offs_n < N, other=-1)  # [BN]
        mask = mask & ((group_m[:, None] != group_n[None, :]) | (group_n == -1)[None, :])
    return mask


@triton.jit
def forward_kernel(
    q, z, z_scale, q_group, z_group, seed, o, lse, mass, entropy, M, N, rows_per_split, threshold, rescale,
    D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, SWAP_AB: tl.constexpr,
    RELOAD_Q: tl.constexpr, GROUPED: tl.constexpr, DROPOUT: tl.constexpr, ENTROPY: tl.constexpr, INT8: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """A block of queries against one split of the memory → o [splits, M, D], lse, mass, entropy [splits, M]."""
    TILES: tl.constexpr = (D + BD - 1) // BD
    start_m = tl.program_id(0) * BM
    offs_m = start_m + tl.arange(0, BM)  # [BM]
    split = tl.program_id(1)
    lo = split * rows_per_split
    hi = tl.minimum(lo + rows_per_split, N)
    m_i = tl.full([BM], float("-inf"), tl.float32)  # [BM] running max of s
    l_i = tl.zeros([BM], tl.float32)  # [BM] running Σ p
    w_i = tl.zeros([BM], tl.float32)  # [BM] running Σ w
    ps_i = tl.zeros([BM], tl.float32)  # [BM] running Σ p s, for the entropy
    acc = ()  # TILES × [BM, BD] running Σ w z ([BD, BM] if SWAP_AB)
    q_tiles = ()  # TILES × [BM, BD]
    for t in tl.static_range(TILES):
        acc += (_zeros(BM, BD, SWAP_AB),)
        if not RELOAD_Q:
            q_tiles += (_load_tile(q, start_m, M, t, BM, D, BD),)
    for start_n in tl.range(lo, hi, BN, disable_licm=RELOAD_Q):
        offs_n = start_n + tl.arange(0, BN)  # [BN]
        s = _zeros(BM, BN, SWAP_AB)  # [BM, BN] ([BN, BM] if SWAP_AB)
        z_tiles = ()  # TILES × [BN, BD]
        for t in tl.static_range(TILES):
            z_tile = _load_tile(z, start_n, hi, t, BN, D, BD)
            q_tile = _load_tile(q, start_m, M, t, BM, D, BD) if RELOAD_Q else q_tiles[t]
            if INT8:
                z_tile = z_tile.to(q_tile.dtype)
            s = _dot(q_tile, z_tile.T, s, SWAP_AB, PRECISION)
            z_tiles += (z_tile,)
        s = _unswap(s, SWAP_AB)  # [BM, BN]
        if INT8:
            scale_n = tl.load(z_scale + offs_n, mask=offs_n < hi, other=0.0)  # [BN]
            s *= scale_n[None, :]
        s = tl.where(_score_mask(offs_m, offs_n, hi, q_group, z_group, GROUPED, M), s, float("-inf"))
        m_new = tl.maximum(m_i, tl.max(s, 1))  # [BM]
        shift = tl.where(m_new == float("-inf"), 0.0, m_new)  # [BM] no row visible yet: exp(−inf − 0), not NaN
        alpha = tl.exp2((m_i - shift) * LOG2_E)  # [BM] rescales what was accumulated under the old maximum
        m_i = m_new
        p = tl.exp2((s - shift[:, None]) * LOG2_E)  # [BM, BN]
        l_i = l_i * alpha + tl.sum(p, 1)
        if ENTROPY:
            ps_i = ps_i * alpha + tl.sum(tl.where(p > 0, p * s, 0.0), 1)
        w = p  # [BM, BN] p after dropout
        if DROPOUT:
            w = tl.where(_dropout_keep_mask(seed, offs_m, offs_n, threshold), p * rescale, 0.0)
            w_i = w_i * alpha + tl.sum(w, 1)
        if INT8:
            w *= scale_n[None, :]
        w = w.to(z_tiles[0].dtype)
        acc_new = ()
        for t in tl.static_range(TILES):
            rescaled = acc[t] * (alpha[None, :] if SWAP_AB else alpha[:, None])
            acc_new += (_dot(w, z_tiles[t], rescaled, SWAP_AB, PRECISION),)
        acc = acc_new
    inv_l = tl.where(l_i > 0, 1 / l_i, 0.0)  # [BM]
    out = tl.cast(split, tl.int64) * M
    for t in tl.static_range(TILES):
        _store_tile(o + out * D, _unswap(acc[t], SWAP_AB) * inv_l[:, None], start_m, M, t, BM, D, BD)
    lse_i = tl.where(m_i == float("-inf"), float("-inf"), m_i + tl.log(l_i))  # [BM]
    tl.store(lse + out + offs_m, lse_i, mask=offs_m < M)
    if DROPOUT:
        tl.store(mass + out + offs_m, w_i * inv_l, mask=offs_m < M)
    else:
        tl.store(mass + out + offs_m, tl.where(l_i > 0, 1.0, 0.0), mask=offs_m < M)
    if ENTROPY:
        tl.store(entropy + out + offs_m, tl.where(l_i > 0, lse_i - ps_i * inv_l, 0.0), mask=offs_m < M)


@triton.jit
def _recompute_p(s, offs_m, offs_n, hi, q_group, z_group, lse, GROUPED: tl.constexpr, M):
    """p of a block, [BM, BN], normalized by the queries' log-sum-exp; 0 where masked."""
    lse_i = tl.load(lse + offs_m, mask=offs_m < M, other=0.0)  # [BM]
    lse_i = tl.where(lse_i == float("-inf"), 0.0, lse_i)
    mask = _score_mask(offs_m, offs_n, hi, q_group, z_group, GROUPED, M)
    return tl.where(mask & (offs_m < M)[:, None], tl.exp2((s - lse_i[:, None]) * LOG2_E), 0.0)


@triton.jit
def backward_queries_kernel(
    q, do, z, z_scale, q_group, z_group, seed, lse, delta, dmass, dq, M, N, rows_per_split, threshold, rescale,
    D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, SWAP_AB: tl.constexpr,
    RELOAD_Q: tl.constexpr, GROUPED: tl.constexpr, DROPOUT: tl.constexpr, INT8: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dq of a block of queries from one split of the memory: [splits, M, D], to be summed over the splits."""
    TILES: tl.constexpr = (D + BD - 1) // BD
    start_m = tl.program_id(0) * BM
    offs_m = start_m + tl.arange(0, BM)  # [BM]
    split = tl.program_id(1)
    lo = split * rows_per_split
    hi = tl.minimum(lo + rows_per_split, N)
    delta_i = tl.load(delta + offs_m, mask=offs_m < M, other=0.0)  # [BM]
    dmass_i = tl.load(dmass + offs_m, mask=offs_m < M, other=0.0)  # [BM]
    acc = ()  # TILES × [BM, BD] running Σ ds z ([BD, BM] if SWAP_AB)
    q_tiles = ()  # TILES × [BM, BD]
    do_tiles = ()  # TILES × [BM, BD]
    for t in tl.static_range(TILES):
        acc += (_zeros(BM, BD, SWAP_AB),)
        if not RELOAD_Q:
            q_tiles += (_load_tile(q, start_m, M, t, BM, D, BD),)
            do_tiles += (_load_tile(do, start_m, M, t, BM, D, BD),)
    for start_n in tl.range(lo, hi, BN, disable_licm=RELOAD_Q):
        offs_n = start_n + tl.arange(0, BN)  # [BN]
        s = _zeros(BM, BN, SWAP_AB)  # [BM, BN] ([BN, BM] if SWAP_AB)
        dp = _zeros(BM, BN, SWAP_AB)  # as s
        z_tiles = ()  # TILES × [BN, BD]
        for t in tl.static_range(TILES):
            z_tile = _load_tile(z, start_n, hi, t, BN, D, BD)
            q_tile = _load_tile(q, start_m, M, t, BM, D, BD) if RELOAD_Q else q_tiles[t]
            do_tile = _load_tile(do, start_m, M, t, BM, D, BD) if RELOAD_Q else do_tiles[t]
            if INT8:
                z_tile = z_tile.to(q_tile.dtype)
            s = _dot(q_tile, z_tile.T, s, SWAP_AB, PRECISION)
            dp = _dot(do_tile, z_tile.T, dp, SWAP_AB, PRECISION)
            z_tiles += (z_tile,)
        s = _unswap(s, SWAP_AB)  # [BM, BN]
        dp = _unswap(dp, SWAP_AB)  # [BM, BN]
        if INT8:
            scale_n = tl.load(z_scale + offs_n, mask=offs_n < hi, other=0.0)  # [BN]
            s *= scale_n[None, :]
            dp *= scale_n[None, :]
        p = _recompute_p(s, offs_m, offs_n, hi, q_group, z_group, lse, GROUPED, M)  # [BM, BN]
        dp += dmass_i[:, None]
        if DROPOUT:
            dp = tl.where(_dropout_keep_mask(seed, offs_m, offs_n, threshold), dp * rescale, 0.0)
        ds = p * (dp - delta_i[:, None])  # [BM, BN]
        if INT8:
            ds *= scale_n[None, :]
        ds = ds.to(z_tiles[0].dtype)
        acc_new = ()
        for t in tl.static_range(TILES):
            acc_new += (_dot(ds, z_tiles[t], acc[t], SWAP_AB, PRECISION),)
        acc = acc_new
    out = dq + tl.cast(split, tl.int64) * M * D
    for t in tl.static_range(TILES):
        _store_tile(out, _unswap(acc[t], SWAP_AB), start_m, M, t, BM, D, BD)


@triton.jit
def backward_memory_kernel(
    q, do, z, q_group, z_group, seed, lse, delta, dmass, dz, M, N, threshold, rescale,
    D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, GROUPED: tl.constexpr,
    DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dz of a block of memory rows, one tile of its width: [N, D].

    The bank is frozen as a rule, so this one is kept simple: each tile of the width computes the scores again.
    """
    start_n = tl.program_id(0) * BN
    offs_n = start_n + tl.arange(0, BN)  # [BN]
    start_d = tl.program_id(1) * BD
    acc = tl.zeros([BN, BD], tl.float32)  # [BN, BD] running Σ ds q + w do
    offs_d = tl.arange(0, BD)  # [BD]
    z_offs = tl.arange(0, BN)[:, None] * D  # [BN, 1]
    q_offs = tl.arange(0, BM)[:, None] * D  # [BM, 1]
    for start_m in range(0, M, BM):
        offs_m = start_m + tl.arange(0, BM)  # [BM]
        s = tl.zeros([BN, BM], tl.float32)  # [BN, BM]
        dp = tl.zeros([BN, BM], tl.float32)  # [BN, BM]
        m_mask = (offs_m < M)[:, None]  # [BM, 1]
        q_rows = q + tl.cast(start_m, tl.int64) * D + q_offs
        do_rows = do + tl.cast(start_m, tl.int64) * D + q_offs
        for k in range(0, D, BD):
            d_mask = (k + offs_d < D)[None, :]  # [1, BD]
            z_tile = tl.load(
                z + tl.cast(start_n, tl.int64) * D + z_offs + (k + offs_d)[None, :], (offs_n < N)[:, None] & d_mask, 0.0
            )  # [BN, BD]
            q_tile = tl.load(q_rows + (k + offs_d)[None, :], m_mask & d_mask, 0.0)  # [BM, BD]
            do_tile = tl.load(do_rows + (k + offs_d)[None, :], m_mask & d_mask, 0.0)  # [BM, BD]
            s = tl.dot(z_tile, q_tile.T, s, input_precision=PRECISION)
            dp = tl.dot(z_tile, do_tile.T, dp, input_precision=PRECISION)
        p = tl.trans(_recompute_p(tl.trans(s), offs_m, offs_n, N, q_group, z_group, lse, GROUPED, M))  # [BN, BM]
        dp += tl.load(dmass + offs_m, mask=offs_m < M, other=0.0)[None, :]
        w = p  # [BN, BM] p after dropout
        if DROPOUT:
            keep = tl.trans(_dropout_keep_mask(seed, offs_m, offs_n, threshold))
            dp = tl.where(keep, dp * rescale, 0.0)
            w = tl.where(keep, p * rescale, 0.0)
        ds = p * (dp - tl.load(delta + offs_m, mask=offs_m < M, other=0.0)[None, :])  # [BN, BM]
        inside = m_mask & (start_d + offs_d < D)[None, :]
        q_tile = tl.load(q_rows + (start_d + offs_d)[None, :], inside, 0.0)  # [BM, BD]
        do_tile = tl.load(do_rows + (start_d + offs_d)[None, :], inside, 0.0)  # [BM, BD]
        acc = tl.dot(ds.to(q_tile.dtype), q_tile, acc, input_precision=PRECISION)
        acc = tl.dot(w.to(do_tile.dtype), do_tile, acc, input_precision=PRECISION)
    inside = (offs_n < N)[:, None] & (start_d + offs_d < D)[None, :]
    tl.store(dz + tl.cast(start_n, tl.int64) * D + z_offs + (start_d + offs_d)[None, :], acc, mask=inside)


@triton.jit
def softmax_tile_kernel(
    s, p, z_scale, q_group, z_group, seed, m_i, l_i, w_i, ps_i, alpha, M, first_m, first_n, width, threshold,
    rescale, BN: tl.constexpr, GROUPED: tl.constexpr, DROPOUT: tl.constexpr, ENTROPY: tl.constexpr, INT8: tl.constexpr,
):  # fmt: skip
    """One query's scores against a tile of rows → its weights w in half precision, and its running softmax.

    ``s`` float32 and ``p`` half are [m, width]; the state ``m_i, l_i, w_i, ps_i, alpha`` is float32 [m]. The tile's
    first query and row are ``first_m`` and ``first_n``. The scores are read twice: for the maximum and for the weights.
    """
    row = tl.program_id(0)
    offs_m = first_m + row + tl.arange(0, 1)  # [1]
    s_row = s + tl.cast(row, tl.int64) * width
    p_row = p + tl.cast(row, tl.int64) * width
    m_old = tl.load(m_i + row)
    m_new = m_old
    for start_n in range(0, width, BN):
        columns = start_n + tl.arange(0, BN)  # [BN]
        mask = _score_mask(offs_m, first_n + columns, first_n + width, q_group, z_group, GROUPED, M)  # [1, BN]
        s_j = tl.load(s_row + columns, mask=columns < width, other=0.0)  # [BN]
        if INT8:
            s_j *= tl.load(z_scale + first_n + columns, mask=columns < width, other=0.0)
        m_new = tl.maximum(m_new, tl.max(tl.where(mask, s_j[None, :], float("-inf"))))
    shift = tl.where(m_new == float("-inf"), 0.0, m_new)  # no row visible yet: exp(−inf − 0), not NaN
    l_new = 0.0
    w_new = 0.0
    ps_new = 0.0
    for start_n in range(0, width, BN):
        columns = start_n + tl.arange(0, BN)  # [BN]
        mask = _score_mask(offs_m, first_n + columns, first_n + width, q_group, z_group, GROUPED, M)  # [1, BN]
        s_j = tl.load(s_row + columns, mask=columns < width, other=0.0)[None, :]  # [1, BN]
        if INT8:
            scale_n = tl.load(z_scale + first_n + columns, mask=columns < width, other=0.0)[None, :]  # [1, BN]
            s_j *= scale_n
        p_j = tl.where(mask, tl.exp2((s_j - shift) * LOG2_E), 0.0)  # [1, BN]
        l_new += tl.sum(p_j)
        if ENTROPY:
            ps_new += tl.sum(tl.where(p_j > 0, p_j * s_j, 0.0))
        w_j = p_j  # [1, BN] p after dropout
        if DROPOUT:
            keep = _dropout_keep_mask(seed, offs_m, first_n + columns, threshold)
            w_j = tl.where(keep, p_j * rescale, 0.0)
            w_new += tl.sum(w_j)
        if INT8:
            w_j *= scale_n
        tl.store(p_row + columns[None, :], w_j.to(p.dtype.element_ty), mask=(columns < width)[None, :])
    shrink = tl.exp2((m_old - shift) * LOG2_E)
    tl.store(alpha + row, shrink)
    tl.store(m_i + row, m_new)
    tl.store(l_i + row, tl.load(l_i + row) * shrink + l_new)
    if DROPOUT:
        tl.store(w_i + row, tl.load(w_i + row) * shrink + w_new)
    if ENTROPY:
        tl.store(ps_i + row, tl.load(ps_i + row) * shrink + ps_new)


@triton.jit
def score_gradient_kernel(
    s, dp, ds, w, z_scale, q_group, z_group, seed, lse, delta, dmass, M, first_m, first_n, width, threshold, rescale,
    BN: tl.constexpr, GROUPED: tl.constexpr, DROPOUT: tl.constexpr, INT8: tl.constexpr, MEMORY: tl.constexpr,
):  # fmt: skip
    """Scores and dp of one query and BN rows of a tile, float32 [m, width] → ds and, if ``MEMORY``, w in half."""
    row = tl.program_id(0)
    offs_m = first_m + row + tl.arange(0, 1)  # [1]
    columns = tl.program_id(1) * BN + tl.arange(0, BN)  # [BN]
    offs_n = first_n + columns  # [BN]
    inside = (columns < width)[None, :]
    offsets = tl.cast(row, tl.int64) * width + columns[None, :]  # [1, BN]
    s_j = tl.load(s + offsets, mask=inside, other=0.0)
    dp_j = tl.load(dp + offsets, mask=inside, other=0.0)
    if INT8:
        scale_n = tl.load(z_scale + offs_n, mask=columns < width, other=0.0)[None, :]
        s_j *= scale_n
        dp_j *= scale_n
    p_j = _recompute_p(s_j, offs_m, offs_n, first_n + width, q_group, z_group, lse, GROUPED, M)
    dp_j += tl.load(dmass + offs_m)[:, None]
    w_j = p_j
    if DROPOUT:
        keep = _dropout_keep_mask(seed, offs_m, offs_n, threshold)
        dp_j = tl.where(keep, dp_j * rescale, 0.0)
        w_j = tl.where(keep, p_j * rescale, 0.0)
    ds_j = p_j * (dp_j - tl.load(delta + offs_m)[:, None])
    if INT8:
        ds_j *= scale_n
    tl.store(ds + offsets, ds_j.to(ds.dtype.element_ty), mask=inside)
    if MEMORY:
        tl.store(w + offsets, w_j.to(w.dtype.element_ty), mask=inside)
