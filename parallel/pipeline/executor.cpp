#include "parallel/pipeline/executor.h"

#include <array>
#include <deque>
#include <map>
#include <utility>

#include "core/profile.h"
#include "kernels/elementwise.h"

namespace transmamba {
namespace {

constexpr std::array<Lane, 2> kLanes{{{"stage output", 1}, {"stage output gradients", -1}}};
const Lane& lane_of(bool is_forward) { return kLanes[is_forward ? 0 : 1]; }

class Run {
 public:
  Run(const Context& context, const Model& model, const Schedule& schedule, const Batches& batches,
      const View& loss, const RunOptions& options)
      : context_(context),
        model_(model),
        mesh_(*model.placement().mesh),
        schedule_(schedule),
        actions_(schedule.ranks[static_cast<std::size_t>(mesh_.pp().rank())]),
        batches_(batches),
        loss_(loss),
        options_(options),
        backwards_(static_cast<std::size_t>(schedule.chunks)) {}

  void operator()() {
    // The next action's input is on its way while this one is computed. Over NCCL the receive that is started
    // here before this action's send does not hold it up, for it is of another lane or direction.
    Transfer input = actions_.empty() ? Transfer() : receive(actions_[0]);
    for (std::size_t i = 0; i < actions_.size(); ++i) {
      const bool has_next = i + 1 < actions_.size();
      Transfer next = has_next && !options_.is_first ? receive(actions_[i + 1]) : Transfer();
      input.pending.wait();
      if (actions_[i].kind == Action::Kind::forward)
        forward(actions_[i], input.data);
      else
        backward(actions_[i], input.data);
      if (has_next && options_.is_first) next = receive(actions_[i + 1]);
      input = std::move(next);
    }
    for (Transfer& sent : sent_) sent.pending.wait();
  }

 private:
  struct Transfer {
    Tensor data;
    Pending pending;
  };
  struct Flight {                       // a micro-batch between the first and the last action on it here
    Batch batch;                        // dealt to this rank
    std::map<int, Model::Saved> saved;  // by chunk
    std::int64_t actions = 0;
  };

  const Stage& stage(const Action& a) const { return model_.placement().chunk(a.chunk); }
  int stage_index(const Action& a) const { return stage_of(a.chunk, mesh_.pp().rank(), mesh_.pp().size()); }
  /// Of the transfer between stages `earlier` and earlier + 1. Few micro-batches are under way at a time.
  int tag(const Action& a, int earlier) const {
    const auto stages = static_cast<int>(model_.placement().stages.size());
    return (static_cast<int>(a.micro_batch % 512) * stages + earlier) * 2 +
           (a.kind == Action::Kind::backward);
  }
  int neighbour(int step) const { return (mesh_.pp().rank() + step + mesh_.pp().size()) % mesh_.pp().size(); }

  Label chunk_label(const Action& a) const {
    return schedule_.chunks > 1 ? Label{"chunk", a.chunk} : Label{};
  }
  Flight& flight(const Action& a) {
    const auto [found, is_new] = flights_.try_emplace(a.micro_batch);
    if (is_new) {
      const Batch whole = batches_(a.micro_batch);
      const Sequence sequence = model_.sequence(whole.tokens.dim(1));
      found->second.batch = {to_device(context_, sequence.deal(context_, whole.tokens)),
                             to_device(context_, sequence.deal(context_, whole.targets))};
    }
    return found->second;
  }
  void land(const Action& a) {
    const std::int64_t last = schedule_.chunks * (schedule_.has_backward ? 2 : 1);
    if (++flights_.at(a.micro_batch).actions == last) flights_.erase(a.micro_batch);
  }

  Transfer receive(const Action& a) {
    const bool is_forward = a.kind == Action::Kind::forward;
    if (is_forward ? stage(a).is_first : stage(a).is_last) return {};
    const Tensor& tokens = flight(a).batch.tokens;
    const std::int64_t width = model_.hidden_size();
    Tensor data = context_.empty({TokenShard(mesh_.tp(), tokens.numel()).rows, width});
    const int earlier = stage_index(a) - (is_forward ? 1 : 0);
    Pending pending = mesh_.pp().start_receive(lane_of(is_forward).purpose, data,
                                               neighbour(-lane_of(is_forward).step), tag(a, earlier));
    return {data, std::move(pending)};
  }

  void send(const Action& a, Tensor data) {
    const bool is_forward = a.kind == Action::Kind::forward;
    const int earlier = stage_index(a) - (is_forward ? 0 : 1);
    // Sends of long ago are done, and their buffers can go. On a GPU its stream waits for them here, which
    // check_schedule() proves harmless (of receives as they are but in a first run).
    while (sent_.size() > 2 * static_cast<std::size_t>(schedule_.chunks)) sent_.pop_front();
    Pending pending = mesh_.pp().start_send(lane_of(is_forward).purpose, data,
                                            neighbour(lane_of(is_forward).step), tag(a, earlier));
    sent_.push_back({std::move(data), std::move(pending)});
  }

  void forward(const Action& a, const Tensor& input) {
    Flight& f = flight(a);
    const Region region(context_, "forward", {"micro-batch", a.micro_batch}, chunk_label(a));
    const bool keeps = schedule_.has_backward || options_.observe;
    Model::Saved* saved = keeps ? &f.saved[a.chunk] : nullptr;
    if (options_.observe) saved->keep_states = true;
    const Tensor output = model_.forward(context_, a.chunk, f.batch.tokens, input, saved);
    if (options_.observe) options_.observe(a, output, *saved);
    if (stage(a).is_last) {
      const Tensor losses = model_.token_losses(context_, output, f.batch.targets, saved);
      if (mesh_.tp().rank() == 0) sum({.x = losses, .result = loss_}, context_.stream);
    } else {
      send(a, output);
    }
    land(a);
  }

  void backward(const Action& a, const Tensor& doutput) {
    Flight& f = flight(a);
    const Region region(context_, "backward", {"micro-batch", a.micro_batch}, chunk_label(a));
    std::int64_t& done = backwards_[static_cast<std::size_t>(a.chunk)];
    const bool is_last = ++done == schedule_.micro_batches;
    const Tensor dinput = model_.backward(context_, a.chunk, doutput, options_.scale, f.saved.at(a.chunk),
                                          is_last ? options_.events : nullptr);
    f.saved.erase(a.chunk);
    if (!stage(a).is_first) send(a, dinput);
    land(a);
  }

  const Context& context_;
  const Model& model_;
  const Mesh& mesh_;
  const Schedule& schedule_;
  const std::vector<Action>& actions_;
  const Batches& batches_;
  const View loss_;
  const RunOptions& options_;
  std::vector<std::int64_t> backwards_;  // done, by chunk
  std::map<std::int64_t, Flight> flights_;
  std::deque<Transfer> sent_;
};

}  // namespace

void open_transfers(const Mesh& mesh, std::int64_t message_bytes) {
  auto lanes = kLanes;
  for (Lane& lane : lanes) lane.bytes = message_bytes;
  mesh.pp().open_lanes(lanes);
}

void run_schedule(const Context& context, const Model& model, const Schedule& schedule,
                  const Batches& batches, const View& loss, const RunOptions& options) {
  Run(context, model, schedule, batches, loss, options)();
}

}  // namespace transmamba
