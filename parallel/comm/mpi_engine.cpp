#include "parallel/comm/mpi_engine.h"

#include <sched.h>

#include <algorithm>
#include <chrono>

#include "core/tensor.h"

namespace transmamba {
namespace {

using Clock = std::chrono::steady_clock;
constexpr std::int64_t kPollsBeforeYield = 50;
/// By the clock: on a machine with more ranks than cores a poll takes as long as the others compute.
constexpr std::chrono::milliseconds kBetweenLooks{10};

/// MPI counts in 32 bits.
template <class Post>
void cut(std::size_t bytes, std::size_t largest, const Post& post) {
  for (std::size_t begin = 0; begin < bytes; begin += largest)
    post(begin, static_cast<int>(std::min(largest, bytes - begin)));
}

}  // namespace

void mpi_check(int code, const char* what) {
  if (code == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING] = "";
  int length = 0;
  MPI_Error_string(code, text, &length);
  fail("mpi", "{}: {}", what, text);
}

/// Whoever sees the failure first may have nobody to tell (a destructor), so the engine remembers it.
void MpiRequests::check(int code, const char* what) const try {
  mpi_check(code, what);
} catch (const Error& error) {
  engine_->break_with(error.what(), true);
}

void MpiRequests::send(MPI_Comm comm, const std::byte* data, std::size_t bytes, int peer, int tag,
                       std::size_t largest) {
  cut(bytes, largest, [&](std::size_t begin, int count) {
    check(MPI_Isend(data + begin, count, MPI_BYTE, peer, tag, comm, add(-1)), "MPI_Isend");
  });
}

void MpiRequests::receive(MPI_Comm comm, std::byte* data, std::size_t bytes, int peer, int tag,
                          std::size_t largest) {
  cut(bytes, largest, [&](std::size_t begin, int count) {
    check(MPI_Irecv(data + begin, count, MPI_BYTE, peer, tag, comm, add(peer)), "MPI_Irecv");
  });
}

bool MpiRequests::done() {
  if (requests_.empty()) return true;
  int flag = 0;
  check(MPI_Testall(static_cast<int>(requests_.size()), requests_.data(), &flag, MPI_STATUSES_IGNORE),
        "MPI_Testall");
  if (flag) requests_.clear(), peers_.clear();
  return flag != 0;
}

std::vector<int> MpiRequests::missing() {
  std::vector<int> peers;
  for (std::size_t i = 0; i < requests_.size(); ++i) {
    int flag = 0;
    if (MPI_Test(&requests_[i], &flag, MPI_STATUS_IGNORE) == MPI_SUCCESS && !flag && peers_[i] >= 0)
      peers.push_back(peers_[i]);
  }
  std::sort(peers.begin(), peers.end());
  peers.erase(std::unique(peers.begin(), peers.end()), peers.end());
  return peers;
}

void MpiRequests::give_up() {
  // Of these MPI reads and writes the caller's memory on: an Isend cannot be called back, and neither can an
  // Irecv whose message is coming in. Other processes may do so too.
  if (!requests_.empty()) Allocator::keep_all();
  for (std::size_t i = 0; i < requests_.size(); ++i) {
    if (requests_[i] == MPI_REQUEST_NULL) continue;
    if (peers_[i] >= 0) MPI_Cancel(&requests_[i]);
    MPI_Request_free(&requests_[i]);
  }
  requests_.clear(), peers_.clear();
}

MPI_Request* MpiRequests::add(int peer) {
  peers_.push_back(peer);
  return &requests_.emplace_back(MPI_REQUEST_NULL);
}

void MpiEngine::break_with(const std::string& text, bool is_lost_rank) {
  if (!error) error = text, is_lost = is_lost_rank;
  check();
  throw Error(text);  // never: there is an error
}

void MpiEngine::check() const {
  if (error && is_lost) throw LostRank(*error);
  if (error) throw Error(*error);
}

void MpiEngine::poll() {
  for (std::size_t i = 0; i < steps.size(); ++i) steps[i]->advance();
  for (auto one = sent.begin(); one != sent.end();)
    one = one->requests.done() ? sent.erase(one) : std::next(one);
}

MpiWaiting::MpiWaiting(std::shared_ptr<MpiGroup> group, const Call& call)
    : group_(std::move(group)), rank_(group_->rank), size_(group_->size), call_(call) {
  call_.outgoing = {}, call_.incoming = {};
  want_.group = group_->id;
}

void MpiWaiting::wait() {
  engine().check();
  Clock::time_point start, looked;
  std::int64_t wait = 0;
  for (std::int64_t polls = 0; !advance(); ++polls) {
    engine().poll();
    // Others may need this core to get on. Not at once, though: on a busy machine a core given away comes
    // back after milliseconds.
    if (polls < kPollsBeforeYield) continue;
    if (polls == kPollsBeforeYield) start = looked = Clock::now();
    sched_yield();
    const auto now = Clock::now();
    if (now - looked < kBetweenLooks) continue;
    looked = now;
    if (wait == 0) wait = engine().watch.new_wait();
    look(wait, std::chrono::duration<double>(now - start).count());
  }
}

bool MpiWaiting::poll() {
  engine().check();
  engine().poll();
  return advance();
}

Place MpiWaiting::place() const {
  const std::int64_t step = engine().recorder->step(), number = want_.number + 1;
  const bool is_message = want_.peer >= 0;  // which are counted apart, by peer and tag
  return {place_of(step, call_, group_->axis, number), {step, is_message ? 0 : want_.group, number}};
}

void MpiWaiting::look(std::int64_t wait, double seconds) {
  MpiWatch& watch = engine().watch;
  const std::string deadlock = watch.look(wait, seconds, want_, [&] { return place(); });
  if (!deadlock.empty()) engine().break_with(deadlock);
  if (LastWords* const last_words = engine().recorder->last_words())
    last_words->look(seconds, [&] { return place(); });
  const RollCallTimes times(engine().timeout);
  if (seconds < times.asks) return;
  watch.ask(wait);
  if (seconds < times.ends && !watch.all_have_answered()) return;
  std::string peers;
  for (int peer : missing()) peers += fmt::format("{}{}", peers.empty() ? "" : ", ", peer);
  const std::string why = peers.empty() ? "others have not taken what it sent"
                                        : "nothing has come from rank " + peers + " of the group";
  engine().break_with(waited_too_long(group_->axis, rank_, seconds, call_, engine().timeout, why,
                                      watch.who_is_where(place())),
                      true);
}

MpiEngine::~MpiEngine() {
  int finalized = 0;
  MPI_Finalized(&finalized);
  const auto start = Clock::now();
  try {
    while (!finalized && !error && !sent.empty() && Clock::now() - start < std::chrono::seconds(1)) poll();
  } catch (const Error&) {  // NOLINT: nobody is left who could be told
  }
  if (sent.empty() && graveyard.empty()) return;
  // MPI may still read and write these: they are left to the end of the process.
  static std::list<std::list<Sent>> all_sent;
  static std::list<std::vector<Bytes>> all_buried;
  all_sent.push_back(std::move(sent));
  all_buried.push_back(std::move(graveyard));
}

}  // namespace transmamba
