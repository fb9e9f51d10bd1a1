//! candle-flash-attn's kernels (FlashAttention 2, forward) on our memory and our stream; feature `flash-attn`.
//!
//! The crate's own interface takes candle tensors on candle's stream and drops the log-sum-exp; its library exports
//! `run_mha`, which takes pointers and a stream. It is declared here as in the crate's `src/ffi.rs`, which is private:
//! the version is pinned, and `scripts/check-flash-attn` compares the two declarations word for word. Arguments are
//! those of the crate's `FlashAttnVarLen` for a causal call. It has never run: no machine of the project has a GPU.

use super::Queue;
use crate::error::{Error, Result};
use crate::gpu::Flash;
use core::ffi::{c_int, c_void};
use std::ptr::null;

// The library comes with the crate.
use candle_flash_attn as _;

unsafe extern "C" {
    fn run_mha(
        q_ptr: *const c_void,
        k_ptr: *const c_void,
        v_ptr: *const c_void,
        o_ptr: *const c_void,
        softmax_lse_ptr: *const c_void,
        alibi_slopes_ptr: *const c_void,

        cu_seqlens_q_ptr: *const i32,
        cu_seqlens_k_ptr: *const i32,

        q_batch_stride: u32,
        k_batch_stride: u32,
        v_batch_stride: u32,
        o_batch_stride: u32,
        alibi_slopes_batch_stride: u32,

        q_row_stride: u32,
        k_row_stride: u32,
        v_row_stride: u32,
        o_row_stride: u32,

        q_head_stride: u32,
        k_head_stride: u32,
        v_head_stride: u32,
        o_head_stride: u32,

        b: u32,
        h: u32,
        h_k: u32,
        d: u32,
        d_rounded: u32,
        softmax_scale: f32,

        seqlen_q: u32,
        seqlen_k: u32,
        seqlen_q_rounded: u32,
        seqlen_k_rounded: u32,
        total_q: u32,

        is_bf16: c_int,
        is_causal: c_int,
        unpadded_lse: c_int,

        window_size_left: c_int,
        window_size_right: c_int,

        softcap: f32,

        block_table_ptr: *const i32,
        block_table_batch_stride: u32,
        page_block_size: c_int,

        mm_prefix_ranges_ptr: *const i32,
        mm_prefix_range_batch_stride: u32,
        max_mm_prefix_ranges: c_int,
        stream_ptr: *mut c_void,
    );
    /// The last error of the CUDA runtime on this thread, which is forgotten; the library links the runtime.
    fn cudaGetLastError() -> c_int;
}

/// Queues the call on the stream of an entered queue.
pub(super) fn run(queue: &Queue, call: &Flash) -> Result<()> {
    let wrong = |what: String| Error::Backend { op: "attention_flash", what };
    if !call.is_aligned() {
        return Err(wrong("windows without 16-byte alignment".into()));
    }
    let longest_k = c_int::try_from(call.longest_k).map_err(|e| wrong(format!("keys: {e}")))?;
    // SAFETY: takes nothing, gives a number.
    unsafe { cudaGetLastError() };
    // SAFETY: as the crate calls it (`FlashAttnVarLen::cuda_fwd_t`). The pointers are to live device memory of the
    // sizes that `Flash` promises (checked by `Forward::check` and `Tables::write`), whose drop waits for the stream;
    // null is no slopes, no pages and no ranges; the context is current, and the stream is the context's.
    unsafe {
        run_mha(
            pointer(call.q),
            pointer(call.k),
            pointer(call.v),
            pointer(call.out),
            pointer(call.scratch),
            null(),
            pointer(call.q_starts).cast(),
            pointer(call.k_starts).cast(),
            0,
            0,
            0,
            0,
            0,
            call.q_stride,
            call.k_stride,
            call.v_stride,
            call.out_stride,
            call.head_dim,
            call.head_dim,
            call.head_dim,
            call.head_dim,
            call.sequences,
            call.heads,
            call.kv_heads,
            call.head_dim,
            call.head_dim.next_multiple_of(32),
            call.scale,
            call.longest_q,
            call.longest_k,
            call.longest_q.next_multiple_of(128),
            call.longest_k.next_multiple_of(128),
            call.q_rows,
            1, // bf16
            1, // causal
            1, // the log-sum-exp is [heads, rows]
            longest_k,
            0,
            0.0, // no cap on the scores
            null(),
            0,
            0,
            null(),
            0,
            0,
            queue.stream.cu_stream().cast(),
        );
    }
    // The library says nothing of a launch that failed, for example of kernels built for another GPU.
    // SAFETY: as above.
    match unsafe { cudaGetLastError() } {
        0 => Ok(()),
        code => Err(wrong(format!("candle-flash-attn: CUDA runtime error {code}"))),
    }
}

/// A device address as the library takes it.
fn pointer(address: u64) -> *const c_void {
    address as *const c_void
}
