#include "core/parameter.h"

#include <algorithm>
#include <cmath>

#include "core/random.h"
#include "kernels/cpu/parallel_for.h"
#include "kernels/elementwise.h"

namespace transmamba {
namespace {

double draw(const Init& init, std::uint64_t seed, std::uint64_t name, std::uint64_t index) {
  const auto between = [&](double low, double high) {
    return low + (high - low) * uniform(seed, name, index);
  };
  switch (init.kind) {
    case Init::Kind::constant: return init.a;
    case Init::Kind::normal: return init.a * normal(seed, name, index);
    case Init::Kind::uniform: return between(init.a, init.b);
    case Init::Kind::step_bias: {
      const double dt = std::exp(between(std::log(init.a), std::log(init.b)));
      return dt + std::log(-std::expm1(-dt));
    }
    case Init::Kind::log_uniform: return std::log(between(init.a, init.b));
  }
  return 0;
}

/// Elements [begin, begin + out.numel()) of a parameter.
template <class T>
void fill_initial(const Parameter& parameter, std::int64_t begin, std::uint64_t seed, const Stream& stream,
                  const View& out) {
  constexpr std::int64_t kBlock = 4096;
  const std::uint64_t name = stream_of(parameter.name);
  T* const value = out.ptr<T>();
  cpu::parallel_blocks(out.numel(), kBlock, stream, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t i = first; i < last; ++i)
      value[i] = static_cast<T>(draw(parameter.init, seed, name,
                                     static_cast<std::uint64_t>(parameter.shard.global_index(begin + i))));
  });
}

/// Of any type: zero bits are zero. Buckets, and so flat tensors, are multiples of 128 bytes.
void zero(const View& flat, const Stream& stream) {
  const std::int64_t words = flat.numel() * size_of(flat.dtype()) / size_of(DType::f32);
  fill({.value = 0, .y = View(flat.raw(), DType::f32, {words})}, stream);
}

View flat_view(const View& x, std::int64_t begin, std::int64_t end) {
  return View(x.raw(), x.dtype(), {x.numel()}).slice(0, begin, end);
}

}  // namespace

View Pack::stacked(bool grads) const {
  check(store_ != nullptr && store_->values_, "parameters", "a pack is read before allocate()");
  const Parameter& first = store_->parameters_[first_];
  Shape shape = first.value.shape();
  for (std::size_t i = 1; i < count_; ++i) shape[0] += store_->parameters_[first_ + i].value.dim(0);
  const View& run = grads ? first.grad : first.value;
  return {run.raw(), run.dtype(), shape};
}

View Pack::value() const { return stacked(false); }
View Pack::grad() const { return stacked(true); }
View Pack::value(int i) const { return store_->parameters_[first_ + static_cast<std::size_t>(i)].value; }
View Pack::grad(int i) const { return store_->parameters_[first_ + static_cast<std::size_t>(i)].grad; }

Pack ParameterStore::add(std::vector<ParameterSpec> specs) {
  check(!values_ && !specs.empty(), "parameters",
        "packs are added before allocate(), one parameter at least");
  const std::size_t first = parameters_.size();
  pack_starts_.push_back(first);
  for (ParameterSpec& spec : specs) {
    Shape mine = spec.shard.shape(), expected = specs[0].shard.shape();
    expected[0] = mine[0];
    check(mine == expected, "parameters", "{}: expected shape {} like the others of its pack, got {}",
          spec.name, to_string(expected), to_string(mine));
    check(spec.summed_over == specs[0].summed_over && spec.weight_decay == specs[0].weight_decay &&
              spec.primary == specs[0].primary,
          "parameters", "{}: expected sums, weight decay and copies like the others of its pack", spec.name);
    parameters_.push_back({spec, 0, {}, {}});
  }
  return {this, first, specs.size()};
}

void ParameterStore::allocate(const Context& context, std::int64_t bucket_bytes, int parts) {
  context_ = context;
  parts_ = parts;
  lay_out(bucket_bytes / size_of(context.statistics()));
  const std::int64_t total = buckets_.empty() ? 0 : buckets_.back().end;
  if (context.dtype != context.statistics())
    for (const Bucket& bucket : buckets_)
      if (bucket.weight_decay) narrow_ = bucket.end;
  if (narrow_ > 0) matrices_ = context.empty({narrow_});
  values_ = context.empty({total - narrow_}, context.statistics());
  grads_ = context.empty({total}, context.statistics());
  for (const Tensor& flat : {matrices_, values_, grads_})
    if (flat) zero(flat, context.stream);
  for (Bucket& bucket : buckets_) {
    bucket.values = values_of(bucket.weight_decay, bucket.begin, bucket.end);
    bucket.grads = grads_.slice(0, bucket.begin, bucket.end);
  }
  for (Parameter& p : parameters_) {
    const Shape shape = p.shard.shape();
    const View values = values_of(p.weight_decay, p.offset, p.offset + shape.numel());
    p.value = View(values.raw(), values.dtype(), shape);
    p.grad = slice(grads_, p);
  }
}

