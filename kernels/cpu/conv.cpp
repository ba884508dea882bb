// Channels are contiguous and independent, so every loop over them is a vector loop. Work is cut into runs
// of tokens, and within a run into channel tiles whose rows stay in the first-level cache.
#include "kernels/cpu/conv.h"

#include <algorithm>

#include "kernels/cpu/tokens.h"
#include "kernels/cpu/vector_math.h"

namespace transmamba::cpu {
namespace {

constexpr std::int64_t kTile = 256;      // channels
constexpr std::int64_t kRunTokens = 64;  // of a run at least: backward recomputes w - 1 more

/// y += a b
template <class T>
void multiply_add(const T* a, const T* b, T* y, std::int64_t n) {
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) y[i] += a[i] * b[i];
}

/// Pointers to the same channels of four rows: the usual width is done in one pass.
template <class T>
struct Four {
  T *r0, *r1, *r2, *r3;
};

/// y = init + sum_j a_j b_j
template <class T>
void sum_of_four(const T* init, const Four<const T>& a, const Four<const T>& b, T* y, std::int64_t n) {
  const T *a0 = a.r0, *a1 = a.r1, *a2 = a.r2, *a3 = a.r3;
  const T *b0 = b.r0, *b1 = b.r1, *b2 = b.r2, *b3 = b.r3;
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i)
    y[i] = init[i] + a0[i] * b0[i] + a1[i] * b1[i] + a2[i] * b2[i] + a3[i] * b3[i];
}

/// y_j += d b_j,  total += d
template <class T>
void add_to_four(const T* d, const Four<const T>& b, const Four<T>& y, T* total, std::int64_t n) {
  const T *b0 = b.r0, *b1 = b.r1, *b2 = b.r2, *b3 = b.r3;
  T *y0 = y.r0, *y1 = y.r1, *y2 = y.r2, *y3 = y.r3;
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) {
    const T v = d[i];
    y0[i] += v * b0[i];
    y1[i] += v * b1[i];
    y2[i] += v * b2[i];
    y3[i] += v * b3[i];
    total[i] += v;
  }
}

template <class T>
class Channels {
 public:
  /// Arguments is Conv or ConvBackward.
  template <class Arguments>
  explicit Channels(const Arguments& a)
      : x_(a.x),
        halo_(a.halo),
        w_(a.weight.dim(1)),
        c_(a.x.dim(2)),
        zeros_(size(c_)),
        by_tap_(size(w_ * c_)) {
    for (std::int64_t k = 0; k < c_; ++k)
      for (std::int64_t j = 0; j < w_; ++j) by_tap_[size(j * c_ + k)] = a.weight.template ptr<T>(k)[j];
    bias_ = a.bias.template ptr<T>();
  }
  std::int64_t width() const { return w_; }
  const T* weight(std::int64_t tap) const { return by_tap_.data() + tap * c_; }
  /// Inputs at `time`, which may lie up to w - 1 before the first token.
  const T* input(std::int64_t i, std::int64_t time) const {
    if (time >= 0) return x_.ptr<T>(i, time);
    return halo_ ? halo_.ptr<T>(i, w_ - 1 + time) : zeros_.data();
  }
  const T* zeros() const { return zeros_.data(); }
  Four<const T> four_weights(std::int64_t begin) const {
    return {weight(0) + begin, weight(1) + begin, weight(2) + begin, weight(3) + begin};
  }
  Four<const T> four_inputs(std::int64_t i, std::int64_t time, std::int64_t begin) const {
    return {input(i, time - 3) + begin, input(i, time - 2) + begin, input(i, time - 1) + begin,
            input(i, time) + begin};
  }
  /// bias + sum_j weight_j x_{time-w+1+j} for channels [begin, begin + n)
  void pre_activation(std::int64_t i, std::int64_t time, std::int64_t begin, std::int64_t n, T* out) const {
    if (w_ == 4) return sum_of_four(bias_ + begin, four_weights(begin), four_inputs(i, time, begin), out, n);
    std::copy_n(bias_ + begin, n, out);
    for (std::int64_t j = 0; j < w_; ++j)
      multiply_add(weight(j) + begin, input(i, time - w_ + 1 + j) + begin, out, n);
  }

 private:
  static std::size_t size(std::int64_t n) { return static_cast<std::size_t>(n); }

  ConstView x_, halo_;
  std::int64_t w_, c_;
  Scratch<T> zeros_, by_tap_;  // by_tap_ (w, c)
  const T* bias_;
};

template <class T>
void activate(T* y, std::int64_t n) {
#pragma omp simd
  for (std::int64_t k = 0; k < n; ++k) y[k] = silu(y[k]);
}

/// d = dy SiLU'(d), where d holds the pre-activation.
template <class T>
void activation_gradient(const T* dy, T* d, std::int64_t n) {
#pragma omp simd
  for (std::int64_t k = 0; k < n; ++k) d[k] = dy[k] * silu_gradient(d[k]);
}

template <class T>
void forward(const Conv& a, const Stream& stream) {
  const std::int64_t c = a.x.dim(2);
  if (a.x.numel() == 0) return;
  const Channels<T> channels(a);
  for_each_token(a.x.dim(0), a.x.dim(1), c, stream, [&](std::int64_t i, std::int64_t time) {
    for (std::int64_t begin = 0; begin < c; begin += kTile) {
      const std::int64_t n = std::min(kTile, c - begin);
      T* const y = a.y.ptr<T>(i, time) + begin;
      channels.pre_activation(i, time, begin, n, y);
      activate(y, n);
    }
  });
}

