// Keys and values of the prefix [0, P) for the queries there. A query sees those of its own segment, to which
// its rank attends while it gathers all before its last such segment, in one piece: what crosses ranks
// shrinks with P.
#pragma once

#include "parallel/context/token_exchange.h"

namespace transmamba {

/// Queries of `rank` see the keys before this and those of their own segments: where the last of its segments
/// that has tokens before P begins.
std::int64_t keys_before(const Sequence& sequence, std::int64_t transpoint, int rank);

/// Token i of what a rank gathers is the token at position i, i < keys_before. Each rank gives its tokens
/// before P, which are its first ones.
TokenExchange earlier_exchange(const Sequence& sequence, std::int64_t transpoint);

/// The keys and values before this rank's last segment with tokens before P, in order of time; those of its
/// own earlier segments are among them.
class EarlierKeys {
 public:
  /// Starts to gather from each rank's k (b, cut, h, n) and v (b, cut, h, p), its tokens before P.
  EarlierKeys(const Context& context, const Sequence& sequence, std::int64_t transpoint, const Tensor& k,
              const Tensor& v);
  EarlierKeys(const EarlierKeys&) = delete;  // transfers point at the exchange
  EarlierKeys& operator=(const EarlierKeys&) = delete;
  /// Then what was started, a gather or a scatter, is done.
  void finish(const Context& context) { k_transfer_.finish(context), v_transfer_.finish(context); }
  const Tensor& k() const { return k_; }  ///< (b, keys_before, h, n)
  const Tensor& v() const { return v_; }  ///< (b, keys_before, h, p)

  /// The conjugate of the gather: starts to add to dk, dv, in the shapes of the constructor's, the sums over
  /// ranks of `of_k`, `of_v`, the gradients of k() and v(), which it lets go. What is in dk and dv when
  /// finish() is called counts.
  void start_scatter(const Context& context, const Tensor& of_k, const Tensor& of_v, const Tensor& dk,
                     const Tensor& dv);

 private:
  TokenExchange exchange_;
  Tensor k_, v_;
  TokenExchange::Transfer k_transfer_, v_transfer_;
};

}  // namespace transmamba