/// Deals the packs to buckets, those with matrices first.
void ParameterStore::lay_out(std::int64_t bucket_elements) {
  constexpr std::int64_t kAlignBytes = 128;
  const auto round_up = [](std::int64_t x, std::int64_t to) { return (x + to - 1) / to * to; };
  bucket_of_.resize(parameters_.size());
  std::int64_t total = 0;
  const auto add_packs = [&](const Bucket& like) {
    const std::int64_t align =
        kAlignBytes / size_of(like.weight_decay ? context_.dtype : context_.statistics());
    bool open = false;
    const auto close = [&] {
      if (open) buckets_.back().end = total = round_up(total, align * parts_);
      open = false;
    };
    for (std::size_t pack = 0; pack < pack_starts_.size(); ++pack) {
      const std::size_t first = pack_starts_[pack],
                        last = pack + 1 < pack_starts_.size() ? pack_starts_[pack + 1] : parameters_.size();
      const Parameter& p = parameters_[first];
      if (p.summed_over != like.summed_over || p.weight_decay != like.weight_decay ||
          p.primary != like.primary)
        continue;
      total = round_up(total, align);
      if (open && total - buckets_.back().begin >= bucket_elements) close();
      if (!open) {
        buckets_.push_back(like);
        buckets_.back().begin = total;
        open = true;
      }
      for (std::size_t i = first; i < last; ++i) {
        parameters_[i].offset = total;
        bucket_of_[i] = buckets_.size() - 1;
        total += parameters_[i].shard.shape().numel();
      }
    }
    close();
  };
  for (const bool weight_decay : {true, false})
    for (const GradientSum sum : {GradientSum::tp, GradientSum::ends, GradientSum::none})
      for (const bool primary : {true, false}) add_packs({0, 0, sum, weight_decay, primary});
}

View ParameterStore::values_of(bool matrix, std::int64_t begin, std::int64_t end) const {
  const bool narrow = matrix && context_.dtype != context_.statistics() && matrices_;
  return narrow ? matrices_.slice(0, begin, end) : values_.slice(0, begin - narrow_, end - narrow_);
}

const Tensor& ParameterStore::values() const {
  check(narrow_ == 0, "parameters", "values(): those of matrices are {}, of others {}", context_.dtype,
        context_.statistics());
  return values_;
}

std::vector<OwnedRun> ParameterStore::owned(int part) const {
  std::vector<OwnedRun> out;
  std::int64_t before = 0;  // owned in earlier buckets
  for (std::size_t b = 0; b < buckets_.size(); ++b) {
    const std::int64_t size = (buckets_[b].end - buckets_[b].begin) / parts_,
                       first = buckets_[b].begin + part * size;
    for (std::size_t i = 0; i < parameters_.size(); ++i) {
      if (bucket_of_[i] != b) continue;
      const Parameter& p = parameters_[i];
      const std::int64_t begin = std::max(p.offset, first),
                         end = std::min(p.offset + p.value.numel(), first + size);
      if (begin < end) out.push_back({i, begin - p.offset, end - p.offset, begin, before + begin - first});
    }
    before += size;
  }
  return out;
}

void ParameterStore::initialise(std::int64_t seed, const Values& unrounded) {
  constexpr std::int64_t kPiece = 4 << 20;  // elements on their way at once
  const DType dtype = context_.statistics();
  for (std::size_t i = 0; i < parameters_.size(); ++i) {
    const Parameter& p = parameters_[i];
    for (std::int64_t begin = 0; begin < p.value.numel(); begin += kPiece) {
      const std::int64_t end = std::min(begin + kPiece, p.value.numel());
      const View place = flat_view(p.value, begin, end);
      const bool in_place = context_.stream.device == Device::cpu && place.dtype() == dtype;
      const Tensor values = in_place ? Tensor(place) : context_.empty_host({end - begin}, dtype);
      with_float(dtype, "initialise", [&](auto type) {
        fill_initial<decltype(type)>(p, begin, static_cast<std::uint64_t>(seed), context_.stream, values);
      });
      if (!in_place) from_host(context_, values, place);
      if (unrounded) unrounded(i, begin, values);
    }
  }
}

void ParameterStore::zero_grad(const Stream& stream) { fill({.value = 0, .y = grads_}, stream); }

View ParameterStore::slice(const Tensor& flat, const Parameter& p) const {
  const Shape shape = p.shard.shape();
  return {flat.view().slice(0, p.offset, p.offset + shape.numel()).raw(), flat.dtype(), shape};
}

std::int64_t ParameterStore::count() const {
  std::int64_t n = 0;
  for (const Parameter& p : parameters_) n += p.value.numel();
  return n;
}

}  // namespace transmamba
