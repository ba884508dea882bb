// Attention of bfloat16: cut into calls that cuDNN's fused kernels know. They take any strides that are
// multiples of 16 bytes, a contiguous lse, and two masks, so what remains here is: queries that see all keys
// apart from those before them; an lse that is a slice; results that are added to what there is; and, because
// cuDNN's deterministic backward pass on Hopper stores a score of every query and key, few heads at a time.
#include "kernels/cuda/attention_bf16.cuh"

#include <algorithm>

#include "kernels/cuda/attention_cudnn.h"
#include "kernels/cuda/device.cuh"
#include "kernels/elementwise.h"
#include "kernels/workspace.h"

namespace transmamba::cuda {
namespace {

void check_rows(const ConstView& x, std::string_view op, std::string_view name) {
  constexpr std::int64_t kAlign = 16;
  bool aligned = x.numel() == 0 || reinterpret_cast<std::uintptr_t>(x.raw()) % kAlign == 0;
  for (int i = 0; i < 3; ++i) aligned &= x.dim(i) <= 1 || x.stride(i) * size_of(DType::bf16) % kAlign == 0;
  check(aligned, op,
        "{}: rows of bfloat16 must begin at multiples of {} bytes, got address {} and strides {}", name,
        kAlign, static_cast<const void*>(x.raw()), x.strides());
}
void check_widths(std::int64_t n, std::int64_t p, std::string_view op) {
  constexpr std::int64_t kMultiple = 8, kMost = 128;
  check(n % kMultiple == 0 && p % kMultiple == 0 && n <= kMost && p <= kMost, op,
        "head widths: bfloat16 takes multiples of {} up to {}, got n {} and p {}", kMultiple, kMost, n, p);
}

/// Calls f(begin, end, mask) for each run of queries that one mask fits.
template <class F>
void for_each_run(std::int64_t tq, std::int64_t tk, std::int64_t offset, F&& f) {
  const std::int64_t some =
      std::clamp<std::int64_t>(tk - 1 - offset, 0, tq);  // queries that do not see all keys
  const std::int64_t begin = some == 0 ? 0 : some + 1;   // the next one sees the last key
  if (some > 0) f(std::int64_t{0}, begin, Mask::causal);
  if (begin < tq) f(begin, tq, Mask::none);
}

using Piece = workspace::AttentionPiece;

/// Some heads of some sequences of a (b, t, h, width) view or of an lse (b, h, t).
template <class V>
V part(const V& x, std::int64_t b, std::int64_t h, const Piece& piece) {
  return x.slice(0, b, b + piece.sequences).slice(x.rank() == 4 ? 2 : 1, h, h + piece.heads);
}

/// Memory of the shape of `like`, without gaps.
class Dense {
 public:
  Dense(const ConstView& like, const Stream& stream, std::string_view op)
      : memory_(like.numel() * size_of(like.dtype()), stream, op),
        view_(memory_.data(), like.dtype(), like.shape()) {}
  operator View() const { return view_; }  // NOLINT: it is its view

 private:
  Workspace<std::byte> memory_;
  View view_;
};

/// Where cuDNN, which overwrites, writes a gradient: there itself, or where it is added from.
class Gradient {
 public:
  Gradient(const View& sum, bool adds, const Stream& stream, std::string_view op)
      : sum_(sum), adds_(adds), addend_(adds ? sum : sum.slice(0, 0, 0), stream, op) {}
  operator View() const { return adds_ ? View(addend_) : sum_; }  // NOLINT: it is its view
  void finish(const Stream& stream) const {
    if (adds_) cuda::add({View(addend_), sum_}, stream);
  }

