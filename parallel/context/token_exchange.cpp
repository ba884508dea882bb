#include "parallel/context/token_exchange.h"

#include <algorithm>
#include <map>

#include "kernels/elementwise.h"

namespace transmamba {
namespace {

/// A move seen from the end that sends it, and from the one that receives it.
struct Ends {
  int from, to;
  std::int64_t source, target, count;
};
Ends ends_of(const TokenMove& move, bool reverse) {
  if (reverse) return {move.to, move.from, move.target, move.source, move.count};
  return {move.from, move.to, move.source, move.target, move.count};
}

}  // namespace

std::int64_t TokenExchange::most_tokens() const {
  std::map<std::pair<int, int>, std::int64_t> tokens;
  std::int64_t most = 0;
  for (const TokenMove& move : moves_) most = std::max(most, tokens[{move.from, move.to}] += move.count);
  return most;
}

std::int64_t TokenExchange::window_bytes(std::int64_t b, std::int64_t c, DType dtype) const {
  return cp_->size() * b * most_tokens() * c * size_of(dtype);
}

std::vector<std::int64_t> TokenExchange::tokens(bool reverse, bool sends) const {
  std::vector<std::int64_t> counts(static_cast<std::size_t>(cp_->size()));
  for (const TokenMove& move : moves_) {
    const Ends e = ends_of(move, reverse);
    if ((sends ? e.from : e.to) == cp_->rank())
      counts[static_cast<std::size_t>(sends ? e.to : e.from)] += e.count;
  }
  return counts;
}

/// In the window every rank has the same block, so that each knows the places of all.
Tensor TokenExchange::place(const Transfer& transfer, std::int64_t b, std::size_t from,
                            std::int64_t count) const {
  const auto r = static_cast<std::int64_t>(from);
  return transfer.block_.slice(0, r, r + 1).merge(0).slice(0, 0, b * count).split(0, count);
}

TokenExchange::Transfer TokenExchange::expect(std::int64_t b, std::int64_t c, DType dtype,
                                              bool reverse) const {
  Transfer transfer;
  transfer.adds_ = reverse;
  if (!in_window_ || !cp_->window() || moves_.empty()) return transfer;
  transfer.block_ = Tensor(*cp_->window(), {cp_->size(), b * most_tokens(), c}, dtype);
  const std::vector<std::int64_t> incoming = tokens(reverse, /*sends=*/false);
  transfer.received_.resize(incoming.size());
  std::vector<Incoming> messages;
  for (std::size_t r = 0; r < incoming.size(); ++r) {
    if (incoming[r] == 0 || static_cast<int>(r) == cp_->rank()) continue;
    transfer.received_[r] = place(transfer, b, r, incoming[r]);
    messages.push_back({static_cast<int>(r), transfer.received_[r]});
  }
  cp_->expect(messages);
  return transfer;
}

TokenExchange::Transfer TokenExchange::expect_gather(std::int64_t b, std::int64_t c, DType dtype) const {
  return expect(b, c, dtype, /*reverse=*/false);
}

TokenExchange::Transfer TokenExchange::expect_scatter_add(std::int64_t b, std::int64_t c, DType dtype) const {
  return expect(b, c, dtype, /*reverse=*/true);
}

TokenExchange::Transfer TokenExchange::start(const Context& context, std::string_view purpose, ConstView in,
                                             View out, bool reverse, Transfer transfer) const {
  const std::int64_t b = in.dim(0), c = in.dim(2);
  if (!transfer.block_) transfer = expect(b, c, in.dtype(), reverse);
  const Shape block{cp_->size(), b * most_tokens(), c};
  check(!transfer.block_ || (transfer.adds_ == reverse && transfer.block_.dtype() == in.dtype() &&
                             transfer.block_.shape() == block),
        purpose, "expected a transfer of {} {}, as was asked for, got {} {}, or one in the other direction",
        transfer.block_.dtype(), transfer.block_.shape(), in.dtype(), block);
  transfer.exchange_ = this, transfer.out_ = out, transfer.adds_ = reverse;
  const auto ranks = static_cast<std::size_t>(cp_->size());
  const int me = cp_->rank();
  const auto mine = static_cast<std::size_t>(me);
  const auto buffers = [&](const std::vector<std::int64_t>& counts) {
    std::vector<Tensor> made(ranks);
    for (std::size_t r = 0; r < ranks; ++r)
      if (counts[r] > 0) made[r] = context.empty({b, counts[r], c}, in.dtype());
    return made;
  };
  const std::vector<std::int64_t> outgoing = tokens(reverse, /*sends=*/true);
  transfer.sent_ = buffers(outgoing);
  const bool in_window = static_cast<bool>(transfer.block_);
  if (!in_window) {
    std::vector<std::int64_t> incoming = tokens(reverse, /*sends=*/false);
    incoming[mine] = 0;  // what it sends to itself it has
    transfer.received_ = buffers(incoming);
  }
  transfer.received_[mine] = transfer.sent_[mine];

  std::vector<std::int64_t> filled(ranks);
  for (const TokenMove& move : moves_) {
    const Ends e = ends_of(move, reverse);
    if (e.from != me) continue;
    const auto to = static_cast<std::size_t>(e.to);
    copy({.x = in.slice(1, e.source, e.source + e.count),
          .y = transfer.sent_[to].slice(1, filled[to], filled[to] + e.count)},
         context.stream);
    filled[to] += e.count;
  }
  std::vector<Outgoing> sends;
  std::vector<Incoming> receives;
  for (std::size_t r = 0; r < ranks; ++r) {
    if (r == mine) continue;
    if (transfer.sent_[r])
      sends.push_back({static_cast<int>(r), transfer.sent_[r],
                       in_window ? View(place(transfer, b, mine, outgoing[r])) : View()});
    if (transfer.received_[r]) receives.push_back({static_cast<int>(r), transfer.received_[r]});
  }
  // All ranks have the same list: they agree on whether there is anything to say.
  if (std::any_of(moves_.begin(), moves_.end(), [](const TokenMove& m) { return m.from != m.to; }))
    transfer.pending_ = cp_->start_exchange(purpose, sends, receives);
  return transfer;
}

void TokenExchange::Transfer::finish(const Context& context, const Sequence* sequence) {
  if (exchange_ == nullptr) return;
  const auto mine = static_cast<std::size_t>(exchange_->cp_->rank());
  bool receives = false;
  for (std::size_t rank = 0; rank < received_.size(); ++rank) receives |= rank != mine && received_[rank];
  if (receives || sequence == nullptr)
    pending_.wait();
  else
    sequence->keep(context.stream, std::move(pending_), sent_);
  std::vector<std::int64_t> taken(received_.size());
  for (std::size_t rank = 0; rank < received_.size(); ++rank)  // the order of sums does not depend on moves'
    for (const TokenMove& move : exchange_->moves_) {
      const Ends e = ends_of(move, adds_);
      if (e.to != exchange_->cp_->rank() || e.from != static_cast<int>(rank)) continue;
      const Tensor piece = received_[rank].slice(1, taken[rank], taken[rank] + e.count);
      const View place = out_.slice(1, e.target, e.target + e.count);
      if (adds_)
        add({.x = piece, .y = place}, context.stream);
      else
        copy({.x = piece, .y = place}, context.stream);
      taken[rank] += e.count;
    }
  sent_.clear(), received_.clear(), block_ = Tensor();
}

TokenExchange::Transfer TokenExchange::start_gather(const Context& context, std::string_view purpose,
                                                    ConstView x, View y, Transfer expected) const {
  return start(context, purpose, x, y, /*reverse=*/false, std::move(expected));
}

TokenExchange::Transfer TokenExchange::start_scatter_add(const Context& context, std::string_view purpose,
                                                         ConstView dy, View dx, Transfer expected) const {
  return start(context, purpose, dy, dx, /*reverse=*/true, std::move(expected));
}

}  // namespace transmamba