/// Tokens [t0, t1) of sequence i, one channel tile. With d the gradient of the pre-activation,
///   dx_s = sum_j weight_j d_{s+w-1-j},   dweight_j = sum_t d_t x_{t-w+1+j},   dbias = sum_t d_t,
/// so once d_t is known dx_{t-w+1} is complete. The last w rows of d are kept in `ring`, and the run goes on
/// for w - 1 tokens past t1 to complete its last dx. Rows of dx before the first token are dhalo.
template <class T>
struct BackwardRun {
  const ConvBackward& a;
  const Channels<T>& channels;
  std::int64_t i, t0, t1, begin, n;
  Scratch<T>& ring;

  T* row(std::int64_t time) const {
    return ring.data() + (time + channels.width()) % channels.width() * kTile;
  }

  void operator()(T* dweight, T* dbias, std::int64_t stride) const {
    const std::int64_t t = a.x.dim(1), w = channels.width();
    std::fill(ring.begin(), ring.end(), T(0));
    for (std::int64_t time = t0; time < t1 + w - 1; ++time) {
      T* const d = row(time);
      if (time < t) {
        channels.pre_activation(i, time, begin, n, d);
        activation_gradient(a.dy.template ptr<T>(i, time) + begin, d, n);
      } else {
        std::fill_n(d, n, T(0));
      }
      if (time < t1) add_to_parameters(time, d, dweight, dbias, stride);
      if (T* const dx = output(time - w + 1)) input_gradient(time, dx);
    }
  }
  void add_to_parameters(std::int64_t time, const T* d, T* dweight, T* dbias, std::int64_t stride) const {
    const std::int64_t w = channels.width();
    if (w == 4)
      return add_to_four(d, channels.four_inputs(i, time, begin),
                         {dweight, dweight + stride, dweight + 2 * stride, dweight + 3 * stride}, dbias, n);
    for (std::int64_t j = 0; j < w; ++j)
      multiply_add(d, channels.input(i, time - w + 1 + j) + begin, dweight + j * stride, n);
#pragma omp simd
    for (std::int64_t k = 0; k < n; ++k) dbias[k] += d[k];
  }
  /// dx_{time-w+1} = sum_j weight_j d_{time-j}
  void input_gradient(std::int64_t time, T* dx) const {
    if (channels.width() == 4)
      return sum_of_four(channels.zeros(), channels.four_weights(begin),
                         {row(time), row(time - 1), row(time - 2), row(time - 3)}, dx, n);
    std::fill_n(dx, n, T(0));
    for (std::int64_t j = 0; j < channels.width(); ++j)
      multiply_add(channels.weight(j) + begin, row(time - j), dx, n);
  }
  /// Where dx at `time` goes; the rows before a run belong to the run before it.
  T* output(std::int64_t time) const {
    if (time >= t0) return a.dx.template ptr<T>(i, time) + begin;
    if (time < 0 && a.dhalo) return a.dhalo.template ptr<T>(i, channels.width() - 1 + time) + begin;
    return nullptr;
  }
};

template <class T>
void backward(const ConvBackward& a, const Stream& stream) {
  const std::int64_t b = a.x.dim(0), t = a.x.dim(1), c = a.x.dim(2), w = a.weight.dim(1);
  if (b == 0 || c == 0) return;
  if (t == 0) {  // no output saw the halo
    for (std::int64_t i = 0; a.dhalo && i < b; ++i)
      for (std::int64_t j = 0; j < w - 1; ++j) std::fill_n(a.dhalo.ptr<T>(i, j), c, T(0));
    return;
  }
  const Channels<T> channels(a);
  const std::int64_t run = std::max(kRunTokens, tokens_per_partial(t)), runs = (t + run - 1) / run;
  // A partial sum holds dweight (w, c), then dbias (c).
  const auto sums = sum_of_partials<T>(b * runs, (w + 1) * c, stream, [&](std::int64_t item, T* partial) {
    Scratch<T> ring(static_cast<std::size_t>(w * kTile));
    const std::int64_t t0 = item % runs * run;
    for (std::int64_t begin = 0; begin < c; begin += kTile)
      BackwardRun<T>{a,   channels, item / runs, t0, std::min(t, t0 + run), begin, std::min(kTile, c - begin),
                     ring}(partial + begin, partial + w * c + begin, c);
  });
  for (std::int64_t k = 0; k < c; ++k) {
    T* const dweight = a.dweight.ptr<T>(k);
    for (std::int64_t j = 0; j < w; ++j) dweight[j] += sums[static_cast<std::size_t>(j * c + k)];
    a.dbias.ptr<T>()[k] += sums[static_cast<std::size_t>(w * c + k)];
  }
}

}  // namespace

void conv(const Conv& arguments, const Stream& stream) {
  with_float(arguments.x.dtype(), "qkv_conv", [&](auto zero) { forward<decltype(zero)>(arguments, stream); });
}

void conv_backward(const ConvBackward& arguments, const Stream& stream) {
  with_float(arguments.x.dtype(), "qkv_conv_backward",
             [&](auto zero) { backward<decltype(zero)>(arguments, stream); });
}

}  // namespace transmamba::cpu
