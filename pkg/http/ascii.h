// Text of the protocol, whose letters are ASCII whatever the locale. Pure.
#pragma once

#include <algorithm>
#include <string>
#include <string_view>

namespace bim::http {

inline char LowerCase(char c) {
  return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
}

inline std::string LowerCase(std::string text) {
  for (char& c : text) c = LowerCase(c);
  return text;
}

inline bool EqualsIgnoringCase(std::string_view a, std::string_view b) {
  return std::ranges::equal(
      a, b, [](char x, char y) { return LowerCase(x) == LowerCase(y); });
}

}  // namespace bim::http
