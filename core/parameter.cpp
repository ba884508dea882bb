#include "core/parameter.h"

#include <algorithm>
#include <cmath>

#include "core/random.h"
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

template <class T>
void fill_initial(const Parameter& parameter, std::uint64_t seed) {
  const std::uint64_t name = stream_of(parameter.name);
  T* value = parameter.value.ptr<T>();
  for (std::int64_t i = 0; i < parameter.value.numel(); ++i)
    value[i] = static_cast<T>(
        draw(parameter.init, seed, name, static_cast<std::uint64_t>(parameter.shard.global_index(i))));
}

}  // namespace

View Pack::stacked(bool grads) const {
  check(store_ != nullptr && store_->values_, "parameters", "a pack is read before allocate()");
  const Parameter& first = store_->parameters_[first_];
  Shape shape = first.value.shape();
  for (std::size_t i = 1; i < count_; ++i) shape[0] += store_->parameters_[first_ + i].value.dim(0);
  return {(grads ? first.grad : first.value).raw(), first.value.dtype(), shape};
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
    parameters_.push_back({spec, 0, {}, {}});
  }
  return {this, first, specs.size()};
}

void ParameterStore::allocate(const Context& context, std::int64_t bucket_bytes, int parts) {
  constexpr std::int64_t kAlignBytes = 64;
  const std::int64_t align = kAlignBytes / size_of(context.dtype),
                     bucket = bucket_bytes / size_of(context.dtype);
  const auto round_up = [](std::int64_t x, std::int64_t to) { return (x + to - 1) / to * to; };
  parts_ = parts;
  bucket_of_.resize(parameters_.size());
  std::int64_t total = 0;
  const auto close = [&] {
    if (!buckets_.empty()) buckets_.back().end = total = round_up(total, align * parts);
  };
  for (const GradientSum sum : {GradientSum::tp, GradientSum::ends, GradientSum::none})
    for (std::size_t pack = 0; pack < pack_starts_.size(); ++pack) {
      const std::size_t first = pack_starts_[pack],
                        last = pack + 1 < pack_starts_.size() ? pack_starts_[pack + 1] : parameters_.size();
      if (parameters_[first].summed_over != sum) continue;
      total = round_up(total, align);
      if (buckets_.empty() || buckets_.back().summed_over != sum || total - buckets_.back().begin >= bucket) {
        close();
        buckets_.push_back({total, total, sum});
      }
      for (std::size_t i = first; i < last; ++i) {
        parameters_[i].offset = total;
        bucket_of_[i] = buckets_.size() - 1;
        total += parameters_[i].shard.shape().numel();
      }
    }
  close();
  values_ = context.empty({total});
  grads_ = context.empty({total});
  fill({.value = 0, .y = values_}, context.stream);
  fill({.value = 0, .y = grads_}, context.stream);
  for (Parameter& p : parameters_) {
    p.value = slice(values_, p);
    p.grad = slice(grads_, p);
  }
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

void ParameterStore::initialise(std::int64_t seed) {
  for (const Parameter& p : parameters_)
    with_float(p.value.dtype(), "initialise",
               [&](auto type) { fill_initial<decltype(type)>(p, static_cast<std::uint64_t>(seed)); });
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
