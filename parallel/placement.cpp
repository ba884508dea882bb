#include "parallel/placement.h"

#include "parallel/plan.h"

namespace transmamba {

Placement place(const Config& config, const Mesh& mesh) {
  const Machine machine = machine_of(config);
  Placement placement{&mesh, plan_stages(config, machine), {}};
  if (mesh.cp().size() > 1) placement.layout = plan_layout(config, machine);
  return placement;
}

}  // namespace transmamba
