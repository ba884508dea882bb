// Measures what core/machine.h asks for: each kernel at a few sizes of a model and each collective at a few
// sizes, fitted by its cost per call and per unit of work, and tried on sizes that were not fitted.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "core/config.h"
#include "core/machine.h"
#include "core/tensor.h"
#include "launch/call_bench.h"
#include "parallel/comm/communicator.h"

namespace transmamba {

/// A size that the fit did not see: a fit that is wrong shows here.
struct FitCheck {
  std::string what;
  double measured = 0, predicted = 0;  ///< seconds
};
std::string format_checks(const std::vector<FitCheck>& checks);  ///< a table

/// Kernels, on all ranks of `world` at once, as in training: they share a host's cores and its memory's
/// bandwidth. Shapes are `config.model`'s (vocab_size 0 stands for 256) on up to train.seq_len tokens, at
/// most 2048. Takes about 110 times `seconds` for shapes whose kernels are quick. Links are the built-in
/// ones. A collective call; all ranks get the same numbers.
Machine measure_machine(const Context& context, const Config& config, Communicator& world, double seconds,
                        std::vector<FitCheck>& checks);

/// Measures messages of 1 KiB to 16 MiB within rank 0's host and, where there are several hosts, between all
/// ranks, into `machine.within_host` and `.between_hosts`. What has only one rank stays as it is. `host`: a
/// name that ranks of one host share; `by_copies`: as of CallBench. Gives a line about which links were
/// measured. A collective call; rank 0's numbers count. Takes about 20 times `seconds` for each of both.
std::string measure_links(const Context& context, Communicator& world, const std::string& host,
                          bool by_copies, double seconds, Machine& machine, std::vector<FitCheck>& checks);

/// Seconds that `work` takes when all ranks of `group` do it at once, for about `seconds` in all: the least
/// mean of several rounds, on the rank where that is most. A collective call, the same on all ranks; `work`
/// may make collective calls.
double time_together(Communicator& group, const std::function<void()>& work, double seconds);

/// The same of several works in turns, so that what drifts hits all alike. `finish` follows the last of each
/// round, and its time counts.
std::vector<double> time_in_turns(Communicator& group, const std::vector<std::function<void()>>& works,
                                  const std::function<void()>& finish, double seconds);

/// What calls of a group cost: a line through its `times`, and these themselves. What was `tried` beside them
/// is predicted, in `checks`.
Links fit_links(const std::vector<CallTime>& times, const std::vector<CallTime>& tried,
                std::vector<FitCheck>& checks);
/// By how much, at most and relative, latency and bytes alone are off what was measured.
double off_a_line(const LinkCost& link);

/// Coefficients >= 0 with sum_j coefficient[j] rows[i][j] close to seconds[i], in squares of relative errors.
/// At most 3 columns.
std::vector<double> fit(const std::vector<std::vector<double>>& rows, const std::vector<double>& seconds);

}  // namespace transmamba
