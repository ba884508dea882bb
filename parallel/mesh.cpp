#include "parallel/mesh.h"

namespace transmamba {

Mesh::Mesh(Communicator& world, const ParallelConfig& degrees)
    : world_(&world), dp_(static_cast<int>(degrees.dp)) {
  const int tp = static_cast<int>(degrees.tp), cp = static_cast<int>(degrees.cp),
            pp = static_cast<int>(degrees.pp);
  check(dp_ > 0 && std::int64_t{tp} * cp * pp * dp_ == world.size(), "mesh",
        "tp = {} x cp = {} x dp = {} x pp = {}: expected a product of {}, the number of ranks", tp, cp, dp_,
        pp, world.size());
  const int tp_index = world.rank() % tp, cp_index = world.rank() / tp % cp,
            pp_index = world.rank() / (tp * cp * dp_);
  dp_index_ = world.rank() / (tp * cp) % dp_;
  // A group's colour is the rank with this axis's index taken as 0.
  const auto group = [&](const char* name, int stride, int index) {
    return world.split(name, world.rank() - index * stride, index);
  };
  tp_ = group("tp", 1, tp_index);
  cp_ = group("cp", tp, cp_index);
  data_ = group("data", tp, dp_index_ * cp + cp_index);
  pp_ = group("pp", tp * cp * dp_, pp_index);
  if (pp == 1) return;
  const int stage = tp * cp * dp_;  // ranks of one
  const bool is_end = pp_index == 0 || pp_index == pp - 1;
  ends_ = world.split("ends", is_end ? world.rank() % stage : world.size() + world.rank(), pp_index);
  if (!is_end) ends_.reset();
}

std::unique_ptr<Mesh> Mesh::serial() {
  auto world = self_communicator();
  ParallelConfig degrees;
  degrees.dp = 1;
  auto mesh = std::make_unique<Mesh>(*world, degrees);
  mesh->own_world_ = std::move(world);
  return mesh;
}

}  // namespace transmamba