 private:
  View sum_;
  bool adds_;
  Dense addend_;
};

/// Gradients of a run of queries and of all of its keys.
void run_backward(const AttentionBackward& a, Mask mask, const Stream& stream) {
  constexpr auto op = "attention_backward";
  const std::int64_t b = a.q.dim(0), tq = a.q.dim(1), h = a.q.dim(2), tk = a.k.dim(1);
  // cuDNN refuses it. Its probability is not 1 where the query's other keys come in other calls.
  if (tq == 1 && tk == 1) return one_score_backward_bf16(a, stream);
  if (!a.lse.contiguous()) {
    const Dense lse(a.lse, stream, op);
    cuda::copy({a.lse, lse}, stream);
    AttentionBackward again = a;
    again.lse = View(lse);
    return run_backward(again, mask, stream);
  }
  const Piece piece = workspace::attention_backward_piece(b, h, tq, tk, stream.deterministic);
  for (std::int64_t i = 0; i < b; i += piece.sequences)
    for (std::int64_t j = 0; j < h; j += piece.heads) {
      const auto of = [&](const auto& x) { return part(x, i, j, piece); };
      const Gradient dq(of(a.dq), a.accumulate_dq, stream, op), dk(of(a.dk), a.accumulate, stream, op),
          dv(of(a.dv), a.accumulate, stream, op);
      const AttentionBackward call{of(a.dout), of(a.q), of(a.k), of(a.v), of(a.o), of(a.lse), dq, dk, dv};
      const FusedPlan& plan = fused_plan(call, mask, stream.deterministic);
      const Workspace<std::byte> memory(workspace_bytes(plan), stream, op);
      run(plan, call, memory.data(), stream);
      dq.finish(stream), dk.finish(stream), dv.finish(stream);
    }
}

}  // namespace

void attention_bf16(const Attention& a, const Stream& stream) {
  constexpr auto op = "attention";
  const std::int64_t tq = a.q.dim(1), tk = std::min(a.k.dim(1), tq + a.offset);  // keys that are seen
  if (a.lse.numel() == 0) return;
  check_widths(a.q.dim(3), a.v.dim(3), op);
  check_rows(a.q, op, "q"), check_rows(a.k, op, "k"), check_rows(a.v, op, "v"), check_rows(a.o, op, "o");
  for_each_run(tq, tk, a.offset, [&](std::int64_t begin, std::int64_t end, Mask mask) {
    const View o = a.o.slice(1, begin, end), lse = a.lse.slice(2, begin, end);
    const bool direct = lse.contiguous() && !a.continues;
    const Dense more_o(a.continues ? o : o.slice(0, 0, 0), stream, op),
        more_lse(direct ? lse.slice(0, 0, 0) : lse, stream, op);
    const Attention call{a.q.slice(1, begin, end), a.k.slice(1, 0, tk), a.v.slice(1, 0, tk),
                         a.continues ? View(more_o) : o, direct ? lse : View(more_lse)};
    const FusedPlan& plan = fused_plan(call, mask);
    const Workspace<std::byte> memory(workspace_bytes(plan), stream, op);
    run(plan, call, memory.data(), stream);
    if (a.continues)
      merge_attention_bf16({call.o, call.lse, o, lse}, stream);
    else if (!direct)
      cuda::copy({call.lse, lse}, stream);
  });
}

void attention_backward_bf16(const AttentionBackward& a, const Stream& stream) {
  constexpr auto op = "attention_backward";
  const std::int64_t tq = a.q.dim(1), all = a.k.dim(1), tk = a.lse.numel() ? std::min(all, tq + a.offset) : 0;
  check_widths(a.q.dim(3), a.v.dim(3), op);
  for (const auto& [view, name] : {std::pair<ConstView, const char*>{a.dout, "dout"},
                                   {a.q, "q"},
                                   {a.k, "k"},
                                   {a.v, "v"},
                                   {a.o, "o"},
                                   {a.dq, "dq"},
                                   {a.dk, "dk"},
                                   {a.dv, "dv"}})
    check_rows(view, op, name);
  if (!a.accumulate) {  // keys that no query sees
    cuda::fill({0, a.dk.slice(1, tk, all)}, stream);
    cuda::fill({0, a.dv.slice(1, tk, all)}, stream);
  }
  if (tk == 0) return;
  for_each_run(tq, tk, a.offset, [&](std::int64_t begin, std::int64_t end, Mask mask) {
    run_backward({.dout = a.dout.slice(1, begin, end),
                  .q = a.q.slice(1, begin, end),
                  .k = a.k.slice(1, 0, tk),
                  .v = a.v.slice(1, 0, tk),
                  .o = a.o.slice(1, begin, end),
                  .lse = a.lse.slice(2, begin, end),
                  .dq = a.dq.slice(1, begin, end),
                  .dk = a.dk.slice(1, 0, tk),
                  .dv = a.dv.slice(1, 0, tk),
                  .accumulate = a.accumulate || begin > 0,
                  .accumulate_dq = a.accumulate_dq},
                 mask, stream);
  });
}

}  // namespace transmamba::cuda
