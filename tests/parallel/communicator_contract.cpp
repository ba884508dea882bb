#include "tests/parallel/communicator_contract.h"

#include <fmt/ranges.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

namespace transmamba {
namespace {

template <class T>
View view(std::vector<T>& x) {
  return {reinterpret_cast<std::byte*>(x.data()), dtype_of<T>(), {static_cast<std::int64_t>(x.size())}};
}
template <class T>
View part(std::vector<T>& x, std::int64_t begin, std::int64_t end) {
  return view(x).slice(0, begin, end);
}

template <class T>
void expect_equal(const std::vector<T>& got, const std::vector<T>& expected, std::string_view what,
                  Site where = Site::current()) {
  check(got == expected, "contract", "{} at line {}: expected {}, got {}", what, where.line, expected, got);
}
template <class T>
void expect_equal(T got, T expected, std::string_view what, Site where = Site::current()) {
  check(got == expected, "contract", "{} at line {}: expected {}, got {}", what, where.line, expected, got);
}

/// Different numbers on each rank and at each place; small enough to be exact in every type.
template <class T>
std::vector<T> numbers(int rank, std::int64_t count) {
  std::vector<T> x(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < x.size(); ++i)
    x[i] = static_cast<T>(1000 * (rank + 1) + static_cast<int>(i % 997));
  return x;
}
template <class T>
std::vector<T> sum_of_numbers(int size, std::int64_t count) {
  std::vector<T> sum(static_cast<std::size_t>(count));
  for (int rank = 0; rank < size; ++rank) {
    const auto x = numbers<T>(rank, count);
    for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += x[i];
  }
  return sum;
}

template <class T>
void all_reduce_of(Communicator& world) {
  // Either side of where an implementation may change its way, and lengths that no number of ranks divides.
  for (const std::int64_t count : {1, 3, 7, 64, 1001, 40009}) {
    auto x = numbers<T>(world.rank(), count);
    world.all_reduce("sum", view(x));
    expect_equal(x, sum_of_numbers<T>(world.size(), count), "sum");
    auto y = numbers<T>(world.rank(), count);
    for (auto& value : y) value = world.rank() % 2 ? value : -value;
    auto largest = numbers<T>(world.size() == 1 ? 0 : (world.size() / 2) * 2 - 1, count);
    if (world.size() == 1)
      for (auto& value : largest) value = -value;
    world.all_reduce("max", view(y), Reduce::max);
    expect_equal(y, largest, "max");
  }
}
void test_all_reduce(Communicator& world) {
  all_reduce_of<float>(world), all_reduce_of<double>(world), all_reduce_of<std::int32_t>(world);
}

void test_sums_of_integers_wrap_and_nan_is_kept(Communicator& world) {
  std::vector<std::int32_t> x = {std::numeric_limits<std::int32_t>::max()};
  world.all_reduce("wrap", view(x));
  const auto wrapped = static_cast<std::uint32_t>(world.size()) * 0x7fffffffU;
  expect_equal(x, {static_cast<std::int32_t>(wrapped)}, "wrapped sum");
  std::vector<double> y = {world.rank() == world.size() / 2 ? std::nan("") : 1.0};
  world.all_reduce("nan", view(y), Reduce::max);
  check(std::isnan(y[0]), "contract", "max with a NaN: expected NaN, got {}", y[0]);
}

/// Sums whose rounding depends on the order: all ranks, and a second run, must agree in every bit, and with
/// the sum in the order of ranks.
void test_sums_have_one_order(Communicator& world) {
  const auto uneven = [](int rank, std::size_t i) {
    return std::ldexp(1.0F + 0.37F * static_cast<float>(i % 13), (rank * 7 + static_cast<int>(i)) % 23);
  };
  for (const std::size_t count : {std::size_t{5}, std::size_t{30011}}) {
    std::vector<float> x(count), in_order(count);
    for (std::size_t i = 0; i < count; ++i) {
      x[i] = uneven(world.rank(), i), in_order[i] = uneven(0, i);
      for (int rank = 1; rank < world.size(); ++rank) in_order[i] += uneven(rank, i);
    }
    world.all_reduce("order", view(x));
    check(std::memcmp(x.data(), in_order.data(), count * sizeof(float)) == 0, "contract",
          "a sum of {} numbers is not that in the order of ranks", count);
  }
}

void test_all_gather_and_reduce_scatter(Communicator& world) {
  for (const std::int64_t count : {0, 1, 5, 20011}) {
    const int n = world.size(), me = world.rank();
    std::vector<double> mine = numbers<double>(me, count), all(static_cast<std::size_t>(n * count), -1),
                        expected;
    for (int rank = 0; rank < n; ++rank)
      for (double x : numbers<double>(rank, count)) expected.push_back(x);
    world.all_gather("gather", view(mine), view(all));
    expect_equal(all, expected, "gathered");

    std::vector<double> in_place(all.size(), -1);
    std::copy(mine.begin(), mine.end(), in_place.begin() + me * count);
    world.all_gather("gather", part(in_place, me * count, (me + 1) * count), view(in_place));
    expect_equal(in_place, expected, "gathered in place");

    auto whole = numbers<double>(me, n * count);
    auto untouched = whole;
    const auto sum = sum_of_numbers<double>(n, n * count);
    const std::vector<double> my_sum(sum.begin() + me * count, sum.begin() + (me + 1) * count);
    world.reduce_scatter("scatter", view(whole), view(mine));
    expect_equal(mine, my_sum, "scattered");
    world.reduce_scatter("scatter", view(untouched), part(untouched, me * count, (me + 1) * count));
    expect_equal({untouched.begin() + me * count, untouched.begin() + (me + 1) * count}, my_sum,
                 "scattered in place");
  }
}

void test_broadcast(Communicator& world) {
  for (int root = 0; root < world.size(); ++root)
    for (const std::int64_t count : {1, 50021}) {
      auto x = numbers<std::int32_t>(world.rank(), count);
      world.broadcast("from the root", view(x), root);
      expect_equal(x, numbers<std::int32_t>(root, count), "broadcast");
    }
}

/// Rank a sends b: a + 2 b + 1 numbers, or nothing where (a + b) % 3 == 2; a copy to itself.
void test_uneven_exchange(Communicator& world) {
  const int n = world.size(), me = world.rank();
  const auto count = [&](int from, int to) { return (from + to) % 3 == 2 ? 0 : from + 2 * to + 1; };
  std::vector<std::vector<float>> out, in;
  std::vector<Outgoing> outgoing;
  std::vector<Incoming> incoming;
  for (int peer = 0; peer < n; ++peer) {
    out.push_back(numbers<float>(10 * me + peer, count(me, peer)));
    in.emplace_back(static_cast<std::size_t>(count(peer, me)), -1.0F);
  }
  for (int peer = n - 1; peer >= 0; --peer) {  // an empty message may be left out on either side
    const auto p = static_cast<std::size_t>(peer);
    if (!out[p].empty() || peer % 2) outgoing.push_back({peer, view(out[p])});
    if (!in[p].empty()) incoming.push_back({peer, view(in[p])});
  }
  world.exchange("uneven", outgoing, incoming);
  for (int peer = 0; peer < n; ++peer)
    expect_equal(in[static_cast<std::size_t>(peer)], numbers<float>(10 * peer + me, count(peer, me)),
                 "exchanged");
  world.exchange("nothing", {}, {});
}

void test_calls_are_waited_for_out_of_order(Communicator& world) {
  const int n = world.size(), me = world.rank();
  std::vector<std::vector<double>> sums, wholes;
  std::vector<Pending> pending;
  constexpr int kCalls = 12;
  for (int i = 0; i < kCalls; ++i) {
    sums.push_back(numbers<double>(me + i, i % 2 ? 4 : 3000));
    wholes.emplace_back(static_cast<std::size_t>(n), -1);
    wholes.back()[static_cast<std::size_t>(me)] = me + i;
    pending.push_back(world.start_all_reduce("many", view(sums.back())));
    pending.push_back(world.start_all_gather("many", part(wholes.back(), me, me + 1), view(wholes.back())));
  }
  for (std::size_t i = 0; i < pending.size(); ++i) {  // another order on each rank
    Pending& one = pending[(i * 7 + 5 * static_cast<std::size_t>(me)) % pending.size()];
    one.wait();
    one.wait();  // does nothing
  }
  for (int i = 0; i < kCalls; ++i) {
    std::vector<double> sum(sums[static_cast<std::size_t>(i)].size()), whole;
    for (int rank = 0; rank < n; ++rank) {
      whole.push_back(rank + i);
      const auto x = numbers<double>(rank + i, static_cast<std::int64_t>(sum.size()));
      for (std::size_t j = 0; j < sum.size(); ++j) sum[j] += x[j];
    }
    expect_equal(sums[static_cast<std::size_t>(i)], sum, "one of many sums");
    expect_equal(wholes[static_cast<std::size_t>(i)], whole, "one of many gathers");
  }
  std::vector<double> dropped = {1};
  { const Pending waits_when_destroyed = world.start_all_reduce("dropped", view(dropped)); }
  expect_equal(dropped, {static_cast<double>(n)}, "sum of a call that was not waited for");
}

void test_messages_meet_by_tag(Communicator& world) {
  const int n = world.size(), me = world.rank(), next = (me + 1) % n, previous = (me + n - 1) % n;
  // A ring in which everyone sends first: sends need no receive. With one rank, to itself.
  constexpr int kMessages = 5;
  std::vector<Pending> sends;
  std::vector<std::vector<double>> out, in(kMessages);
  for (int tag = 0; tag < kMessages; ++tag)
    out.push_back(numbers<double>(100 * me + tag, 1 + 9000 * (tag % 2)));
  for (int tag = 0; tag < kMessages; ++tag)
    sends.push_back(world.start_send("ring", view(out[static_cast<std::size_t>(tag)]), next,
                                     tag == 4 ? Communicator::kMaxTag - 1 : tag));
  world.barrier("between");
  for (int tag = kMessages - 1; tag >= 0; --tag) {
    auto& x = in[static_cast<std::size_t>(tag)];
    x.resize(static_cast<std::size_t>(1 + 9000 * (tag % 2)));
    world.receive("ring", view(x), previous, tag == 4 ? Communicator::kMaxTag - 1 : tag);
    expect_equal(x, numbers<double>(100 * previous + tag, static_cast<std::int64_t>(x.size())), "message");
  }
  for (Pending& send : sends) send.wait();
  // Messages of one tag keep their order, whatever the order of waiting.
  std::vector<std::int32_t> a = {me}, b = {me + 50}, first = {-1}, second = {-1};
  Pending one = world.start_receive("order", view(first), previous, 7);
  Pending two = world.start_receive("order", view(second), previous, 7);
  world.send("order", view(a), next, 7), world.send("order", view(b), next, 7);
  two.wait(), one.wait();
  expect_equal(first, {previous}, "first message");
  expect_equal(second, {previous + 50}, "second message");
}

void test_split_into_meshes(Communicator& world) {
  const int n = world.size(), me = world.rank();
  for (int columns = 1; columns <= n; ++columns) {
    if (n % columns) continue;
    const auto row = world.split("row", me / columns, me);
    const auto column = world.split("column", me % columns, -me);  // in reverse
    expect_equal(row->size(), columns, "size of a row");
    expect_equal(row->rank(), me % columns, "rank in a row");
    expect_equal(column->size(), n / columns, "size of a column");
    expect_equal(column->rank(), n / columns - 1 - me / columns, "rank in a column");
    expect_equal(row->axis(), std::string("row"), "axis");
    std::vector<std::int32_t> in_row = {me}, in_column = {me};
    Pending both[] = {row->start_all_reduce("row", view(in_row)),
                      column->start_all_reduce("column", view(in_column))};
    both[1].wait(), both[0].wait();
    std::int32_t row_sum = 0, column_sum = 0;
    for (int rank = 0; rank < n; ++rank) {
      if (rank / columns == me / columns) row_sum += rank;
      if (rank % columns == me % columns) column_sum += rank;
    }
    expect_equal(in_row, {row_sum}, "sum of a row");
    expect_equal(in_column, {column_sum}, "sum of a column");
    // A split of a split, and messages in it.
    const auto half = column->split("half", column->rank() % 2, 0);
    std::vector<std::int32_t> count = {1};
    half->all_reduce("count", view(count));
    expect_equal(count, {half->size()}, "ranks of a half");
  }
}

void test_recorder_counts_bytes(Communicator& world) {
  const int n = world.size();
  world.recorder().reset();
  std::vector<float> x(static_cast<std::size_t>(8 * n)), mine(8);
  std::vector<double> message(3), received(3);
  world.all_reduce("r", view(x)), world.all_reduce("r", view(x));
  world.all_gather("g", view(mine), view(x));
  world.reduce_scatter("s", view(x), view(mine));
  world.broadcast("b", view(x), n - 1);
  world.barrier("w");
  const int next = (world.rank() + 1) % n, previous = (world.rank() + n - 1) % n;
  const Outgoing out[] = {{next, view(message)}};
  const Incoming in[] = {{previous, view(received)}};
  world.exchange("e", out, in);
  if (n > 1) world.send("p", view(message), next, 0), world.receive("q", view(received), previous, 0);
  const auto table = world.recorder().table();
  if (n == 1) return expect_equal(table.size(), std::size_t{0}, "entries of a group of one rank");
  const auto entry = [&](const char* purpose) { return table.at({"world", purpose}); };
  const std::int64_t all = 32 * n;
  expect_equal(entry("r").calls, std::int64_t{2}, "calls");
  expect_equal(entry("r").bytes, 2 * 2 * (n - 1) * all / n, "bytes of all_reduce");
  expect_equal(entry("g").bytes, (n - 1) * std::int64_t{32}, "bytes of all_gather");
  expect_equal(entry("s").bytes, (n - 1) * std::int64_t{32}, "bytes of reduce_scatter");
  expect_equal(entry("b").bytes, world.rank() == n - 1 ? all : 0, "bytes of broadcast");
  expect_equal(entry("w").bytes, std::int64_t{0}, "bytes of barrier");
  expect_equal(entry("e").bytes, std::int64_t{24}, "bytes of exchange");
  expect_equal(entry("p").bytes, std::int64_t{24}, "bytes of send");
  expect_equal(entry("q").bytes, std::int64_t{0}, "bytes of receive");
  const Traffic total = world.recorder().total("r");
  check(total.seconds >= total.exposed && total.exposed > 0, "contract", "seconds {} of which exposed {}",
        total.seconds, total.exposed);
}

constexpr ContractTest kTests[] = {
    {"all_reduce", test_all_reduce},
    {"sums_of_integers_wrap_and_nan_is_kept", test_sums_of_integers_wrap_and_nan_is_kept},
    {"sums_have_one_order", test_sums_have_one_order},
    {"all_gather_and_reduce_scatter", test_all_gather_and_reduce_scatter},
    {"broadcast", test_broadcast},
    {"uneven_exchange", test_uneven_exchange},
    {"calls_are_waited_for_out_of_order", test_calls_are_waited_for_out_of_order},
    {"messages_meet_by_tag", test_messages_meet_by_tag},
    {"split_into_meshes", test_split_into_meshes},
    {"recorder_counts_bytes", test_recorder_counts_bytes},
};

}  // namespace

std::span<const ContractTest> contract_tests() { return kTests; }

}  // namespace transmamba
