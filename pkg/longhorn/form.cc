#include "pkg/longhorn/form.h"

#include <charconv>
#include <optional>

#include "pkg/base/names.h"

namespace bim::longhorn {

using base::Result;
using base::Status;

namespace {

constexpr size_t kMaxParameters = 64;

int Hex(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

Status Wrong(std::string_view name, const std::string& expected,
             std::string_view found) {
  return base::InvalidArgumentError("parameter " + std::string(name) +
                                    ": expected " + expected + ", found '" +
                                    base::Printable(found) + "'");
}

template <typename Number>
std::optional<Number> ParseNumber(const std::string& text) {
  Number number{};
  const char* const end = text.data() + text.size();
  const auto read = std::from_chars(text.data(), end, number);
  if (read.ec != std::errc() || read.ptr != end) return std::nullopt;
  return number;
}

}  // namespace

std::optional<std::string> DecodeQuery(std::string_view text) {
  std::string plain;
  for (size_t i = 0; i < text.size(); ++i) {
    char c = text[i] == '+' ? ' ' : text[i];
    if (c == '%') {
      if (i + 2 >= text.size()) return std::nullopt;
      const int high = Hex(text[i + 1]);
      const int low = Hex(text[i + 2]);
      if (high < 0 || low < 0) return std::nullopt;
      c = static_cast<char>(high * 16 + low);
      i += 2;
    }
    if (c == '\0') return std::nullopt;
    plain += c;
  }
  return plain;
}

Result<Form> Form::Parse(std::string_view query) {
  Form form;
  size_t count = 0;
  while (!query.empty()) {
    const std::string_view field = query.substr(0, query.find('&'));
    query.remove_prefix(std::min(query.size(), field.size() + 1));
    if (field.empty()) continue;
    if (++count > kMaxParameters) {
      return base::InvalidArgumentError("the query has more than " +
                                        std::to_string(kMaxParameters) +
                                        " parameters");
    }
    const size_t equals = std::min(field.find('='), field.size());
    auto name = DecodeQuery(field.substr(0, equals));
    auto value = DecodeQuery(equals < field.size() ? field.substr(equals + 1)
                                                   : std::string_view());
    if (!name || !value) {
      return base::InvalidArgumentError("the query is badly encoded: '" +
                                        base::Printable(field) + "'");
    }
    if (!value->empty()) form.values_.emplace(*std::move(name), *value);
  }
  return form;
}

const std::string& Form::Get(std::string_view name) const {
  static const std::string kNone;
  const auto it = values_.find(name);
  return it == values_.end() ? kNone : it->second;
}

Result<std::string> Form::Need(std::string_view name) const {
  const std::string& value = Get(name);
  if (!value.empty()) return value;
  return base::InvalidArgumentError("parameter " + std::string(name) +
                                    " is missing");
}

Result<uint64_t> Form::Size(std::string_view name) const {
  const std::string& value = Get(name);
  if (value.empty()) return uint64_t{0};
  const auto size = ParseNumber<uint64_t>(value);
  if (!size) return Wrong(name, "a number of bytes", value);
  if (*size % 512 != 0) {
    return Wrong(name, "a multiple of 512", value);
  }
  return *size;
}

Result<uint16_t> Form::Port(std::string_view name) const {
  BIM_ASSIGN_OR_RETURN(const std::string value, Need(name));
  const auto port = ParseNumber<uint16_t>(value);
  if (!port || *port == 0) return Wrong(name, "a port", value);
  return *port;
}

}  // namespace bim::longhorn
