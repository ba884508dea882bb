// The ranks as a mesh of four axes, fastest first: tp, cp, dp, pp. Everything that is shared out asks here
// who it shares with.
//
//   tp  heads, columns, vocabulary, and tokens between layers   parallel/layers/
//   cp  the tokens of a sequence                                parallel/context/
//   dp  the sequences of a batch, and the optimizer's state     parallel/data/
//   pp  the layers                                              parallel/pipeline/
#pragma once

#include <memory>

#include "core/config.h"
#include "parallel/comm/communicator.h"

namespace transmamba {

class Mesh {
 public:
  /// A collective call on `world`, which must outlive the mesh and have tp cp dp pp ranks (parallel/degrees.h
  /// makes such degrees): rank = ((pp_index dp + dp_index) cp + cp_index) tp + tp_index.
  Mesh(Communicator& world, const ParallelConfig& degrees);
  /// One rank alone, with a world of its own.
  static std::unique_ptr<Mesh> serial();

  Communicator& world() const { return *world_; }
  Communicator& tp() const { return *tp_; }  ///< ranks that share heads, columns, vocabulary and tokens
  Communicator& cp() const { return *cp_; }  ///< ranks that share a sequence
  Communicator& pp() const { return *pp_; }  ///< ranks that share the layers, first to last
  /// Ranks with the same parameters (cp x dp): they share gradients and the optimizer's state.
  Communicator& data() const { return *data_; }
  /// The first and the last pipeline rank, of which this is one; absent on others, and where they are the
  /// same.
  Communicator* ends() const { return ends_.get(); }
  int dp_index() const { return dp_index_; }
  int dp() const { return dp_; }

 private:
  std::unique_ptr<Communicator> own_world_;
  Communicator* world_;
  int dp_, dp_index_;
  std::unique_ptr<Communicator> tp_, cp_, pp_, data_, ends_;
};

}  // namespace transmamba
