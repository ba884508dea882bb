// A pool of workers for each thread that calls. Unlike OpenMP's, its threads spin only for microseconds
// before they sleep: kernels follow one another closely enough to be caught by the spin, and where cores are
// shared (several ranks, a laptop) a waiting thread does not take the core of a working one, which costs a
// factor of four.
#include "kernels/cpu/parallel_for.h"

#include <atomic>
#include <exception>
#include <memory>
#include <system_error>
#include <thread>
#include <vector>

namespace transmamba::cpu {
namespace {

thread_local bool inside = false;  // this thread is working on an item

constexpr int kSpins = 2000;  // about 30 microseconds

/// Waits until `value` is no longer `old`.
void await_change(const std::atomic<std::uint32_t>& value, std::uint32_t old) {
  for (int i = 0; i < kSpins; ++i) {
    if (value.load(std::memory_order_acquire) != old) return;
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  }
  while (value.load(std::memory_order_acquire) == old) value.wait(old, std::memory_order_acquire);
}

class Pool {
 public:
  explicit Pool(int workers) : workers_(static_cast<std::size_t>(workers)) {
    for (Worker& worker : workers_) try {
        worker.thread = std::thread([this, &worker] { serve(worker); });
      } catch (const std::system_error& error) {
        stop();
        fail("threads", "{} threads could not be started: {}; fewer (train.threads) may do", workers + 1,
             error.what());
      }
  }
  ~Pool() { stop(); }
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;
  int workers() const { return static_cast<int>(workers_.size()); }

  void run(std::int64_t n, void (*work)(void*, std::int64_t), void* context) {
    n_ = n, work_ = work, context_ = context;
    next_.store(0, std::memory_order_relaxed);
    error_ = nullptr;
    failed_.clear(std::memory_order_relaxed);
    const auto helpers = static_cast<std::size_t>(std::min<std::int64_t>(workers(), n - 1));
    busy_.store(static_cast<std::uint32_t>(helpers), std::memory_order_relaxed);
    for (std::size_t i = 0; i < helpers; ++i) wake(workers_[i]);
    take_items();
    for (std::uint32_t busy; (busy = busy_.load(std::memory_order_acquire)) != 0;) await_change(busy_, busy);
    if (error_) std::rethrow_exception(error_);
  }

 private:
  struct Worker {
    alignas(64) std::atomic<std::uint32_t> round{0};  // counts the rounds it is to take part in
    std::thread thread;
  };

  static void wake(Worker& worker) {
    worker.round.fetch_add(1, std::memory_order_release);
    worker.round.notify_one();
  }
  void stop() {
    stop_ = true;
    for (Worker& worker : workers_)
      if (worker.thread.joinable()) wake(worker), worker.thread.join();
  }
  void serve(Worker& worker) {
    inside = true;
    for (std::uint32_t seen = 0;; ++seen) {  // the next round cannot begin before this one is done
      await_change(worker.round, seen);
      if (stop_) return;
      take_items();
      if (busy_.fetch_sub(1, std::memory_order_acq_rel) == 1) busy_.notify_one();
    }
  }
  void take_items() {
    for (std::int64_t i; (i = next_.fetch_add(1, std::memory_order_relaxed)) < n_;) {
      try {
        work_(context_, i);
      } catch (...) {
        if (!failed_.test_and_set()) error_ = std::current_exception();
      }
    }
  }

  // A round's work: written before its workers are woken, read after.
  std::int64_t n_ = 0;
  void (*work_)(void*, std::int64_t) = nullptr;
  void* context_ = nullptr;
  bool stop_ = false;
  std::exception_ptr error_;
  std::atomic_flag failed_ = ATOMIC_FLAG_INIT;
  alignas(64) std::atomic<std::int64_t> next_{0};
  alignas(64) std::atomic<std::uint32_t> busy_{0};  // workers not yet done with this round
  std::vector<Worker> workers_;
};

}  // namespace

void run_parallel(std::int64_t n, int threads, void (*work)(void*, std::int64_t), void* context) {
  thread_local std::unique_ptr<Pool> pool;
  if (inside) {  // a work item that calls parallel_for: its share of the cores is the one it runs on
    for (std::int64_t i = 0; i < n; ++i) work(context, i);
    return;
  }
  if (!pool || pool->workers() != threads - 1) {
    pool.reset();
    pool = std::make_unique<Pool>(threads - 1);
  }
  struct Mark {
    Mark() { inside = true; }
    ~Mark() { inside = false; }
  } mark;
  pool->run(n, work, context);
}

}  // namespace transmamba::cpu
