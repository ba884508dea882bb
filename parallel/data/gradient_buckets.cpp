#include "parallel/data/gradient_buckets.h"

namespace transmamba {

GradientBuckets::GradientBuckets(Model& model) : model_(model), mesh_(*model.placement().mesh) {
  model_.listen(this);
}

GradientBuckets::~GradientBuckets() { model_.listen(nullptr); }

View GradientBuckets::part(const View& of_bucket) const {
  const std::int64_t size = of_bucket.numel() / mesh_.data().size(), begin = mesh_.data().rank() * size;
  return of_bucket.slice(0, begin, begin + size);
}

void GradientBuckets::start(const Context& context) {
  ParameterStore& store = model_.parameters();
  store.zero_grad(context.stream);
  const std::size_t count = store.buckets().size();
  incomplete_.assign(count, 0);
  started_.assign(count, false);
  gradients_.clear();
  gradients_.resize(count);
  for (std::size_t i = 0; i < store.parameters().size(); ++i) ++incomplete_[store.bucket_of(i)];
}

void GradientBuckets::complete(std::size_t first, std::size_t last) {
  for (std::size_t i = first; i < last; ++i) {
    const std::size_t bucket = model_.parameters().bucket_of(i);
    if (--incomplete_[bucket] == 0) reduce(bucket);
  }
  for (Pending& pending : gradients_) pending.poll();  // those on their way move on between layers
}

void GradientBuckets::reduce(std::size_t i) {
  const View& grads = model_.parameters().buckets()[i].grads;
  started_[i] = true;
  gradients_[i] = mesh_.data().start_reduce_scatter("gradients", grads, part(grads));
}

void GradientBuckets::finish() {
  const ParameterStore& store = model_.parameters();
  for (std::size_t i = 0; i < store.buckets().size(); ++i)
    if (!started_[i]) reduce(i);  // tied embeddings of the last stage: no backward pass ends with them
  for (std::size_t i = 0; i < store.buckets().size(); ++i) {
    gradients_[i].wait();
    const Bucket& bucket = store.buckets()[i];
    if (bucket.summed_over == GradientSum::tp) mesh_.tp().all_reduce("norm gradients", part(bucket.grads));
    if (bucket.summed_over == GradientSum::ends)
      mesh_.ends()->all_reduce("tied embedding gradients", part(bucket.grads));
  }
}

void GradientBuckets::start_gather() {
  values_.clear();
  for (const Bucket& bucket : model_.parameters().buckets())
    values_.push_back(mesh_.data().start_all_gather("parameters", part(bucket.values), bucket.values));
}

void GradientBuckets::needed(std::size_t first, std::size_t last) {
  if (values_.empty()) return;
  for (Pending& pending : values_) pending.poll();
  for (std::size_t i = first; i < last; ++i) values_[model_.parameters().bucket_of(i)].wait();
}

void GradientBuckets::finish_gather() {
  for (Pending& pending : values_) pending.wait();
  values_.clear();
}

}  // namespace transmamba
