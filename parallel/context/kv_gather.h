// Keys and values of the prefix [0, P) for the queries there. A rank gets those that its last query sees, so
// what crosses ranks shrinks with P.
#pragma once

#include "parallel/context/token_exchange.h"

namespace transmamba {

/// How many keys the queries of `rank` see: up to its last token before P.
std::int64_t keys_seen(const Sequence& sequence, std::int64_t transpoint, int rank);

/// Token i of what a rank gathers is the token at position i, i < keys_seen. Each rank gives its tokens
/// before P, which are its first ones.
TokenExchange prefix_exchange(const Sequence& sequence, std::int64_t transpoint);

/// The keys and values that this rank's queries see, in order of time. Where one rank has the whole sequence
/// they are its own, and nothing is copied.
class PrefixKeys {
 public:
  /// Starts to gather from each rank's k (b, cut, h, n) and v (b, cut, h, p), its tokens before P.
  PrefixKeys(const Context& context, const Sequence& sequence, std::int64_t transpoint, const Tensor& k,
             const Tensor& v);
  PrefixKeys(const PrefixKeys&) = delete;  // transfers point at the exchange
  PrefixKeys& operator=(const PrefixKeys&) = delete;
  void finish(const Context& context);
  const Tensor& k() const { return k_; }  ///< (b, seen, h, n)
  const Tensor& v() const { return v_; }

  /// Where gradients of k() and v() are to be added: zeros, unless they are this rank's alone (`dk`, `dv` in
  /// the shapes of the constructor's), to be overwritten.
  struct Gradients {
    Tensor k, v;
    bool adds;
  };
  Gradients gradients(const Context& context, const Tensor& dk, const Tensor& dv) const;
  /// The conjugate of the gather: dk, dv (overwritten) = the sums over all ranks of the gradients.
  void scatter(const Context& context, const Gradients& gradients, const Tensor& dk, const Tensor& dv) const;

 private:
  TokenExchange exchange_;
  bool alone_;
  Tensor k_, v_;
  TokenExchange::Transfer k_transfer_, v_transfer_;
};

}  // namespace transmamba
