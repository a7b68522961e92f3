// The query of Longhorn's HTTP requests: parameters as forms send them. Pure.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>

#include "pkg/base/status.h"

namespace bim::longhorn {

// Percent-encoded, "+" a space. nullopt: badly encoded, or a NUL byte.
std::optional<std::string> DecodeQuery(std::string_view text);

class Form {
 public:
  // "a=b&c=d", percent-encoded, "+" a space. Of a parameter that comes more
  // than once the first counts; empty values are as if they were not there.
  // INVALID_ARGUMENT: badly encoded, a NUL byte, or more than 64 parameters.
  static base::Result<Form> Parse(std::string_view query);

  // Empty when it is not there.
  const std::string& Get(std::string_view name) const;
  // INVALID_ARGUMENT "parameter <name> is missing".
  base::Result<std::string> Need(std::string_view name) const;
  // A size in bytes, a multiple of 512; 0 when it is not there.
  // INVALID_ARGUMENT names what was found.
  base::Result<uint64_t> Size(std::string_view name) const;
  // INVALID_ARGUMENT also when it is missing, or not from 1 to 65535.
  base::Result<uint16_t> Port(std::string_view name) const;

 private:
  std::map<std::string, std::string, std::less<>> values_;
};

}  // namespace bim::longhorn
