#include "parallel/comm/mpi_engine.h"

#include <algorithm>
#include <chrono>

namespace transmamba {
namespace {

using Clock = std::chrono::steady_clock;

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

void MpiRequests::send(MPI_Comm comm, const std::byte* data, std::size_t bytes, int peer, int tag,
                       std::size_t largest) {
  cut(bytes, largest, [&](std::size_t begin, int count) {
    mpi_check(MPI_Isend(data + begin, count, MPI_BYTE, peer, tag, comm, add(-1)), "MPI_Isend");
  });
}

void MpiRequests::receive(MPI_Comm comm, std::byte* data, std::size_t bytes, int peer, int tag,
                          std::size_t largest) {
  cut(bytes, largest, [&](std::size_t begin, int count) {
    mpi_check(MPI_Irecv(data + begin, count, MPI_BYTE, peer, tag, comm, add(peer)), "MPI_Irecv");
  });
}

bool MpiRequests::done() {
  if (requests_.empty()) return true;
  int flag = 0;
  mpi_check(MPI_Testall(static_cast<int>(requests_.size()), requests_.data(), &flag, MPI_STATUSES_IGNORE),
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

void MpiEngine::break_with(const std::string& text) {
  if (!error) error = text;
  throw Error(*error);
}

void MpiEngine::poll() {
  for (std::size_t i = 0; i < steps.size(); ++i) steps[i]->advance();
  for (auto one = sent.begin(); one != sent.end();)
    one = one->requests.done() ? sent.erase(one) : std::next(one);
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
