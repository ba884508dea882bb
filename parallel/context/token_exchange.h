// Tokens that some ranks of a cp group need from others: the convolution's halo and the prefix's keys and
// values are both a list of such moves.
#pragma once

#include <vector>

#include "parallel/context/sequence.h"

namespace transmamba {

/// `count` tokens, from place `source` of rank `from` to place `target` of what rank `to` gathers.
struct TokenMove {
  int from = 0, to = 0;
  std::int64_t source = 0, target = 0, count = 0;
};

class TokenExchange {
 public:
  /// Every rank of `cp` makes the same list. No two moves to one rank overlap there. `in_window`: they arrive
  /// in the group's window (Communicator::open_window), if it has one, which has room for them.
  TokenExchange(Communicator& cp, std::vector<TokenMove> moves, bool in_window = false)
      : cp_(&cp), moves_(std::move(moves)), in_window_(in_window) {}

  /// Room in the window for transfers of (b, .., c).
  std::int64_t window_bytes(std::int64_t b, std::int64_t c, DType dtype) const;

  /// A transfer under way; its buffers live in it.
  class Transfer {
   public:
    /// Then the result is there; nothing if none was started. What a rank without one sends goes on where
    /// `sequence` is given (Sequence::keep).
    void finish(const Context& context, const Sequence* sequence = nullptr);

   private:
    friend class TokenExchange;
    const TokenExchange* exchange_ = nullptr;
    View out_;
    bool adds_ = false;
    Tensor block_;                         // in the window, what received_ is of
    std::vector<Tensor> sent_, received_;  // [rank], absent where there is none
    Pending pending_;
  };

  /// y[target] = x[source] for every move: x (b, t, c), y (b, t', c). Tokens of y that no move names stay.
  /// `expected`: of expect_gather(), or nothing.
  [[nodiscard]] Transfer start_gather(const Context& context, std::string_view purpose, ConstView x, View y,
                                      Transfer expected) const;
  /// The conjugate: dx[source] += dy[target] for every move, summed in order of ranks.
  [[nodiscard]] Transfer start_scatter_add(const Context& context, std::string_view purpose, ConstView dy,
                                           View dx, Transfer expected) const;
  /// Before either, of (b, .., c): from here on what others send may come, where it goes to the window.
  [[nodiscard]] Transfer expect_gather(std::int64_t b, std::int64_t c, DType dtype) const;
  [[nodiscard]] Transfer expect_scatter_add(std::int64_t b, std::int64_t c, DType dtype) const;

 private:
  Transfer start(const Context& context, std::string_view purpose, ConstView in, View out, bool reverse,
                 Transfer transfer) const;
  /// Tokens that this rank sends to, or gets from, each other one.
  std::vector<std::int64_t> tokens(bool reverse, bool sends) const;
  /// The places in the window of what arrives, asked for; nothing where it does not go there.
  Transfer expect(std::int64_t b, std::int64_t c, DType dtype, bool reverse) const;
  Tensor place(const Transfer& transfer, std::int64_t b, std::size_t from, std::int64_t count) const;
  /// Tokens that go from one rank to another, at most.
  std::int64_t most_tokens() const;
  Communicator* cp_;
  std::vector<TokenMove> moves_;
  bool in_window_;
};

}  // namespace transmamba
