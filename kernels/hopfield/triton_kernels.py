"""The Triton kernels: forward, gradients, top-k. ``README.md`` derives what they compute.

The letters are those of FlashAttention-2, with the memory ``z`` as key and value (table in the README). Shape legend:
M queries and N memory rows, in blocks of BM and BN; D width, in ``TILES`` tiles of BD. The tiles of one block of memory
are loaded once (asynchronously) and serve every product of the iteration. A program of the grid's second axis reads the
rows [lo, hi) of the memory, one split of ``rows_per_split``.
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
        alpha = tl.exp(m_i - shift)  # [BM] rescales what was accumulated under the old maximum
        m_i = m_new
        p = tl.exp(s - shift[:, None])  # [BM, BN]
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
    return tl.where(mask & (offs_m < M)[:, None], tl.exp(s - lse_i[:, None]), 0.0)


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
def top_k_kernel(
    q, z, z_scale, q_group, z_group, scores, indices, M, N, rows_per_split,
    D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, K: tl.constexpr, SLOTS: tl.constexpr,
    GROUPED: tl.constexpr, INT8: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The K largest scores of each query in one split, and their rows: [splits, M, K]; −inf and −1 if fewer.

    ``SLOTS``: K rounded up to a power of two.
    """
    start_m = tl.program_id(0) * BM
    offs_m = start_m + tl.arange(0, BM)  # [BM]
    split = tl.program_id(1)
    lo = split * rows_per_split
    hi = tl.minimum(lo + rows_per_split, N)
    slots = tl.arange(0, SLOTS)[None, :]  # [1, SLOTS]
    top_s = tl.full([BM, SLOTS], float("-inf"), tl.float32)  # [BM, SLOTS] largest scores so far
    top_j = tl.full([BM, SLOTS], -1, tl.int32)  # [BM, SLOTS] their rows
    offs_d = tl.arange(0, BD)  # [BD]
    for start_n in range(lo, hi, BN):
        offs_n = start_n + tl.arange(0, BN)  # [BN]
        s = tl.zeros([BN, BM], tl.float32)  # [BN, BM]
        for k in range(0, D, BD):
            d_mask = (k + offs_d < D)[None, :]  # [1, BD]
            offsets = tl.arange(0, BN)[:, None] * D + (k + offs_d)[None, :]
            z_tile = tl.load(
                z + tl.cast(start_n, tl.int64) * D + offsets, (offs_n < hi)[:, None] & d_mask, 0.0
            )  # [BN, BD]
            offsets = tl.cast(offs_m, tl.int64)[:, None] * D + (k + offs_d)[None, :]
            q_tile = tl.load(q + offsets, (offs_m < M)[:, None] & d_mask, 0.0)  # [BM, BD]
            if INT8:
                z_tile = z_tile.to(q_tile.dtype)
            s = tl.dot(z_tile, q_tile.T, s, input_precision=PRECISION)
        s = tl.trans(s)  # [BM, BN]
        if INT8:
            s *= tl.load(z_scale + offs_n, mask=offs_n < hi, other=0.0)[None, :]
        s = tl.where(_score_mask(offs_m, offs_n, hi, q_group, z_group, GROUPED, M), s, float("-inf"))
        merged_s = tl.full([BM, SLOTS], float("-inf"), tl.float32)  # [BM, SLOTS]
        merged_j = tl.full([BM, SLOTS], -1, tl.int32)  # [BM, SLOTS]
        for k in range(K):  # take the larger of the block's and the list's maximum, K times; all [BM]
            block_s = tl.max(s, 1)
            list_s = tl.max(top_s, 1)
            block_j = tl.min(tl.where(s == block_s[:, None], offs_n[None, :], 2147483647), 1)
            list_slot = tl.min(tl.where(top_s == list_s[:, None], slots, SLOTS), 1)
            list_j = tl.sum(tl.where(slots == list_slot[:, None], top_j, 0), 1)
            from_block = block_s > list_s
            best_s = tl.where(from_block, block_s, list_s)
            best_j = tl.where(best_s == float("-inf"), -1, tl.where(from_block, block_j, list_j))
            merged_s = tl.where(slots == k, best_s[:, None], merged_s)
            merged_j = tl.where(slots == k, best_j[:, None], merged_j)
            s = tl.where(from_block[:, None] & (offs_n[None, :] == block_j[:, None]), float("-inf"), s)
            top_s = tl.where((slots == list_slot[:, None]) & (from_block == 0)[:, None], float("-inf"), top_s)
        top_s = merged_s
        top_j = merged_j
    out = tl.cast(split, tl.int64) * M * K + offs_m[:, None] * K + slots
    inside = (offs_m < M)[:, None] & (slots < K)
    tl.store(scores + out, top_s, mask=inside)
    tl.store(indices + out, top_j, mask=inside)
