// Attributes. Strings are written with a fixed length: those of variable length lie in HDF5's global heap,
// which has no checksum. Bools are written as h5py does. Both of h5py's forms are read.
#include <algorithm>

#include "core/hdf5_internal.h"

namespace transmamba {

using hdf5::Handle;
using hdf5::Lock;

namespace {

std::string label(const std::string& object, const std::string& name) {
  return (object.empty() ? "/" : object) + "@" + name;
}

// h5py's: an enum of int8 with FALSE and TRUE.
Handle bool_type() {
  Handle type(H5Tenum_create(H5T_NATIVE_INT8), H5Tclose);
  std::int8_t value = 0;
  H5Tenum_insert(type, "FALSE", &value);
  value = 1;
  H5Tenum_insert(type, "TRUE", &value);
  return type;
}

Handle string_type(std::size_t length) {
  Handle type(H5Tcopy(H5T_C_S1), H5Tclose);
  H5Tset_size(type, length);
  H5Tset_cset(type, H5T_CSET_UTF8);
  H5Tset_strpad(type, length == H5T_VARIABLE ? H5T_STR_NULLTERM : H5T_STR_NULLPAD);
  return type;
}

const char* kind_of(const Hdf5Attribute& value) {
  constexpr const char* kNames[] = {"an integer", "a number", "a bool", "a string"};
  return kNames[value.index()];
}

}  // namespace

void Hdf5File::set_attribute(const std::string& name, const Hdf5Attribute& value, const std::string& object) {
  const Lock lock;
  const std::string what = label(object, name);
  impl_->require_writable(what);
  const Handle owner = impl_->object(object);
  if (H5Aexists(owner, name.c_str()) > 0)
    impl_->must(H5Adelete(owner, name.c_str()), what, "cannot be replaced");
  const auto put = [&](const Handle& type, const void* data) {
    const Handle space(H5Screate(H5S_SCALAR), H5Sclose);
    const Handle to = impl_->own(H5Acreate2(owner, name.c_str(), type, space, H5P_DEFAULT, H5P_DEFAULT),
                                 H5Aclose, what, "cannot be created");
    impl_->must(H5Awrite(to, type, data), what, "cannot be written");
  };
  if (const auto* integer = std::get_if<std::int64_t>(&value)) {
    put(Handle(H5Tcopy(H5T_NATIVE_INT64), H5Tclose), integer);
  } else if (const auto* number = std::get_if<double>(&value)) {
    put(Handle(H5Tcopy(H5T_NATIVE_DOUBLE), H5Tclose), number);
  } else if (const auto* flag = std::get_if<bool>(&value)) {
    const std::int8_t byte = *flag ? 1 : 0;
    put(bool_type(), &byte);
  } else {
    const auto& text = std::get<std::string>(value);
    put(string_type(std::max<std::size_t>(1, text.size())), text.c_str());
  }
  impl_->check_written(what);
}

bool Hdf5File::has_attribute(const std::string& name, const std::string& object) const {
  const Lock lock;
  return H5Aexists(impl_->object(object), name.c_str()) > 0;
}

std::vector<std::string> Hdf5File::attributes(const std::string& object) const {
  const Lock lock;
  std::vector<std::string> names;
  const Handle owner = impl_->object(object);
  hsize_t at = 0;
  impl_->must(H5Aiterate2(
                  owner, H5_INDEX_NAME, H5_ITER_INC, &at,
                  [](hid_t, const char* name, const H5A_info_t*, void* out) -> herr_t {
                    static_cast<std::vector<std::string>*>(out)->emplace_back(name);
                    return 0;
                  },
                  &names),
              object, "its attributes cannot be listed");
  std::sort(names.begin(), names.end());
  return names;
}

Hdf5Attribute Hdf5File::attribute(const std::string& name, const std::string& object) const {
  const Lock lock;
  const std::string what = label(object, name);
  const Handle owner = impl_->object(object);
  check(H5Aexists(owner, name.c_str()) > 0, "hdf5", "{}: {}: no such attribute", impl_->path.string(), what);
  const Handle from =
      impl_->own(H5Aopen(owner, name.c_str(), H5P_DEFAULT), H5Aclose, what, "cannot be opened");
  const Handle type = impl_->own(H5Aget_type(from), H5Tclose, what, "cannot be read");
  const Handle space = impl_->own(H5Aget_space(from), H5Sclose, what, "cannot be read");
  check(H5Sget_simple_extent_npoints(space) == 1, "hdf5", "{}: {}: expected one value, got {}",
        impl_->path.string(), what, H5Sget_simple_extent_npoints(space));
  const auto get = [&](hid_t memory, void* to) {
    impl_->must(H5Aread(from, memory, to), what, "cannot be read");
  };
  switch (H5Tget_class(type)) {
    case H5T_INTEGER: {
      std::int64_t value = 0;
      get(H5T_NATIVE_INT64, &value);
      return value;
    }
    case H5T_FLOAT: {
      double value = 0;
      get(H5T_NATIVE_DOUBLE, &value);
      return value;
    }
    case H5T_ENUM: {
      std::int8_t value = 0;
      if (H5Tget_nmembers(type) != 2) break;
      get(bool_type(), &value);
      return value != 0;
    }
    case H5T_STRING: {
      if (H5Tis_variable_str(type) > 0) {
        char* text = nullptr;
        // HDF5 does not convert between character sets: ask for the one that is stored.
        Handle memory = string_type(H5T_VARIABLE);
        H5Tset_cset(memory, H5Tget_cset(type));
        get(memory, &text);
        std::string value = text == nullptr ? "" : text;
        H5free_memory(text);
        return value;
      }
      std::string value(H5Tget_size(type), '\0');
      get(type, value.data());
      if (H5Tget_strpad(type) == H5T_STR_NULLTERM) value.resize(std::min(value.size(), value.find('\0')));
      while (!value.empty() && value.back() == '\0') value.pop_back();
      if (H5Tget_strpad(type) == H5T_STR_SPACEPAD)
        while (!value.empty() && value.back() == ' ') value.pop_back();
      return value;
    }
    default: break;
  }
  fail("hdf5", "{}: {}: expected an integer, a number, a bool or a string, got {}", impl_->path.string(),
       what, hdf5::describe_type(type));
}

template <class T>
T Hdf5File::attribute(const std::string& name, const std::string& object) const {
  const Hdf5Attribute value = attribute(name, object);
  if (const auto* same = std::get_if<T>(&value)) return *same;
  if constexpr (std::is_same_v<T, double>)
    if (const auto* integer = std::get_if<std::int64_t>(&value)) return static_cast<double>(*integer);
  fail("hdf5", "{}: {}: expected {}, got {}", impl_->path.string(), label(object, name),
       kind_of(Hdf5Attribute(T{})), kind_of(value));
}

template std::int64_t Hdf5File::attribute(const std::string&, const std::string&) const;
template double Hdf5File::attribute(const std::string&, const std::string&) const;
template bool Hdf5File::attribute(const std::string&, const std::string&) const;
template std::string Hdf5File::attribute(const std::string&, const std::string&) const;

}  // namespace transmamba
