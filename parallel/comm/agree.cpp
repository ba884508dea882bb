#include "parallel/comm/agree.h"

#include <algorithm>
#include <cstring>
#include <new>

#include "core/host_name.h"
#include "core/tensor.h"

namespace transmamba {
namespace {

/// Communicators carry no bytes: words, the last one filled up.
Tensor pack(Allocator& memory, const std::string& text) {
  const std::int64_t words = (static_cast<std::int64_t>(text.size()) + 3) / 4;
  const Tensor packed(memory, {words}, DType::i32);
  std::memset(packed.view().raw(), 0, static_cast<std::size_t>(words) * sizeof(std::int32_t));
  std::memcpy(packed.view().raw(), text.data(), text.size());
  return packed;
}

}  // namespace

std::vector<std::string> collect_text(Communicator& group, std::string_view purpose, const std::string& mine,
                                      Site where) {
  Allocator memory;  // which MPI may still write to where this call fails
  const Tensor size(memory, {1}, DType::f64);
  if (group.rank() > 0) {
    *size.ptr<double>() = static_cast<double>(mine.size());
    group.send(purpose, size, 0, 0, where);
    if (!mine.empty()) group.send(purpose, pack(memory, mine), 0, 0, where);
    return {};
  }
  std::vector<std::string> texts{mine};
  for (int rank = 1; rank < group.size(); ++rank) {
    group.receive(purpose, size, rank, 0, where);
    std::string& text = texts.emplace_back(static_cast<std::size_t>(*size.ptr<double>()), '\0');
    if (text.empty()) continue;
    const Tensor packed = pack(memory, text);
    group.receive(purpose, packed, rank, 0, where);
    std::memcpy(text.data(), packed.view().raw(), text.size());
  }
  return texts;
}

std::vector<std::string> gather_text(Communicator& group, std::string_view purpose, const std::string& mine,
                                     Site where) {
  const auto view = [](std::vector<std::int32_t>& x) {
    return View(reinterpret_cast<std::byte*>(x.data()), DType::i32, {static_cast<std::int64_t>(x.size())});
  };
  const auto ranks = static_cast<std::size_t>(group.size());
  std::vector<std::int32_t> length = {static_cast<std::int32_t>(mine.size())}, lengths(ranks);
  group.all_gather(purpose, view(length), view(lengths), where);
  const auto longest = static_cast<std::size_t>(*std::max_element(lengths.begin(), lengths.end()));
  std::vector<std::string> texts(ranks);
  if (longest == 0) return texts;
  const std::size_t words = (longest + 3) / 4;
  Allocator memory;  // which MPI may still write to where this call fails
  const Tensor packed(memory, {static_cast<std::int64_t>(words)}, DType::i32);
  const Tensor all(memory, {static_cast<std::int64_t>(ranks * words)}, DType::i32);
  std::memset(packed.view().raw(), 0, words * sizeof(std::int32_t));
  std::memcpy(packed.view().raw(), mine.data(), mine.size());
  group.all_gather(purpose, packed, all, where);
  for (std::size_t rank = 0; rank < ranks; ++rank)
    texts[rank].assign(reinterpret_cast<const char*>(all.ptr<std::int32_t>() + rank * words),
                       static_cast<std::size_t>(lengths[rank]));
  return texts;
}

void agree(Communicator& group, std::string_view what, const std::function<void()>& step, Site where) {
  std::string mine;  // "" where all is well
  const auto text_of = [](std::string_view text) {
    return text.empty() ? "an error without words" : std::string(text);
  };
  try {
    step();
  } catch (const std::bad_alloc&) {
    mine = fmt::format("[{}] out of memory", what);
  } catch (const Error& error) {
    mine = text_of(error.what());
  } catch (const std::exception& error) {  // of the standard library: a file system, say
    mine = fmt::format("[system] {}", error.what());
  }
  const std::vector<std::string> texts = gather_text(group, what, mine, where);
  const auto failed =
      std::find_if(texts.begin(), texts.end(), [](const auto& text) { return !text.empty(); });
  if (failed == texts.end()) return;
  const bool all_the_same =
      std::all_of(texts.begin(), texts.end(), [&](const auto& t) { return t == *failed; });
  if (all_the_same) throw Error(*failed);
  const std::ptrdiff_t rank = failed - texts.begin();
  const std::vector<std::string> hosts = gather_text(group, "hosts", host_name());
  const bool is_one_host =
      std::all_of(hosts.begin(), hosts.end(), [&](const auto& h) { return h == hosts[0]; });
  const std::string on = is_one_host ? "" : " on " + hosts[static_cast<std::size_t>(rank)];
  throw Error(fmt::format("rank {}{}: {}", rank, on, *failed));
}

}  // namespace transmamba
