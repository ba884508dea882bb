#include "parallel/comm/envelope.h"

#include <algorithm>
#include <cstring>

namespace transmamba {
namespace {

constexpr std::size_t kMaxPurpose = 64, kMaxFile = 128;

std::size_t aligned(std::size_t size) { return (size + 7) / 8 * 8; }

}  // namespace

std::size_t Envelope::capacity(int size) {
  return aligned(sizeof(Header) + kMaxPurpose + kMaxFile) +
         2 * sizeof(std::int64_t) * static_cast<std::size_t>(size) + kAttached;
}

std::size_t Envelope::pack(std::byte* buffer, const Call& call, std::int64_t number,
                           const std::vector<std::int64_t>& table, const std::byte* data, std::size_t bytes) {
  const std::string_view purpose = call.purpose.substr(0, kMaxPurpose);
  std::string_view file = call.where.file;
  if (file.size() > kMaxFile) file.remove_prefix(file.size() - kMaxFile);  // its end says most
  const std::size_t table_bytes = table.size() * sizeof(std::int64_t);
  const std::size_t table_place = aligned(sizeof(Header) + purpose.size() + file.size());
  Header header;
  header.fingerprint = fingerprint_of(call, number);
  header.bytes = static_cast<std::int64_t>(bytes);
  header.line = call.where.line, header.peer = call.peer, header.tag = call.tag;
  header.purpose = static_cast<std::uint32_t>(purpose.size());
  header.file = static_cast<std::uint32_t>(file.size());
  header.table = static_cast<std::uint32_t>(table_place);
  header.data = static_cast<std::uint32_t>(table_place + table_bytes);
  std::memcpy(buffer, &header, sizeof header);
  std::memcpy(buffer + sizeof header, purpose.data(), purpose.size());
  std::memcpy(buffer + sizeof header + purpose.size(), file.data(), file.size());
  if (table_bytes) std::memcpy(buffer + table_place, table.data(), table_bytes);
  const std::size_t attached = bytes <= kAttached ? bytes : 0;
  copy_bytes(buffer + header.data, data, attached);
  return header.data + attached;
}

Envelope::Envelope(const std::byte* packed) : packed_(packed) {
  std::memcpy(&header_, packed, sizeof header_);
}

std::int64_t Envelope::table(int i) const {
  std::int64_t value = 0;
  std::memcpy(&value, packed_ + header_.table + sizeof value * static_cast<std::size_t>(i), sizeof value);
  return value;
}

std::string Envelope::call() const {
  const char* text = reinterpret_cast<const char*>(packed_) + sizeof(Header);
  const std::string file(text + header_.purpose, header_.file);
  static std::byte somewhere;  // only the sizes of these views are read
  const View data(&somewhere, static_cast<DType>(header_.fingerprint.dtype), {header_.fingerprint.count});
  Call call;
  call.kind = static_cast<Call::Kind>(header_.fingerprint.kind);
  call.reduce = static_cast<Reduce>(header_.fingerprint.reduce);
  call.purpose = {text, header_.purpose};
  call.in = data, call.out = data, call.peer = header_.peer, call.tag = header_.tag;
  call.where = {file.c_str(), header_.line};
  return to_string(call);
}

}  // namespace transmamba
