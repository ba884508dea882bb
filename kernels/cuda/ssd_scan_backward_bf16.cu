// The scan's gradients in bfloat16: the op (kernels/cuda/ssd_backward_bf16.cuh says how).
#include "kernels/cuda/ssd_backward_bf16.cuh"
#include "kernels/elementwise.h"

namespace transmamba::cuda {
namespace ssd {
namespace {

/// A warp a head.
__global__ void add_piece_sums(PieceSums sums, float* da_log, float* dd_skip, Cut cut) {
  add_parts(da_log, sums.da_log, cut, cut.pieces);
  if (dd_skip) add_parts(dd_skip, sums.dd_skip, cut, cut.pieces);
}

}  // namespace
}  // namespace ssd

void ssd_scan_backward_bf16(const SsdScanBackward& a, const Stream& stream) {
  constexpr auto op = "ssd_scan_backward";
  const std::int64_t n = a.k.dim(3), p = a.v.dim(3);
  const ssd::Cut cut(a.k.dim(0), a.k.dim(1), a.k.dim(2));
  if (cut.heads() == 0) return;
  if (cut.t == 0) {
    if (a.dstate_in && a.dstate_out) cuda::copy({.x = a.dstate_out, .y = a.dstate_in}, stream);
    if (a.dstate_in && !a.dstate_out) cuda::fill({.value = 0, .y = a.dstate_in}, stream);
    return;
  }
  const std::int64_t pieces = cut.heads() * cut.pieces, chunks = cut.heads() * cut.chunks;
  const std::int64_t tokens = chunks * ssd::kTokens, states = pieces * n * p;
  const Workspace<float> memory(workspace::ssd_scan_backward(cut, n, p), stream, op);
  float* at = memory.data();  // states first, which are read four elements at a time
  const auto take = [&](std::int64_t size) { return std::exchange(at, at + size); };
  ssd::BackwardArguments arguments{ssd::InRows(a.q, op, "q"),
                                   ssd::InRows(a.k, op, "k"),
                                   ssd::InRows(a.v, op, "v"),
                                   ssd::InRows(a.dy, op, "dy"),
                                   ssd::OutRows(a.dq, op, "dq"),
                                   ssd::OutRows(a.dk, op, "dk"),
                                   ssd::OutRows(a.dv, op, "dv"),
                                   strided<const float>(a.dt),
                                   a.a_log.ptr<float>(),
                                   strided<const float>(a.d_skip).data,
                                   strided<float>(a.ddt),
                                   strided<float>(a.dstate_in),
                                   {take(states), nullptr, cut.pieces},
                                   {take(states), nullptr, cut.pieces},
                                   {take(tokens), take(tokens), nullptr, take(states)},
                                   {},
                                   cut};
  arguments.entering.log_decay = take(pieces), arguments.leaving.log_decay = take(pieces);
  arguments.sums = {take(pieces), take(pieces)};
  arguments.between.chunk_w = take(chunks);
  if (cut.pieces > 1)
    ssd::summarise_pieces(cut, a.dt, a.a_log,
                          {{a.k, a.v, arguments.entering, 0, cut.pieces - 1},
                           {a.q, a.dy, arguments.leaving, 1, cut.pieces - 1, /*are_gradients=*/true}},
                          stream, op);
  ssd::pass_pieces(
      cut, n, p,
      {{.pieces = arguments.entering, .in = strided<const float>(a.state_in)},
       {.pieces = arguments.leaving, .backwards = true, .in = strided<const float>(a.dstate_out)}},
      stream, op);
  ssd::enqueue_keys(arguments, n, p, stream);
  ssd::enqueue_queries(arguments, n, p, stream);
  launch(op, stream, {cut.h, kWarp}, ssd::add_piece_sums, arguments.sums, a.da_log.ptr<float>(),
         strided<float>(a.dd_skip).data, cut);
}

}  // namespace transmamba::cuda
